"""CoCoOp: prompts that a network shifts for each image; the fast pass is the official loop."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.train.checkpoints import (
    LABELS,
    LOGIT_TOLERANCE,
    NAMES,
    PIXELS,
    build,
    checkpoint_of,
    enlarge,
    gradients,
    inputs,
)
from tests.train.conftest import random_weights
from vlp_deploy.classes.tokenizer import Tokenizer
from vlp_deploy.errors import TrainingError
from vlp_deploy.formats.structures import Conditioned
from vlp_export.exporter import build_bundle
from vlp_train.clip import Clip
from vlp_train.conditioned import ConditionedClip
from vlp_train.methods import method_config
from vlp_train.methods.cocoop import CoCoOp


@pytest.fixture
def cocoop(tiny_clip: Clip) -> CoCoOp:
    """A network whose shift is as large as the tokens it is added to."""
    method = build(tiny_clip, "cocoop", hidden=8)
    assert isinstance(method, CoCoOp)
    enlarge(method, factor=10.0)
    return method


def loop_logits(method: CoCoOp, images: Tensor) -> Tensor:
    """The official forward (B, K), written out: image after image, all 77 positions."""
    clip = method.prompted.clip
    rows = [Tokenizer.default().encode(f"a photo of a {n.replace('_', ' ')}.") for n in NAMES]
    ids = torch.zeros(len(rows), 77, dtype=torch.long)
    for row, tokens in zip(ids, rows, strict=True):
        row[: len(tokens) + 2] = torch.tensor([49406, *tokens, 49407])
    embedded = clip.token_embedding(ids)  # (K, 77, d)
    logits = []
    for image in images:
        shift = method.linear2(F.relu(method.linear1(image)))
        context = (method.context[0] + shift).expand(len(rows), -1, -1)
        x = torch.cat([embedded[:, :1], context, embedded[:, 5:]], dim=1)
        x = x + clip.positional_embedding
        for block in clip.transformer.blocks:
            x = block(x, causal=True)
        ends = clip.ln_final(x[torch.arange(len(rows)), ids.argmax(dim=1)])
        classes = F.normalize(ends @ clip.text_projection, dim=-1)
        logits.append(clip.logit_scale.exp() * classes @ image)
    return torch.stack(logits)


@pytest.mark.parametrize("class_chunk", [0, 1, 2, None])
def test_logits_and_gradients_are_those_of_the_official_loop(
    cocoop: CoCoOp, class_chunk: int | None
) -> None:
    cocoop.prompted.class_chunk = class_chunk
    batch = inputs(cocoop)

    found = gradients(cocoop)
    logits, _ = cocoop.step(batch)

    expected = loop_logits(cocoop, batch.images)
    cocoop.zero_grad()
    F.cross_entropy(expected, LABELS).backward()
    np.testing.assert_allclose(logits.detach(), expected.detach(), rtol=0, atol=LOGIT_TOLERANCE)
    assert set(found) == {name for name, _ in cocoop.named_parameters()}
    for name, parameter in cocoop.named_parameters():
        assert parameter.grad is not None
        size = float(parameter.grad.abs().max())
        assert size > 0
        # float32 sums in another order, at a logit scale of 100
        torch.testing.assert_close(found[name], parameter.grad, rtol=0, atol=1e-4 * size)


def test_plain_reference_is_the_official_loop(cocoop: CoCoOp) -> None:
    prompted, prompts = cocoop.prompted, cocoop.prompts()
    with torch.no_grad():
        images = prompted.image_features(torch.from_numpy(PIXELS), prompts)
        found = prompted.references(prompts, torch.from_numpy(PIXELS))["reference.logits"]

        np.testing.assert_allclose(found, loop_logits(cocoop, images), rtol=0, atol=LOGIT_TOLERANCE)


def test_every_image_has_class_features_of_its_own(cocoop: CoCoOp) -> None:
    prompted = cocoop.prompted
    assert isinstance(prompted, ConditionedClip)
    with torch.no_grad():
        images = inputs(cocoop).images
        together = prompted.classes(cocoop.prompts())(images)  # (B, K, D)
        alone = prompted.classes(cocoop.prompts())(images[2:3])

    cosines = (together[0] * together[1]).sum(dim=-1)
    assert cosines.max() < 0.99
    np.testing.assert_allclose(alone[0], together[2], rtol=0, atol=1e-5)  # no image sees another


def test_start_is_that_of_the_official_code(tiny_clip: Clip) -> None:
    method, again, other = (build(tiny_clip, "cocoop", seed=seed) for seed in (1, 1, 2))
    joint, width = 16, 24

    start = method.prompts()

    assert {name: tuple(value.shape) for name, value in start.items()} == {
        "text.prompts": (1, 4, width),
        "cocoop.linear1.weight": (1, joint),  # D // 16
        "cocoop.linear1.bias": (1,),
        "cocoop.linear2.weight": (width, 1),
        "cocoop.linear2.bias": (width,),
    }
    words = tiny_clip.token_embedding.weight[Tokenizer.default().encode("a photo of a")]
    torch.testing.assert_close(start["text.prompts"][0], words)
    assert start["cocoop.linear1.weight"].abs().max() <= joint**-0.5
    assert start["cocoop.linear2.bias"].abs().max() > joint**-0.5  # its layer has one input
    for name, value in start.items():
        assert torch.equal(value, again.prompts()[name])
    assert not torch.equal(start["cocoop.linear1.weight"], other.prompts()["cocoop.linear1.weight"])


def test_defaults_are_the_official_protocol() -> None:
    training = method_config("cocoop", {}).training(16)

    assert (training.epochs, training.batch_size) == (10, 1)
    assert (training.learning_rate, training.warmup_epochs) == (0.002, 1)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"hidden": 0}, "hidden must be at least 1, got 0"),
        ({"context_tokens": 3}, "does not fit words='a photo of a'"),
        ({"position": "front"}, "no option of cocoop 'position'"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, object], complaint: str) -> None:
    with pytest.raises(TrainingError, match=complaint):
        method_config("cocoop", options)


def test_random_context_of_any_length_is_exported(tiny_clip: Clip) -> None:
    method = build(tiny_clip, "cocoop", words="", context_tokens=1, hidden=3)
    enlarge(method, factor=10.0)
    checkpoint = checkpoint_of(method, "cocoop")

    rows = build_bundle(checkpoint, random_weights(tiny_clip.config)).manifest.parity

    assert max(row.max_logit_difference for row in rows) <= LOGIT_TOLERANCE


def test_export_gives_the_unfolded_logits(cocoop: CoCoOp) -> None:
    checkpoint = checkpoint_of(cocoop, "cocoop")
    assert checkpoint.header.structure == Conditioned()

    contents = build_bundle(checkpoint, random_weights(cocoop.prompted.clip.config))

    rows = contents.manifest.parity
    assert max(row.max_logit_difference for row in rows) <= LOGIT_TOLERANCE
    assert contents.bank.embeddings is None
    assert not contents.manifest.host_head
    assert set(contents.manifest.graphs) == {"image", "class_suffix"}
    # without the network the same words give other answers
    for name in ("cocoop.linear2.weight", "cocoop.linear2.bias"):
        checkpoint.tensors[name][:] = 0
    prompted, prompts = cocoop.prompted, dict(cocoop.prompts())
    prompts |= {name: torch.from_numpy(v) for name, v in checkpoint.tensors.items()}
    with torch.no_grad():
        still = prompted.references(prompts, torch.from_numpy(PIXELS))["reference.logits"]
    assert np.abs(still.numpy() - checkpoint.tensors["reference.logits"]).max() > 1
