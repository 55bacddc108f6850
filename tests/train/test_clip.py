"""The reference CLIP against open_clip's; its fast text path against the plain one; VPT, naively.

Legend: N text rows, L tokens, d width, J prompted layers, m prompt tokens.
"""

from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from torch import Tensor

from vlp_deploy.classes.prompts import text_rows
from vlp_deploy.classes.tokenizer import Tokenizer
from vlp_deploy.formats.architecture import ClipConfig, TextLayout, VisualLayout
from vlp_train.clip import Clip

NAMES = ["Boeing 737-800", "forget-me-not", "sea_lion", "rose", "U.S. flag", "gas mask x"]
PUNCTUATED = ["foo (bar)", "U.S.", "C++", "rose"]
# float32 keeps 6e-8 of each number; three blocks of re-ordered sums multiply that by about ten
RELATIVE = 2e-6
# What is claimed to be the same computation is compared in float64, which keeps 1e-16: an error of
# the algebra shows, the order of sums does not, not even in gradients of saturated attention.
EXACT = 1e-12


def relative_difference(got: Tensor, expected: Tensor) -> float:
    got, expected = got.detach(), expected.detach()
    return float((got - expected).abs().max() / expected.abs().max())


def rows_of(names: list[str], layout: TextLayout) -> tuple[Tensor, Tensor, Tensor]:
    template = " ".join(["X"] * layout.tokens + ["{}."]) if layout.tokens else "a photo of a {}."
    rows = text_rows(names, template, Tokenizer.default(), layout=layout)
    return torch.from_numpy(rows.ids), torch.from_numpy(rows.eot), torch.from_numpy(rows.slots)


def random_prompts(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_clip_equals_open_clip(open_clip_config: dict[str, Any], quick_gelu: bool) -> None:
    options = {**open_clip_config, "quick_gelu": quick_gelu}
    theirs = open_clip.model.CLIP(**options).eval()
    ours = Clip(ClipConfig.from_open_clip(options))
    ours.load_state_dict(theirs.state_dict())
    pixels = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    ids = open_clip.tokenize(["a photo of a dog.", "an extraordinarily long sentence, really"])

    with torch.no_grad():
        image, text = ours.encode_image(pixels), ours.encode_text(ids)

        assert relative_difference(image, theirs.encode_image(pixels)) < RELATIVE
        assert relative_difference(text, theirs.encode_text(ids)) < RELATIVE


@pytest.mark.parametrize(
    ("layout", "names"),
    [
        (TextLayout(), NAMES + PUNCTUATED),
        (TextLayout(tokens=4), NAMES + PUNCTUATED),
        (TextLayout(tokens=5, position="middle"), NAMES + PUNCTUATED),
        (TextLayout(tokens=4, position="front"), NAMES + PUNCTUATED),
        (TextLayout(tokens=4, position="front", official_span=True), PUNCTUATED),
        (TextLayout(tokens=4), ["rose"]),
    ],
)
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_fast_text_equals_plain_text_in_values_and_gradients(
    tiny_clip: Clip, layout: TextLayout, names: list[str], depth: int
) -> None:
    clip = tiny_clip.double()
    ids, eot, slots = rows_of(names, layout)
    prompts = random_prompts(depth, layout.tokens, 24) if layout.tokens else None
    direction = torch.randn(len(names), 16, generator=torch.Generator().manual_seed(1)).double()

    plain = clip.encode_text(ids, eot, slots, prompts)
    fast = clip.encode_text_fast(ids, eot, slots, prompts)

    assert relative_difference(fast, plain) < EXACT
    if prompts is not None:
        gradients = [torch.autograd.grad((f * direction).sum(), prompts)[0] for f in (fast, plain)]
        assert gradients[1].abs().max() > 1e-3  # there is something to compare
        assert relative_difference(*gradients) < EXACT


@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_fast_text_equals_plain_text_with_a_context_for_every_row(
    tiny_clip: Clip, position: Any
) -> None:
    clip = tiny_clip.double()
    ids, eot, slots = rows_of(NAMES, TextLayout(tokens=3, position=position))
    prompts = random_prompts(1, len(NAMES), 3, 24)

    plain = clip.encode_text(ids, eot, slots, prompts)
    fast = clip.encode_text_fast(ids, eot, slots, prompts)
    gradients = [torch.autograd.grad(f.square().sum(), prompts)[0] for f in (fast, plain)]

    assert relative_difference(fast, plain) < EXACT
    assert relative_difference(*gradients) < EXACT


def test_fast_text_in_float32_equals_plain_text_up_to_rounding(tiny_config: ClipConfig) -> None:
    torch.manual_seed(0)
    clip = Clip(tiny_config)  # the weights a training starts from: nothing saturates
    ids, eot, slots = rows_of(NAMES + PUNCTUATED, TextLayout(tokens=4))
    prompts = random_prompts(1, 4, 24).float().detach().requires_grad_()

    plain = clip.encode_text(ids, eot, slots, prompts)
    fast = clip.encode_text_fast(ids, eot, slots, prompts)
    gradients = [torch.autograd.grad(f.square().sum(), prompts)[0] for f in (fast, plain)]

    assert relative_difference(fast, plain) < RELATIVE
    assert relative_difference(*gradients) < RELATIVE


def test_a_context_for_every_row_equals_rows_encoded_alone(tiny_clip: Clip) -> None:
    clip = tiny_clip.double()
    ids, eot, slots = rows_of(NAMES, TextLayout(tokens=3))
    prompts = random_prompts(1, len(NAMES), 3, 24)

    together = clip.encode_text(ids, eot, slots, prompts)
    alone = torch.cat(
        [clip.encode_text(ids[[i]], eot[[i]], slots[[i]], prompts[:, i]) for i in range(len(NAMES))]
    )

    assert relative_difference(together, alone) < EXACT


def test_tokens_after_the_end_of_text_change_nothing(tiny_clip: Clip) -> None:
    ids, eot, _ = rows_of(NAMES, TextLayout())
    padded = torch.nn.functional.pad(ids, (0, 77 - ids.shape[1]), value=1234)

    with torch.no_grad():
        difference = relative_difference(
            tiny_clip.encode_text(padded, eot), tiny_clip.encode_text_fast(padded, eot)
        )

    assert difference < RELATIVE


def naive_vpt(clip: Clip, pixels: Tensor, prompts: Tensor, layout: VisualLayout) -> Tensor:
    """VPT written down literally: tokens image by image, lists of rows instead of slices."""
    tower, depth = clip.visual, len(prompts)
    features = []
    for image in pixels:
        patches = tower.conv1(image[None])[0].flatten(1).T
        tokens = [tower.class_embedding, *patches]
        tokens = [t + p for t, p in zip(tokens, tower.positional_embedding, strict=True)]
        if layout.pre_ln:
            tokens = [tower.ln_pre(t) for t in [*tokens, *prompts[0]]]
        else:
            tokens = [*(tower.ln_pre(t) for t in tokens), *prompts[0]]
        count = len(tower.positional_embedding)
        for index, block in enumerate(tower.transformer.blocks):
            if 0 < index < depth:
                tokens = [*tokens[:count], *prompts[index]]
            x = torch.stack(list(tokens))
            q, k, v = (
                (block.attn.in_proj_weight @ block.ln_1(x).T)
                .T.add(block.attn.in_proj_bias)
                .split(x.shape[1], dim=1)
            )
            heads = []
            for head in range(block.attn.heads):
                width = x.shape[1] // block.attn.heads
                part = slice(head * width, (head + 1) * width)
                weights = (q[:, part] @ k[:, part].T / width**0.5).softmax(dim=1)
                heads.append(weights @ v[:, part])
            x = x + block.attn.out_proj(torch.cat(heads, dim=1))
            tokens = list(x + block.mlp(block.ln_2(x)))
            if index == depth - 1 and not layout.survive_last:
                tokens = tokens[:count]
        features.append(tower.ln_post(tokens[0]) @ tower.proj)
    return torch.stack(features)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("pre_ln", [True, False])
@pytest.mark.parametrize("survive_last", [True, False])
def test_visual_prompts_enter_as_a_naive_implementation_lets_them(
    tiny_clip: Clip, depth: int, pre_ln: bool, survive_last: bool
) -> None:
    clip = tiny_clip.double()
    layout = VisualLayout(tokens=5, pre_ln=pre_ln, survive_last=survive_last)
    prompts = random_prompts(depth, 5, 32)
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)).double()

    features = clip.encode_image(pixels, prompts, layout)
    expected = naive_vpt(clip, pixels, prompts, layout)

    assert relative_difference(features, expected) < EXACT
    got, want = (torch.autograd.grad(f.square().sum(), prompts)[0] for f in (features, expected))
    assert relative_difference(got, want) < EXACT


def test_layout_flags_change_the_features(tiny_clip: Clip) -> None:
    """The four layouts of a tower with free layers behind the prompts are four different models."""
    clip = tiny_clip.double()
    prompts = random_prompts(2, 5, 32).detach()
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)).double()

    features = [
        clip.encode_image(
            pixels, prompts, VisualLayout(tokens=5, pre_ln=pre_ln, survive_last=survive_last)
        )
        for pre_ln in (True, False)
        for survive_last in (True, False)
    ]

    differences = [
        relative_difference(features[i], features[j]) for i in range(4) for j in range(i)
    ]
    assert min(differences) > 1e-2


@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_text_is_read_at_its_end_and_class_tokens_stay_whole(position: Any) -> None:
    layout = TextLayout(tokens=4, position=position)
    ids, eot, slots = rows_of(NAMES, layout)
    tokenizer = Tokenizer.default()

    for name, row, end, slot in zip(NAMES, ids, eot, slots, strict=True):
        placeholders = row.clone()
        placeholders[slot >= 0] = -1
        spelled = tokenizer.encode(name.replace("_", " "))
        text = placeholders[: end + 1].tolist()
        body = [token for token in text[1:-1] if token != -1]
        assert row[end] == row.max() == 49407
        assert sorted(slot[slot >= 0].tolist()) == [0, 1, 2, 3]
        assert body == [*spelled, *tokenizer.encode(".")]
        start = {"end": 5, "middle": 3, "front": 1}[position]
        assert text[start : start + len(spelled)] == spelled


def test_names_that_end_in_punctuation_keep_the_merged_full_stop() -> None:
    ids, eot, _ = rows_of(PUNCTUATED, TextLayout(tokens=4))
    whole = [Tokenizer.default().encode(f"{name}.") for name in PUNCTUATED]

    found = [row[5:end].tolist() for row, end in zip(ids, eot, strict=True)]

    assert found == whole
    assert np.array_equal(eot.numpy(), [5 + len(row) for row in whole])
