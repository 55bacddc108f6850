"""What DCP and DPL cost on ViT-B/16, against what arithmetic says."""

import msgspec
import numpy as np
import onnx_ir as ir

from tests.export.test_contexts import coupling
from tests.export.test_flops import VIT_B_16, image_inputs, zero_weights
from vlp_deploy.formats.architecture import (
    Backbone,
    ClipConfig,
    Preprocessing,
    TextLayout,
    VisualLayout,
)
from vlp_deploy.formats.checkpoint import Header, PromptCheckpoint
from vlp_deploy.formats.structures import Coupled, Decoupled, Plain, Structure
from vlp_deploy.formats.weights import Floats
from vlp_export.coupled_graph import write_coupled_graph
from vlp_export.decoupled_graph import write_decoupled_graph
from vlp_export.flops import count_flops
from vlp_export.graphs import image_model

TEXT = msgspec.structs.replace(VIT_B_16.text, layers=12, vocab_size=49408)
CONFIG: ClipConfig = msgspec.structs.replace(VIT_B_16, text=TEXT)
N, DEPTH = 16, 9
WIDTH, TOKENS = 768, 197


def checkpoint(structure: Structure, tensors: dict[str, Floats], tokens: int) -> PromptCheckpoint:
    zeros = {
        "reference.pixels": np.zeros((8, 3, 224, 224), np.uint8),
        "reference.logits": np.zeros((8, 1), np.float32),
    }
    return PromptCheckpoint(
        header=Header(
            method="test",
            hyper_parameters={},
            backbone=Backbone(name="b16", pretrained="none", sha256="0", config=CONFIG),
            class_names=("one",),
            templates=("{}.",),
            text_layout=TextLayout(tokens=tokens),
            visual_layout=VisualLayout(tokens=tokens, survive_last=True),
            structure=structure,
            preprocessing=Preprocessing(image_size=224),
            provenance={},
        ),
        tensors={**zeros, **tensors},
    )


def flops(model: ir.Model) -> int:
    return count_flops(model, image_inputs(CONFIG))


def plain() -> int:
    return flops(image_model(checkpoint(Plain(), {}, 0), zero_weights(CONFIG)))


def test_dcp_frozen_costs_less_than_two_per_cent() -> None:
    prompts = {"visual.prompts": np.ones((DEPTH + 1, N, WIDTH), np.float32)}
    frozen = checkpoint(Coupled(depth=DEPTH, context="frozen"), prompts, N)

    ratio = flops(image_model(frozen, zero_weights(CONFIG))) / plain()

    assert 1.01 < ratio <= 1.02


def test_dcp_per_sample_costs_what_the_module_does() -> None:
    tensors = coupling(CONFIG, sets=1, tokens=N)
    live = checkpoint(Coupled(depth=DEPTH, context="per_sample"), tensors, N)

    found = flops(write_coupled_graph(live, zero_weights(CONFIG)))

    def blocks(tokens: int) -> int:
        """Multiply-accumulates of 11 blocks, and of the last one for its class token."""
        block = 12 * tokens * WIDTH**2 + 2 * tokens**2 * WIDTH
        return 11 * block + 2 * tokens * WIDTH**2 + 10 * WIDTH**2 + 2 * tokens * WIDTH

    # keys, values, output and perceptron of n prompts; queries are constants
    module = 11 * N * WIDTH**2 + 2 * N**2 * WIDTH
    more = blocks(TOKENS + N) - blocks(TOKENS) + DEPTH * module
    assert found - plain() == 2 * more
    assert 0.93e9 < DEPTH * module < 0.95e9


def test_dpl_costs_less_than_one_per_cent() -> None:
    for mode in ("exact", "bias", "fixed"):
        tensors = {
            "dpl.visual_prompts": np.ones((9, 8, WIDTH), np.float32),
            "dpl.visual_gates": np.zeros((9, 12), np.float32),
        }
        model = write_decoupled_graph(
            checkpoint(Decoupled(mode=mode), tensors, 0), zero_weights(CONFIG)
        )

        # scores and values of 8 prompts, for every token and in 9 blocks
        assert flops(model) - plain() == 2 * 9 * 2 * TOKENS * 8 * WIDTH
        assert flops(model) / plain() <= 1.01
