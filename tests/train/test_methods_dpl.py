"""DPL, the reconstruction: the identities that its modes rest on, and its export."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.train.checkpoints import (
    LOGIT_TOLERANCE,
    NAMES,
    PIXELS,
    build,
    checkpoint_of,
    enlarge,
    gradients,
)
from tests.train.conftest import random_weights
from vlp_deploy.formats.architecture import VisualLayout
from vlp_export.exporter import build_bundle
from vlp_train.clip import Attention, Clip
from vlp_train.forward import prompted_clip
from vlp_train.methods.dpl import Dpl, DplConfig
from vlp_train.prompted import Prompts

IMAGES = torch.from_numpy(PIXELS)
ROUNDING = 2e-6  # of an embedding of length 1, in float32
MODES = ("exact", "bias", "fixed")


def make(clip: Clip, **options: Any) -> Dpl:
    """Prompts as large as the tokens, gates and conditions that do something."""
    method = build(clip, "dpl", **options)
    assert isinstance(method, Dpl)
    enlarge(method)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in method.named_parameters():
            if name.endswith("gates"):
                parameter.copy_(torch.randn(parameter.shape, generator=random))
            if name == "up":
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=random))
    return method


def answers(method: Dpl, more: Prompts | None = None, *, plain: bool = False) -> tuple[Tensor, ...]:
    """Image and class embeddings."""
    prompts = {**method.prompts(), **(more or {})}
    with torch.no_grad():
        return (
            method.prompted.image_features(IMAGES, prompts),
            method.prompted.class_features(prompts, plain=plain),
        )


def zero_shot(method: Dpl) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return method.prompted.image_features(IMAGES, {}), method.prompted.class_features({})


@pytest.mark.parametrize("conditioned", [False, True])
@pytest.mark.parametrize("chunk", [1, 2])
def test_class_chunks_change_nothing(tiny_clip: Clip, chunk: int, conditioned: bool) -> None:
    """Features and gradients, and no more rows at once than asked for."""
    found = []
    for count in (0, chunk):
        method = make(tiny_clip, condition_rank=2 if conditioned else 0)
        method.prompted.class_chunk = count
        features = method.prompted.class_features(method.prompts())
        (features * torch.linspace(-1, 1, features.numel()).view_as(features)).sum().backward()
        learned = [p.grad for p in method.parameters() if p.grad is not None]
        found.append((features.detach(), torch.cat([grad.flatten() for grad in learned])))

    (features, gradient), (chunked, its_gradient) = found
    assert (features - chunked).abs().max() < ROUNDING
    assert (gradient - its_gradient).abs().max() < 1e-5 * gradient.abs().max()


def test_classes_are_read_a_chunk_at_a_time(
    tiny_clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, sizes, decoupled = make(tiny_clip), [], Attention.decoupled

    def counted(self: Attention, tokens: Tensor, *others: Any, **more: Any) -> Tensor:
        sizes.append(len(tokens))
        return decoupled(self, tokens, *others, **more)

    monkeypatch.setattr(Attention, "decoupled", counted)
    method.prompted.class_chunk = 2
    with torch.no_grad():
        method.prompted.class_features(method.prompts())

    assert max(sizes) == 2


def attention() -> tuple[Attention, Tensor, Tensor]:
    """One with 2 heads, tokens (2, 5, 8) and prompts (1, 3, 8)."""
    torch.manual_seed(0)
    layer = Attention(8, 2)
    torch.nn.init.normal_(layer.in_proj_weight, std=1.0)
    torch.nn.init.normal_(layer.in_proj_bias)
    return layer, torch.randn(2, 5, 8), torch.randn(1, 3, 8)


def test_decoupled_without_a_gate_is_attention_over_both() -> None:
    layer, tokens, prompts = attention()

    with torch.no_grad():
        beside = layer.keys_values(prompts)
        found = layer.decoupled(tokens, beside, None, fixed=False, causal=False)
        expected = layer(torch.cat([tokens, prompts.expand(2, -1, -1)], dim=1), causal=False)

    assert (found - expected[:, :5]).abs().max() < 1e-5


def test_a_bias_on_scores_is_a_factor_on_weights() -> None:
    layer, tokens, prompts = attention()
    gate = torch.tensor([0.7, -1.3])

    with torch.no_grad():
        beside = layer.keys_values(prompts)
        found = layer.decoupled(tokens, beside, gate.view(1, 2, 1, 1), fixed=False, causal=True)
        query, keys, values = layer._project(tokens)
        keys, values = (
            torch.cat([own, more.expand(2, -1, -1, -1)], dim=2)
            for own, more in zip((keys, values), beside, strict=True)
        )
        weights = (query @ keys.transpose(2, 3) / 2).exp()  # √4 a head
        weights[..., :5] *= torch.ones(5, 5).tril()
        weights[..., 5:] *= gate.exp().view(1, 2, 1, 1)
        weights /= weights.sum(dim=-1, keepdim=True)
        expected = layer._merge(weights @ values)

    assert (found - expected).abs().max() < 1e-5


def test_exact_images_are_those_of_deep_prompts_that_are_dropped(tiny_clip: Clip) -> None:
    method = make(tiny_clip, mode="exact", depth=2)
    layout = VisualLayout(tokens=8, pre_ln=False, survive_last=False)

    with torch.no_grad():
        pixels = method.prompted.normalised(IMAGES)
        expected = tiny_clip.encode_image(pixels, method.visual, layout)
        expected = torch.nn.functional.normalize(expected, dim=-1)

    assert (answers(method)[0] - expected).abs().max() < ROUNDING
    assert (zero_shot(method)[0] - expected).abs().max() > 0.01


def test_a_bias_of_zero_is_exact(tiny_clip: Clip) -> None:
    method = make(tiny_clip)
    gates = {f"dpl.{tower}_gates": torch.zeros(3, 2) for tower in ("text", "visual")}
    exact = make(tiny_clip, mode="exact")

    for found, expected in zip(answers(method, gates), answers(exact), strict=True):
        assert (found - expected).abs().max() < ROUNDING


@pytest.mark.parametrize("mode", ["bias", "fixed"])
@pytest.mark.parametrize("rank", [0, 2])
def test_with_a_share_of_nothing_all_is_zero_shot(tiny_clip: Clip, mode: str, rank: int) -> None:
    method = make(tiny_clip, mode=mode, condition_rank=rank)
    expected = zero_shot(method)

    distances = []
    for gate in (-2.0, -8.0, -60.0):
        gates = {f"dpl.{tower}_gates": torch.full((3, 2), gate) for tower in ("text", "visual")}
        found = answers(method, gates)
        distances.append(
            max(
                float((one - other).abs().max()) for one, other in zip(found, expected, strict=True)
            )
        )

    assert distances[0] > distances[1] > distances[2]
    assert distances[2] < ROUNDING


def test_a_condition_that_has_learned_nothing_changes_nothing(tiny_clip: Clip) -> None:
    plain, conditioned = (build(tiny_clip, "dpl", condition_rank=rank) for rank in (0, 4))

    assert isinstance(plain, Dpl)
    assert isinstance(conditioned, Dpl)
    for one, other in zip(answers(plain), answers(conditioned), strict=True):
        assert (one - other).abs().max() < ROUNDING  # some processors add in another order


@pytest.mark.parametrize("rank", [0, 2])
def test_short_rows_give_what_all_positions_give(tiny_clip: Clip, rank: int) -> None:
    method = make(tiny_clip, condition_rank=rank)

    assert (answers(method, plain=True)[1] - answers(method)[1]).abs().max() < ROUNDING


@pytest.mark.parametrize(("mode", "rank"), [("bias", 0), ("exact", 0), ("fixed", 0), ("bias", 2)])
def test_every_prompt_and_gate_learns(tiny_clip: Clip, mode: str, rank: int) -> None:
    method = make(tiny_clip, mode=mode, condition_rank=rank)

    found = gradients(method)

    gates = {"text_gates", "visual_gates"} if mode != "exact" else set()
    assert found.keys() == {"text", "visual"} | gates | ({"down", "up"} if rank else set())
    for name, gradient in found.items():
        assert (gradient.flatten(1).abs().amax(dim=1) > 0).all(), name


def test_gates_start_where_prompts_count_as_they_are(tiny_clip: Clip) -> None:
    starts = {mode: build(tiny_clip, "dpl", mode=mode).state_dict() for mode in MODES}

    assert starts["bias"]["visual_gates"].equal(torch.zeros(3, 2))
    assert "visual_gates" not in starts["exact"]
    assert starts["fixed"]["text_gates"].sigmoid().max() < 0.02


def test_towers_learn_at_rates_of_their_own(tiny_clip: Clip) -> None:
    method = build(tiny_clip, "dpl")
    visual, others = method.parameter_groups()

    assert [id(p) for p in visual["params"]] == [id(method.visual)]
    assert others["rate_factor"] * DplConfig().training(4).learning_rate == pytest.approx(0.002)
    assert len(others["params"]) == 3


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize(("mode", "rank"), [("bias", 0), ("exact", 0), ("fixed", 0), ("bias", 2)])
def test_the_export_equals_the_unfolded_forward_pass(
    tiny_clip: Clip, mode: str, rank: int, depth: int
) -> None:
    method = make(tiny_clip, mode=mode, condition_rank=rank, depth=depth)
    checkpoint = checkpoint_of(method, "dpl")

    contents = build_bundle(checkpoint, random_weights(tiny_clip.config))

    assert max(row.max_logit_difference for row in contents.manifest.parity) <= LOGIT_TOLERANCE
    images, classes = zero_shot(method)
    unprompted = method.prompted.logits(images, classes).numpy()
    assert np.abs(checkpoint.tensors["reference.logits"] - unprompted).max() > 1
    assert contents.manifest.text_layout.tokens == 0


@pytest.mark.parametrize("rank", [0, 2])
def test_new_classes_are_embedded_as_the_unfolded_model_does(tiny_clip: Clip, rank: int) -> None:
    method = make(tiny_clip, condition_rank=rank)
    checkpoint = checkpoint_of(method, "dpl")
    names = ("a very long name of a thing", "owl", NAMES[0])

    contents = build_bundle(
        checkpoint, random_weights(tiny_clip.config), names=[(name,) for name in names]
    )

    with torch.no_grad():
        prompted = prompted_clip(checkpoint.header, tiny_clip, names)
        expected = prompted.class_features(method.prompts(), plain=True).numpy()
    assert np.abs(contents.bank.embeddings - expected).max() < ROUNDING
