"""DPT: what learns, from which losses, at which rates; and that its export is its forward pass."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.train.checkpoints import (
    LABELS,
    LOGIT_TOLERANCE,
    NAMES,
    PIXELS,
    build,
    checkpoint_of,
    gradients,
    inputs,
)
from tests.train.conftest import random_weights
from vlp_deploy.data.dataset import load_dataset
from vlp_deploy.errors import ClassListError, ParityError, TrainingError
from vlp_deploy.formats.architecture import Preprocessing, VisualLayout
from vlp_deploy.formats.bundle import BundleContents
from vlp_deploy.formats.checkpoint import PromptCheckpoint
from vlp_deploy.formats.structures import ClassAware
from vlp_export.exporter import build_bundle
from vlp_train.clip import Clip
from vlp_train.methods.base import Task, Training
from vlp_train.methods.dpt import Dpt, DptConfig
from vlp_train.reference import reference_pixels, references


def make(clip: Clip, **options: Any) -> Dpt:
    """A method whose prompts are as large as the tokens around them."""
    method = build(clip, "dpt", **{"text_tokens": 4, "visual_tokens": 3, "selected": 2, **options})
    assert isinstance(method, Dpt)
    with torch.no_grad():
        for name in ("text", "visual", "cavpt.context"):
            if name in dict(method.named_parameters()):
                method.get_parameter(name).mul_(30)
        # meta networks whose prompts are as large as tokens, and classes that look at patches
        method.cavpt["meta_weight"].mul_(10)
        method.cavpt["query_weight"].mul_(5)
        method.cavpt["key_weight"].mul_(5)
    return method


def loss_of(method: Dpt, *, epoch: int) -> float:
    return method.step(inputs(method, epoch=epoch))[1].item()


def export(method: Dpt) -> BundleContents:
    """Proven by the gate; the tolerance here is narrower."""
    checkpoint = checkpoint_of(method, "dpt")
    contents = build_bundle(checkpoint, random_weights(checkpoint.header.backbone.config))
    assert len(contents.golden.pixels) == 8  # nothing was left out
    assert max(row.max_logit_difference for row in contents.manifest.parity) <= LOGIT_TOLERANCE
    return contents


def test_starts_and_shapes_are_the_official_ones(tiny_clip: Clip) -> None:
    method = build(tiny_clip, "dpt")
    shapes = {name: tuple(value.shape) for name, value in method.prompts().items()}

    assert shapes == {
        "text.prompts": (1, 16, 24),
        "visual.prompts": (2, 10, 32),
        "cavpt.meta.weight": (1, 32, 16),
        "cavpt.meta.bias": (1, 32),
        "cavpt.query.weight": (1, 32, 32),
        "cavpt.key.weight": (1, 32, 32),
        "cavpt.value.weight": (1, 32, 32),
        "cavpt.context": (1, 10, 32),
        "cavpt.norm.weight": (1, 32),
        "cavpt.norm.bias": (1, 32),
    }
    for name in ("text.prompts", "visual.prompts", "cavpt.context"):
        assert float(method.prompts()[name].detach().std()) == pytest.approx(0.02, rel=0.15)
    bound = 16**-0.5  # of a linear layer of 16 inputs
    assert 0.9 * bound < float(method.prompts()["cavpt.meta.weight"].detach().abs().max()) <= bound
    assert method.prompted.structure == ClassAware(
        selected=10, selector_template="a photo of a {}."
    )
    assert method.prompted.visual_layout == VisualLayout(tokens=10, pre_ln=False)


def test_what_serves_training_only_is_resumed_but_not_exported(tiny_clip: Clip) -> None:
    method = build(tiny_clip, "dpt")

    assert tuple(method.state_dict()["auxiliary.classifier_weight"].shape) == (1, len(NAMES), 32)
    assert not any("classifier" in name for name in method.prompts())


def test_everything_learns_and_the_clip_does_not(tiny_clip: Clip) -> None:
    found = gradients(make(tiny_clip, selected=3, class_aware_layers=2))

    assert {name for name, grad in found.items() if float(grad.abs().max()) > 0} == {
        "text",
        "visual",
        *(f"cavpt.{part}" for part in DPT_PARTS),
        *(f"auxiliary.{part}" for part in ("classifier_weight", "norm_weight", "norm_bias")),
    }


DPT_PARTS = (
    *("meta_weight", "meta_bias", "query_weight", "key_weight", "value_weight"),
    *("context", "norm_weight", "norm_bias"),
)


def test_visual_prompts_learn_nothing_through_the_keys_of_class_aware_layers(
    tiny_clip: Clip,
) -> None:
    """The keys of the class-aware attention are the image's tokens, without gradient."""
    method = make(tiny_clip)
    prompts = method.prompts()
    classes = method.prompted.classes(prompts)
    pixels = torch.from_numpy(PIXELS[:2])
    selection = method.prompted.select(pixels, classes)

    seen = method.prompted.see(pixels, prompts, classes, selection.classes)
    seen.prompts[0][..., 0].sum().backward()  # of all features the normalised sum is constant

    assert method.visual.grad is None
    assert float(method.text.grad.abs().max()) > 0  # type: ignore[union-attr]


def test_guided_epochs_learn_three_answers_and_later_ones_their_own(tiny_clip: Clip) -> None:
    method = make(tiny_clip, alpha=0.0, guidance_epochs=2)
    method.start(None, Training(epochs=4, learning_rate=0.1, batch_size=4))  # type: ignore[arg-type]
    prompts, pixels = method.prompts(), torch.from_numpy(PIXELS[:4])
    prompted = method.prompted
    classes = prompted.classes(prompts)
    selection = prompted.select(pixels, classes)
    image = prompted.see(pixels, prompts, classes, selection.classes).image_features
    own, by_text, by_image = (
        F.cross_entropy(prompted.logits(images, names), LABELS).item()
        for images, names in (
            (image, classes.embeddings),
            (selection.image_features, classes.embeddings),
            (image, classes.selector),
        )
    )

    assert loss_of(method, epoch=1) == pytest.approx(by_text + by_image + 0.1 * own, rel=1e-5)
    assert loss_of(method, epoch=2) == pytest.approx(own, rel=1e-5)


@pytest.mark.parametrize(("epochs", "guided"), [(100, 30), (60, 30), (10, 5), (1, 0)])
def test_guidance_takes_the_official_epochs_or_half_of_few(epochs: int, guided: int) -> None:
    assert DptConfig().guided(epochs) == guided
    assert DptConfig(guidance_epochs=7).guided(epochs) == 7


def test_auxiliary_loss_is_of_true_classes_that_were_selected(tiny_clip: Clip) -> None:
    method = make(tiny_clip)
    found = torch.randn(4, 2, 32, generator=torch.Generator().manual_seed(0))
    selected = torch.tensor([[0, 1], [0, 2], [1, 2], [1, 2]])  # labels are 0, 1, 2, 0

    loss = method.auxiliary_loss([found], selected, LABELS)

    prompts = torch.stack([found[0, 0], found[2, 1]])  # of images 0 and 2
    scores = F.layer_norm(prompts, (32,)) @ method.auxiliary["classifier_weight"][0].T
    expected = F.cross_entropy(scores, torch.tensor([0, 2]))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_batch_without_any_true_class_has_a_finite_loss(tiny_clip: Clip) -> None:
    method = make(tiny_clip)
    found = torch.randn(4, 2, 32, requires_grad=True)
    never = (LABELS[:, None] + torch.tensor([1, 2])) % 3

    loss = method.auxiliary_loss([found], never, LABELS)
    loss.backward()

    assert loss.item() == 0
    assert torch.isfinite(found.grad).all()  # type: ignore[arg-type]


def test_text_learns_at_a_fifth_of_the_rate_and_warms_up_for_an_epoch(tiny_clip: Clip) -> None:
    text, others = build(tiny_clip, "dpt").parameter_groups()

    assert [tuple(p.shape) for p in text["params"]] == [(1, 16, 24)]
    assert (text["rate_factor"], text["warmup_epochs"]) == (0.2, 1)  # 0.002 of 0.01
    assert len(others["params"]) == 1 + 8 + 3
    assert DptConfig().training(16) == Training(
        epochs=100, learning_rate=0.01, batch_size=32, warmup_epochs=10
    )
    assert DptConfig().training(1).epochs == 60


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("selected", [1, 2, 3, 10])
def test_the_export_equals_the_unfolded_forward_pass(
    tiny_clip: Clip, layers: int, selected: int
) -> None:
    """Before, at and beyond the number of classes; all layers class-aware, some, the last one."""
    method = make(tiny_clip, class_aware_layers=layers, selected=selected)

    contents = export(method)

    graph = "image_small" if selected >= len(NAMES) else "image"
    assert contents.manifest.class_graph == graph
    assert set(contents.manifest.graphs) == {graph, "text"}
    assert ("visual.prompts" in contents.prompts) == (layers < 3)


def test_selection_matters(tiny_clip: Clip) -> None:
    one, all_three = (make(tiny_clip, selected=count) for count in (1, 3))
    logits = [
        references(m.prompted, m.prompts(), PIXELS)["reference.logits"] for m in (one, all_three)
    ]

    assert np.abs(logits[0] - logits[1]).max() > 0.1


def test_own_contexts_serve_their_own_classes_only(tiny_clip: Clip) -> None:
    method = make(tiny_clip, class_specific=True)
    contents = export(method)

    assert contents.prompts["text.class_prompts"].shape == (3, 4, 24)
    assert not contents.manifest.new_classes.allowed
    assert "context of its own" in contents.manifest.new_classes.reason


def test_new_classes_come_with_a_warning(tiny_clip: Clip) -> None:
    assert "LoGoPrompt" in export(make(tiny_clip)).manifest.new_classes.warning


def test_small_graph_refuses_more_classes_at_export(tiny_clip: Clip) -> None:
    checkpoint = checkpoint_of(make(tiny_clip, selected=3), "dpt")
    names = [(name,) for name in ("ant", "bee", "cow", "dog")]

    with pytest.raises(ClassListError, match="at most 3 classes, got 4"):
        build_bundle(checkpoint, random_weights(checkpoint.header.backbone.config), names=names)


def tied(clip: Clip, *names: str) -> PromptCheckpoint:
    """One class is selected, and two have the same tokens."""
    task = Task(clip=clip, class_names=names, preprocessing=Preprocessing(image_size=16), seed=1)
    return checkpoint_of(Dpt(DptConfig(text_tokens=4, selected=1), task), "dpt")


def test_images_whose_selection_is_a_tie_prove_nothing_and_are_counted(tiny_clip: Clip) -> None:
    checkpoint = tied(tiny_clip, "sea", "Sea", "a very long name of a thing")
    best = checkpoint.tensors["reference.selector_logits"].argmax(axis=1)

    contents = build_bundle(checkpoint, random_weights(checkpoint.header.backbone.config))

    decided = int((best == 2).sum())
    assert 0 < decided < 8
    assert {row.images for row in contents.manifest.parity} == {decided}
    assert len(contents.golden.pixels) == len(contents.golden.logits) == decided


def test_an_export_that_no_image_can_prove_fails(tiny_clip: Clip) -> None:
    checkpoint = tied(tiny_clip, "red fox", "Red Fox")

    with pytest.raises(ParityError, match="for every reference image two classes tie"):
        build_bundle(checkpoint, random_weights(checkpoint.header.backbone.config))


def test_another_selector_than_that_of_training_is_no_parity(tiny_clip: Clip) -> None:
    checkpoint = checkpoint_of(make(tiny_clip), "dpt")
    other = {"reference.selector_logits": checkpoint.tensors["reference.selector_logits"] + 1}
    checkpoint = replace(checkpoint, tensors={**checkpoint.tensors, **other})

    with pytest.raises(ParityError, match=r"by other logits .* differ by 1.0e\+00"):
        build_bundle(checkpoint, random_weights(checkpoint.header.backbone.config))


def test_reference_images_are_those_that_select_most_clearly(
    tiny_clip: Clip, toy_data: Path
) -> None:
    prompted = make(tiny_clip).prompted
    samples = load_dataset(toy_data).split("train")

    usual = reference_pixels(samples, Preprocessing(image_size=16))
    clear = reference_pixels(samples, Preprocessing(image_size=16), prompted)

    gaps, clearer = (prompted.selection_gaps(torch.from_numpy(pixels)) for pixels in (usual, clear))
    assert clear.shape == usual.shape
    assert (clearer >= gaps).all()
    assert (clearer > gaps).any()


def test_too_many_class_aware_layers_are_refused(tiny_clip: Clip) -> None:
    with pytest.raises(TrainingError, match=r"class_aware_layers=4 .* Give 1 to 3"):
        build(tiny_clip, "dpt", class_aware_layers=4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"selected": 0}, "selected must be at least 1"),
        ({"selector_template": "a photo"}, "exactly once"),
        ({"alpha": -1.0}, "alpha must be 0 or more"),
        ({"guidance_epochs": -1}, "guidance_epochs must be 0 or more"),
        ({"words": "a photo of a", "text_tokens": 4, "class_specific": True}, "leave words out"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DptConfig(**options)
