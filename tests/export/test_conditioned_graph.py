"""CoCoOp's graph: a text pass for every image and class that says what a loop over images says."""

from functools import cache

import numpy as np
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray

from tests.export.test_flops import CLASSES as COUNTED
from tests.export.test_flops import tower_flops, zero_weights
from tests.export.tiny_clip import (
    CLASSES,
    VOCABULARY,
    Floats,
    make_clip,
    make_config,
    make_pixels,
    make_prompts,
    make_weights,
)
from vlp_deploy.classes.conditioned import MetaNet, suffix_rows
from vlp_deploy.classes.tokenizer import START_OF_TEXT, Tokenizer
from vlp_deploy.errors import CheckpointError
from vlp_deploy.formats.architecture import ClipConfig, Preprocessing, TextLayout
from vlp_deploy.formats.structures import Conditioned
from vlp_export.conditioned_graph import write_conditioned_graph, write_suffix_graph
from vlp_export.flops import count_flops
from vlp_export.folding import start_of_text_rows
from vlp_export.graph import node_count, to_bytes
from vlp_export.session import Session
from vlp_train.conditioned import ConditionedClip

CONFIG = make_config(vocab_size=VOCABULARY)
WEIGHTS = make_weights(CONFIG)
PREPROCESSING = Preprocessing(image_size=32)
TEMPLATE = "a photo of {}."
TOKENS = 3
PROMPTS = make_prompts(1, TOKENS, CONFIG.text.width)
HIDDEN = 5
# float32 rounding of logits, at a scale of 100
TOLERANCE = 2e-4


def make_meta_net(config: ClipConfig, hidden: int) -> MetaNet:
    """A network whose shift is about as large as a prompt."""
    rng, joint, width = np.random.default_rng(7), config.embed_dim, config.text.width
    shapes = ((hidden, joint), (hidden,), (width, hidden), (width,))
    return MetaNet(
        **{
            name: rng.normal(size=shape).astype(np.float32)
            for name, shape in zip(
                ("weight_1", "bias_1", "weight_2", "bias_2"), shapes, strict=True
            )
        }
    )


META_NET = make_meta_net(CONFIG, HIDDEN)


@cache
def sessions(quick_gelu: bool = True) -> tuple[Session, Session]:
    """The image's graph and that of suffixes."""
    config = make_config(vocab_size=VOCABULARY, quick_gelu=quick_gelu)
    image = write_conditioned_graph(
        config, WEIGHTS, preprocessing=PREPROCESSING, prompts=PROMPTS, meta_net=META_NET
    )
    suffix = write_suffix_graph(config, WEIGHTS, prefix=1 + TOKENS)
    return Session(to_bytes(image)), Session(to_bytes(suffix))


def class_inputs(names: tuple[str, ...]) -> dict[str, NDArray[np.generic]]:
    ids, end = suffix_rows(
        [(name,) for name in names],
        templates=(TEMPLATE,),
        layout=TextLayout(tokens=TOKENS),
        tokenizer=Tokenizer.default(),
        context_length=CONFIG.text.context_length,
    )
    return {"class_suffix": sessions()[1]({"input_ids": ids})["class_suffix"], "suffix_end": end}


def graph_logits(pixels: NDArray[np.uint8], names: tuple[str, ...]) -> Floats:
    return sessions()[0]({"image": pixels, **class_inputs(names)})["logits"]


@cache
def unfolded_logits(quick_gelu: bool = True) -> Floats:
    """(8, 5), image after image, in float64."""
    config = make_config(vocab_size=VOCABULARY, quick_gelu=quick_gelu)
    model = ConditionedClip(
        make_clip(config, WEIGHTS),
        CLASSES,
        templates=(TEMPLATE,),
        preprocessing=PREPROCESSING,
        text_layout=TextLayout(tokens=TOKENS),
        structure=Conditioned(),
    )
    tensors = {
        "text.prompts": PROMPTS,
        "cocoop.linear1.weight": META_NET.weight_1,
        "cocoop.linear1.bias": META_NET.bias_1,
        "cocoop.linear2.weight": META_NET.weight_2,
        "cocoop.linear2.bias": META_NET.bias_2,
    }
    prompts = {name: torch.from_numpy(value).double() for name, value in tensors.items()}
    with torch.no_grad():
        normalised = model.normalised(torch.from_numpy(make_pixels())).double()
        features = model.clip.encode_image(normalised)
        images = features / features.norm(dim=-1, keepdim=True)
        classes = model.classes(prompts, plain=True)(images)
        return model.conditioned_logits(images, classes).numpy()


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_graph_gives_the_logits_of_a_loop_over_images(quick_gelu: bool) -> None:
    image, _ = sessions(quick_gelu)

    outputs = image({"image": make_pixels(), **class_inputs(CLASSES)})

    expected = unfolded_logits(quick_gelu)
    assert expected.std() > 5  # logits that could be wrong
    np.testing.assert_allclose(outputs["logits"], expected, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(np.linalg.norm(outputs["embedding"], axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_no_answer_depends_on_its_neighbours(seed: int) -> None:
    """Any images beside it, any classes beside them, in any order and padded to any length."""
    rng, pixels = np.random.default_rng(seed), make_pixels()
    images = rng.integers(0, len(pixels), rng.integers(1, 12))
    classes = rng.permutation(len(CLASSES))[: rng.integers(1, len(CLASSES) + 1)]
    strangers = ("a very long name of a class with many tokens", "x")[: rng.integers(0, 3)]

    found = graph_logits(pixels[images], (*(CLASSES[k] for k in classes), *strangers))

    expected = unfolded_logits()[np.ix_(images, classes)]
    assert found.shape == (len(images), len(classes) + len(strangers))
    np.testing.assert_allclose(found[:, : len(classes)], expected, rtol=0, atol=TOLERANCE)


def test_padding_of_suffixes_is_never_read() -> None:
    inputs, pixels = class_inputs(CLASSES), make_pixels(count=2)
    spoiled = inputs["class_suffix"].copy()
    for row, end in zip(spoiled, inputs["suffix_end"], strict=True):
        row[end + 1 :] = 1e3

    found = sessions()[0]({"image": pixels, **inputs, "class_suffix": spoiled})["logits"]

    np.testing.assert_array_equal(found, sessions()[0]({"image": pixels, **inputs})["logits"])


def test_shift_of_the_network_reaches_the_logits() -> None:
    still = MetaNet(
        weight_1=META_NET.weight_1,
        bias_1=META_NET.bias_1,
        weight_2=np.zeros_like(META_NET.weight_2),
        bias_2=np.zeros_like(META_NET.bias_2),
    )
    model = write_conditioned_graph(
        CONFIG, WEIGHTS, preprocessing=PREPROCESSING, prompts=PROMPTS, meta_net=still
    )

    found = Session(to_bytes(model))({"image": make_pixels(), **class_inputs(CLASSES)})["logits"]

    assert np.abs(found - unfolded_logits()).max() > 5


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_start_of_text_is_the_same_row_in_every_sentence(quick_gelu: bool) -> None:
    config = make_config(vocab_size=VOCABULARY, quick_gelu=quick_gelu)
    clip = make_clip(config, WEIGHTS)
    ids = torch.tensor([[START_OF_TEXT, 5, 6, 7]])
    x = clip.token_embedding(ids) + clip.positional_embedding[:4]

    found = start_of_text_rows(WEIGHTS, config.text, quick_gelu=quick_gelu)

    assert len(found) == config.text.layers
    for block, rows in zip(clip.transformer.blocks, found, strict=True):
        for row, all_rows in zip(rows, block.keys_values(x), strict=True):
            first = all_rows[0, :, 0].flatten().detach().numpy()
            np.testing.assert_allclose(row[0, 0], first, rtol=0, atol=1e-5)
        x = block(x, causal=True)


def test_prompts_of_several_layers_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"text\.prompts is for 2 layers"):
        write_conditioned_graph(
            CONFIG,
            WEIGHTS,
            preprocessing=PREPROCESSING,
            prompts=make_prompts(2, TOKENS, CONFIG.text.width),
            meta_net=META_NET,
        )


def count(config: ClipConfig, model: ir.Model, *, images: int, classes: int, length: int) -> int:
    size = config.vision.image_size
    shapes = {
        "image": (images, 3, size, size),
        "class_suffix": (classes, length, config.text.width),
        "suffix_end": (classes,),
    }
    return count_flops(model, shapes)


def macs_of_a_class(config: ClipConfig, prefix: int, length: int) -> int:
    """One class behind a prefix, by hand: S suffix tokens, p prefix tokens, d width."""
    tower, d = config.text, config.text.width
    token = 4 * d * d + 2 * d * tower.mlp_width
    attention = 2 * (prefix + length) * d
    blocks = (tower.layers - 1) * length * (token + attention)
    last = length * 2 * d * d + 2 * d * d + 2 * d * tower.mlp_width + attention  # R2
    return blocks + last + d * config.embed_dim + config.embed_dim


def macs_of_a_prefix(config: ClipConfig, tokens: int) -> int:
    """The network and the learned tokens of an image; start of text is constant."""
    tower, d = config.text, config.text.width
    token = 4 * d * d + 2 * d * tower.mlp_width + 2 * (1 + tokens) * d
    blocks = (tower.layers - 1) * tokens * token + tokens * 2 * d * d
    return config.embed_dim * HIDDEN + HIDDEN * d + blocks


@pytest.mark.parametrize(("images", "classes", "length"), [(1, 1, 3), (1, 7, 6), (3, 5, 9)])
def test_count_equals_the_arithmetic_by_hand(images: int, classes: int, length: int) -> None:
    model = write_conditioned_graph(
        CONFIG, WEIGHTS, preprocessing=PREPROCESSING, prompts=PROMPTS, meta_net=META_NET
    )

    found = count(CONFIG, model, images=images, classes=classes, length=length)

    head = 2 * CONFIG.embed_dim * COUNTED  # of the plain graph
    image = tower_flops(CONFIG, every_token_through_last_block=False) - head
    text = macs_of_a_prefix(CONFIG, TOKENS) + classes * macs_of_a_class(CONFIG, 1 + TOKENS, length)
    assert found == images * (image + 2 * text)


FULL_SIZE = ClipConfig.from_open_clip(
    {
        "embed_dim": 512,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "patch_size": 32, "width": 64, "layers": 1},
        "text_cfg": {"vocab_size": VOCABULARY, "width": 512, "heads": 8, "layers": 12},
    }
)


# published for CLIP's text tower without R2: GMAC for one class behind 5 prefix tokens
@pytest.mark.parametrize(("length", "published"), [(6, 0.23), (8, 0.30), (12, 0.46)])
def test_a_class_costs_what_is_specified(length: int, published: float) -> None:
    tokens, d = 4, 512
    weights = dict(zero_weights(FULL_SIZE)) | {"logit_scale": np.zeros((), np.float32)}
    model = write_conditioned_graph(
        FULL_SIZE,
        weights,
        preprocessing=Preprocessing(image_size=32),
        prompts=np.zeros((1, tokens, d), np.float32),
        meta_net=make_meta_net(FULL_SIZE, 32),
    )

    both, one = (count(FULL_SIZE, model, images=1, classes=k, length=length) for k in (2, 1))

    macs = (both - one) // 2
    assert macs == macs_of_a_class(FULL_SIZE, 1 + tokens, length)
    saved = (length - 1) * (2 * d * d + 8 * d * d + 2 * (1 + tokens + length) * d)  # R2
    assert (macs + saved) / 1e9 == pytest.approx(published, abs=0.006)
    plain = 2.98e9  # GMAC of 77 tokens
    assert 6.5 < plain / macs < 15


def test_graph_has_no_node_too_many() -> None:
    model = write_conditioned_graph(
        CONFIG, WEIGHTS, preprocessing=PREPROCESSING, prompts=PROMPTS, meta_net=META_NET
    )
    layers = CONFIG.text.layers
    image = 7 + 2 * 27 + 29 + 4  # as in test_flops, without the head
    # a block with mask 28; start of text and suffix joined to what they are before: 4 each; the
    # prefix repeated for every class: 6
    blocks = (layers - 1) * (28 + 4 + 28 + 6 + 2)
    last = (4 + 4) + (30 + 6 + 2)  # of the prefix keys and values only
    around = 5 + 2 + 3 + 2 * 6 + 4 + 2 + 1 + 10  # network, shapes, rows, masks, ends, logits
    assert node_count(model) == image + blocks + last + around
    assert node_count(write_suffix_graph(CONFIG, WEIGHTS, prefix=4)) == 5
