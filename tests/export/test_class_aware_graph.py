"""DPT's graph: what it costs, what it depends on, and what it refuses."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.export.test_flops import VIT_B_16, VLP_TINY, image_cost, tower_flops, zero_weights
from tests.export.tiny_clip import make_config, make_pixels, make_weights
from vlp_deploy.errors import CheckpointError
from vlp_deploy.formats.architecture import ClipConfig, Preprocessing
from vlp_export.class_aware_graph import write_class_aware_graph
from vlp_export.flops import count_flops
from vlp_export.graph import to_bytes
from vlp_export.session import Session

Floats = NDArray[np.float32]

CLASSES, VISUAL_TOKENS, LEARNED_KEYS, QUERY_WIDTH = 100, 10, 10, 32
# float32 rounding at a logit scale of 100, between two orders of summation
TOLERANCE = 2e-4


def random_tensors(config: ClipConfig, layers: int, *, seed: int = 0) -> dict[str, Floats]:
    """What a checkpoint holds for the graph, every part large enough to matter."""
    width, plain = config.vision.width, config.vision.layers - layers
    shapes = {
        "visual.prompts": (plain, VISUAL_TOKENS, width),
        "cavpt.context": (layers, LEARNED_KEYS, width),
        "cavpt.query.weight": (layers, QUERY_WIDTH, width),
        "cavpt.key.weight": (layers, QUERY_WIDTH, width),
        "cavpt.value.weight": (layers, width, width),
        "cavpt.norm.weight": (layers, width),
        "cavpt.norm.bias": (layers, width),
    }
    draw = np.random.default_rng(seed).normal
    tensors = {name: draw(size=shape).astype(np.float32) for name, shape in shapes.items()}
    for name in ("query", "key", "value"):
        tensors[f"cavpt.{name}.weight"] *= np.float32(2 * width**-0.5)
    if not plain:
        del tensors["visual.prompts"]
    return tensors


def class_inputs(config: ClipConfig, layers: int, classes: int) -> dict[str, Floats]:
    """Random classes; those of the selector are others than those of the head."""
    draw, joint = np.random.default_rng(1).normal, config.embed_dim
    head, selector = draw(size=(2, joint, classes))
    return {
        "class_matrix": (100 * head / np.linalg.norm(head, axis=0)).astype(np.float32),
        "class_bias": draw(size=classes).astype(np.float32),
        "class_bank": draw(size=(layers, classes, config.vision.width)).astype(np.float32),
        "selector_matrix": (100 * selector / np.linalg.norm(selector, axis=0)).astype(np.float32),
    }


def session(layers: int, selected: int | None) -> Session:
    config = make_config()
    model = write_class_aware_graph(
        config,
        make_weights(config),
        preprocessing=Preprocessing(image_size=32),
        tensors=random_tensors(config, layers),
        selected=selected,
    )
    return Session(to_bytes(model))


def logits_of(run: Session, pixels: NDArray[np.uint8], inputs: Mapping[str, Floats]) -> Floats:
    logits: Floats = run({"image": pixels, **inputs})["logits"]
    return logits


def without_selector(inputs: Mapping[str, Floats]) -> dict[str, Floats]:
    return {name: value for name, value in inputs.items() if name != "selector_matrix"}


def permuted(inputs: Mapping[str, Floats], order: NDArray[Any]) -> dict[str, Floats]:
    """The same classes in another order."""
    axes = {"class_matrix": 1, "class_bias": 0, "class_bank": 1, "selector_matrix": 1}
    return {name: value.take(order, axis=axes[name]) for name, value in inputs.items()}


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_no_answer_depends_on_the_other_images(layers: int) -> None:
    run, inputs = session(layers, 3), class_inputs(make_config(), layers, 7)
    pixels = make_pixels(count=9)
    alone = np.concatenate([logits_of(run, pixel[None], inputs) for pixel in pixels])

    for seed in range(4):
        order = np.random.default_rng(seed).permutation(9)[: 2 + 2 * seed]
        together = logits_of(run, pixels[order], inputs)
        np.testing.assert_allclose(together, alone[order], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("layers", [1, 3])
def test_order_of_classes_changes_their_order_only(layers: int) -> None:
    run, inputs = session(layers, 3), class_inputs(make_config(), layers, 7)
    pixels, order = make_pixels(), np.random.default_rng(5).permutation(7)
    logits = logits_of(run, pixels, inputs)

    again = logits_of(run, pixels, permuted(inputs, order))

    np.testing.assert_allclose(again, logits[:, order], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("classes", [1, 3, 4])
def test_selecting_all_classes_is_having_no_selector(classes: int) -> None:
    """Also where fewer classes are given than would be selected."""
    inputs, pixels = class_inputs(make_config(), 2, classes), make_pixels()

    selecting = logits_of(session(2, 4), pixels, inputs)
    small = logits_of(session(2, None), pixels, without_selector(inputs))

    np.testing.assert_allclose(selecting, small, rtol=0, atol=TOLERANCE)


def test_images_look_for_their_own_classes_and_no_others() -> None:
    """What a class makes of the image matters where it is selected."""
    run, inputs = session(1, 2), class_inputs(make_config(), 1, 6)
    pixels = make_pixels()
    outputs = run({"image": pixels, **inputs})
    chosen = np.argsort(-outputs["selector_logits"])[:, :2]
    counts = np.bincount(chosen.ravel(), minlength=6)
    label = int(np.abs(counts - len(pixels) / 2).argmin())  # of some images, not of all
    other = {**inputs, "class_bank": inputs["class_bank"].copy()}
    other["class_bank"][:, label] += 1

    change = np.abs(logits_of(run, pixels, other) - outputs["logits"]).max(axis=1)

    looks = (chosen == label).any(axis=1)
    assert looks.any()
    assert not looks.all()
    assert (change[looks] > 0.1).all()
    assert (change[~looks] == 0).all()


@pytest.mark.parametrize("count", [2, 4])
def test_tensors_for_another_depth_are_refused(count: int) -> None:
    config = make_config()
    tensors = random_tensors(config, 1)
    tensors["visual.prompts"] = np.zeros((count - 1, 1, config.vision.width), np.float32)

    with pytest.raises(CheckpointError, match="are not the image tower's 3"):
        write(config, tensors)


def test_missing_and_misshapen_tensors_are_named() -> None:
    config = make_config()
    tensors = random_tensors(config, 1)

    with pytest.raises(CheckpointError, match=r"cavpt\.norm\.bias is missing"):
        write(config, {name: t for name, t in tensors.items() if name != "cavpt.norm.bias"})
    with pytest.raises(CheckpointError, match=r"cavpt\.key\.weight is \(1, 32, 8\)"):
        write(config, tensors | {"cavpt.key.weight": np.zeros((1, 32, 8), np.float32)})


def write(config: ClipConfig, tensors: Mapping[str, Floats]) -> None:
    write_class_aware_graph(
        config,
        make_weights(config),
        preprocessing=Preprocessing(image_size=32),
        tensors=tensors,
        selected=2,
    )


def cost(config: ClipConfig, *, layers: int, selected: int | None, classes: int, batch: int) -> int:
    size, inputs = config.vision.image_size, class_inputs(config, layers, classes)
    model = write_class_aware_graph(
        config,
        zero_weights(config),
        preprocessing=Preprocessing(image_size=size),
        tensors=random_tensors(config, layers),
        selected=selected,
    )
    shapes = {name: value.shape for name, value in inputs.items()}
    return count_flops(model, {"image": (batch, 3, size, size), **shapes})


def by_hand(config: ClipConfig, *, layers: int, classes: int, c: int, selects: bool) -> int:
    """The arithmetic of one image; t tokens, d width, c class-aware prompts."""
    tower, joint = config.vision, config.embed_dim
    t, d, hidden = 1 + tower.patches, tower.width, tower.mlp_width
    block = 4 * t * d * d + 2 * t * t * d + 2 * t * d * hidden
    last = 2 * t * d * d + 2 * t * d + 2 * d * d + 2 * d * hidden
    patches = tower.patches * d * 3 * tower.patch_size**2
    seen = t + LEARNED_KEYS
    prompts = (
        c * QUERY_WIDTH * d + seen * QUERY_WIDTH * d + c * seen * (QUERY_WIDTH + d) + c * d * d
    )
    # in blocks before the last the packed projection makes a query of prompts, too
    middle = prompts + 3 * c * d * d + 2 * t * c * d
    end = prompts + 2 * c * d * d + 2 * c * d
    plain = (tower.layers - layers) * 2 * t * VISUAL_TOKENS * d
    towers = (tower.layers - 1) * block + last
    prompted = towers + plain + (layers - 1) * middle + end
    selector = towers + joint * (d + classes) - 3 * t * d * d if selects else 0
    return 2 * (patches + prompted + joint * (d + classes) + selector)


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize(("selected", "classes"), [(10, 100), (10, 7), (None, 10)])
def test_cost_is_the_specified_arithmetic(layers: int, selected: int | None, classes: int) -> None:
    found = cost(VLP_TINY, layers=layers, selected=selected, classes=classes, batch=1)

    c = min(selected or classes, classes)
    hand = by_hand(VLP_TINY, layers=layers, classes=classes, c=c, selects=selected is not None)
    assert found == hand


def test_vit_b_16_costs_at_most_what_was_promised() -> None:
    """With the official settings, over the same tower without prompts and the same classes."""
    plain = tower_flops(VIT_B_16, every_token_through_last_block=False)

    selecting = cost(VIT_B_16, layers=1, selected=10, classes=CLASSES, batch=1)
    small = cost(VIT_B_16, layers=1, selected=None, classes=10, batch=1)

    assert plain == image_cost(VIT_B_16)[1]
    assert selecting == by_hand(VIT_B_16, layers=1, classes=CLASSES, c=10, selects=True)
    assert small == by_hand(VIT_B_16, layers=1, classes=10, c=10, selects=False)
    assert selecting / plain == pytest.approx(1.9752, abs=5e-5)
    assert small / plain == pytest.approx(1.0035, abs=5e-5)


def test_selecting_costs_the_same_for_every_image() -> None:
    one, five = (cost(VLP_TINY, layers=2, selected=3, classes=20, batch=batch) for batch in (1, 5))

    assert five == 5 * one
