"""Costs are counted from the graph, and the rewrites save what arithmetic says they save."""

from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.export.tiny_clip import make_config, make_weights
from vlp_deploy import embedded
from vlp_deploy.formats.architecture import (
    ClipConfig,
    Preprocessing,
    VisualLayout,
)
from vlp_deploy.formats.methods import METHODS
from vlp_deploy.formats.weights import expected_shapes
from vlp_export.flops import count_flops
from vlp_export.folding import Weights
from vlp_export.graph import GraphBuilder, node_count, to_bytes
from vlp_export.image_graph import write_image_graph
from vlp_export.text_graph import write_text_graph

CLASSES = 100
VIT_B_16 = ClipConfig.from_open_clip(
    {
        "embed_dim": 512,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 224, "patch_size": 16, "width": 768, "layers": 12},
        "text_cfg": {"vocab_size": 4, "width": 64, "heads": 1, "layers": 1},  # not counted
    }
)
VLP_TINY = embedded.config()


def zero_weights(config: ClipConfig) -> Weights:
    """Weights that take no memory: only shapes are counted."""
    zero = np.zeros((), np.float32)
    return {name: np.broadcast_to(zero, shape) for name, shape in expected_shapes(config).items()}


@cache
def image_cost(
    config: ClipConfig,
    *,
    prompted: int = 0,
    tokens: int = 8,
    survive_last: bool = False,
    batch: int = 1,
) -> tuple[int, int]:
    """Nodes and FLOPs of an image graph with prompt tokens in `prompted` layers."""
    size = config.vision.image_size
    model = write_image_graph(
        config,
        zero_weights(config),
        preprocessing=Preprocessing(image_size=size),
        prompts=np.ones((prompted, tokens, config.vision.width), np.float32),
        layout=VisualLayout(tokens=tokens, survive_last=survive_last),
    )
    return node_count(model), count_flops(model, image_inputs(config, batch=batch))


def image_inputs(config: ClipConfig, *, batch: int = 1) -> dict[str, tuple[int, ...]]:
    size = config.vision.image_size
    return {
        "image": (batch, 3, size, size),
        "class_matrix": (config.embed_dim, CLASSES),
        "class_bias": (CLASSES,),
    }


def tower_flops(config: ClipConfig, *, every_token_through_last_block: bool) -> int:
    """The arithmetic by hand; t tokens, d width."""
    tower = config.vision
    t, d, hidden = 1 + tower.patches, tower.width, tower.mlp_width
    block = t * d * 3 * d + 2 * t * t * d + t * d * d + 2 * t * d * hidden
    last = t * d * 2 * d + 2 * t * d + 2 * d * d + 2 * d * hidden  # query of one token
    if every_token_through_last_block:
        last = block
    patches = tower.patches * d * 3 * tower.patch_size**2
    head = d * config.embed_dim + config.embed_dim * CLASSES
    return 2 * (patches + (tower.layers - 1) * block + last + head)


@pytest.mark.parametrize("config", [VIT_B_16, VLP_TINY], ids=["vit-b-16", "vlp-tiny"])
def test_count_equals_the_arithmetic_by_hand(config: ClipConfig) -> None:
    _, found = image_cost(config)

    assert found == tower_flops(config, every_token_through_last_block=False)
    assert image_cost(config, batch=5)[1] == 5 * found


def test_last_block_for_the_class_token_saves_seven_percent_of_vit_b_16() -> None:
    plain = tower_flops(VIT_B_16, every_token_through_last_block=True)

    saved = 1 - image_cost(VIT_B_16)[1] / plain

    assert plain == pytest.approx(2 * 17.56e9, rel=1e-3)  # the published cost of ViT-B/16
    assert saved == pytest.approx(0.069, abs=5e-4)


@pytest.mark.parametrize(
    ("config", "ratio"),
    [(VIT_B_16, 1.00163), (VLP_TINY, 1.00478)],
    ids=["vit-b-16", "vlp-tiny"],
)
def test_deep_prompts_cost_at_most_half_a_percent(config: ClipConfig, ratio: float) -> None:
    _, prompted = image_cost(config, prompted=config.vision.layers)

    found = prompted / image_cost(config)[1]

    assert found == pytest.approx(ratio, abs=1e-5)
    assert found <= 1.005


@pytest.mark.parametrize(
    ("method", "layers", "tokens", "ratio"),
    [("ivlp", 12, 2, 1.0004), ("maple", 9, 2, 1.0033), ("promptsrc", 9, 4, 1.0065)],
)
def test_methods_cost_what_their_rows_say(
    method: str, layers: int, tokens: int, ratio: float
) -> None:
    survive = layers < VIT_B_16.vision.layers
    _, flops = image_cost(VIT_B_16, prompted=layers, tokens=tokens, survive_last=survive)

    assert flops / image_cost(VIT_B_16)[1] == pytest.approx(ratio, abs=5e-5)
    assert METHODS[method].cost == f"{100 * (ratio - 1):.2f} %"


def test_travelling_prompts_cost_what_tokens_cost() -> None:
    _, travelling = image_cost(VLP_TINY, prompted=1, survive_last=True)

    ratio = travelling / image_cost(VLP_TINY)[1]

    assert 1.4 < ratio < 1.5  # 25 tokens for 17


# stem 7, tail 5; a block 27 with QuickGELU (3 nodes) or 29 with exact GELU (5 nodes)
@pytest.mark.parametrize(
    ("config", "prompted", "survive_last", "nodes"),
    [
        (VIT_B_16, 0, False, 7 + 11 * 27 + 29 + 5),
        (VIT_B_16, 12, False, 338 + 2 + 12 * 4),  # batch shape; Expand and Concat of K and V
        (VIT_B_16, 9, True, 338 + 2 + 8 * 4 + 1 + 2),  # and the ninth set as tokens
        (VLP_TINY, 0, False, 7 + 5 * 29 + 31 + 5),
    ],
)
def test_image_graph_has_no_node_too_many(
    config: ClipConfig, prompted: int, survive_last: bool, nodes: int
) -> None:
    found, _ = image_cost(config, prompted=prompted, survive_last=survive_last)

    assert found == nodes


# embedding, positions, mask 13; rows of end of text 3; a block with mask 28, the last 30; tail 4
@pytest.mark.parametrize(("prompted", "nodes"), [(1, 13 + 3 + 2 * 28 + 30 + 4), (3, 106 + 2 * 3)])
def test_text_graph_has_no_node_too_many(prompted: int, nodes: int) -> None:
    config = make_config()

    model = write_text_graph(config, make_weights(config), prompted_layers=prompted)

    assert node_count(model) == nodes


def test_text_flops_equal_the_arithmetic_by_hand() -> None:
    config = make_config()
    tower, length = config.text, 13
    inputs = {
        "input_ids": (4, length),
        "eot_index": (4,),
        "slots": (4, length),
        "prompts": (2, 0, tower.width),
    }

    found = count_flops(write_text_graph(config, make_weights(config), prompted_layers=2), inputs)

    d = tower.width
    block = 12 * length * d * d + 2 * length * length * d
    last = 2 * length * d * d + 2 * length * d + 10 * d * d
    assert found == 4 * 2 * ((tower.layers - 1) * block + last + d * config.embed_dim)


def test_file_costs_what_the_model_in_memory_costs() -> None:
    config = make_config()
    model = write_image_graph(
        config, make_weights(config), preprocessing=Preprocessing(image_size=32)
    )

    read = ir.from_proto(onnx.load_from_string(to_bytes(model)))

    inputs = image_inputs(config)
    assert count_flops(read, inputs) == count_flops(model, inputs)


def test_unknown_operator_is_not_counted_as_free() -> None:
    graph = GraphBuilder("strange", opset=18)
    x = graph.input("x", ir.DataType.FLOAT, (2, 2))
    graph.output("y", graph.op("Einsum", x), (2, 2))

    with pytest.raises(ValueError, match="no rule to count Einsum"):
        count_flops(graph.model(), {"x": (2, 2)})


def readme_rows() -> list[str]:
    """The cost table of export/README.md, counted anew."""
    rows = []
    for name, config in (("ViT-B/16", VIT_B_16), ("vlp-tiny", VLP_TINY)):
        depth = config.vision.layers
        _, plain = image_cost(config)
        unread = tower_flops(config, every_token_through_last_block=True)
        rows.append(f"| {name}, every token through the last block | | {unread / 1e9:.3f} | ")
        rows[-1] += f"{unread / plain:.4f} |"
        for label, options in (
            ("", {}),
            (f", prompts in all {depth} layers", {"prompted": depth}),
            (", prompts in the first layer, travelling", {"prompted": 1, "survive_last": True}),
        ):
            nodes, flops = image_cost(config, **options)
            row = f"| {name}{label} | {nodes} | {flops / 1e9:.3f} | "
            rows.append(f"{row}{flops / plain:.4f} |")
    return rows


def test_readme_shows_what_is_counted() -> None:
    readme = (Path(__file__).parents[2] / "export" / "README.md").read_text()

    assert "\n".join(readme_rows()) in readme
