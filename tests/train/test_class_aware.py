"""DPT's forward pass step by step, against what the official code computed in between."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.export.golden.seeded_clip import Floats, clip_config, seeded_weights
from tests.export.test_golden import HERE, checkpoint_of, read_case
from vlp_train.backbones import build_clip
from vlp_train.class_aware import ClassAwareClip, ClassFeatures, Seen, Selection
from vlp_train.forward import prompted_clip

# what two correct float32 implementations differ by, at a logit scale of 100
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Case:
    """What was expected, and what comes out."""

    expected: dict[str, Any]
    prompted: ClassAwareClip
    classes: ClassFeatures
    selection: Selection
    seen: Seen

    def off(self, found: Tensor, name: str) -> float:
        return float(np.abs(found.numpy() - self.expected[name]).max())


def compute(case: dict[str, Any], expected: Any, learned: Any, weights: Any) -> Case:
    checkpoint = checkpoint_of(case, expected, learned, weights)
    clip = build_clip(checkpoint.header.backbone.config, weights)
    prompted = prompted_clip(checkpoint.header, clip, checkpoint.header.class_names)
    assert isinstance(prompted, ClassAwareClip)
    prompts = {name: torch.from_numpy(value) for name, value in checkpoint.tensors.items()}
    with torch.no_grad():
        classes = prompted.classes(prompts, plain=True)
        selection = prompted.select(prompts["reference.pixels"], classes)
        seen = prompted.see(prompts["reference.pixels"], prompts, classes, selection.classes)
    return Case(expected, prompted, classes, selection, seen)


@pytest.fixture(scope="module")
def tiny() -> Case:
    weights: dict[str, Floats] = seeded_weights(clip_config("tiny-test-quickgelu"), 2024)
    return compute(*read_case(HERE / "dpt-bl3-tiny"), weights)


def test_classes_are_selected_by_the_official_logits(tiny: Case) -> None:
    assert tiny.off(tiny.selection.logits, "selector_logits") <= TOLERANCE
    found, official = tiny.selection.classes.numpy(), tiny.expected["selected_classes"]
    np.testing.assert_array_equal(np.sort(found), np.sort(official))


def test_class_aware_prompts_are_the_official_ones(tiny: Case) -> None:
    order = [
        tiny.selection.classes[0].tolist().index(label)
        for label in tiny.expected["selected_classes"][0]
    ]
    found = torch.stack([of_layer[0][order] for of_layer in tiny.seen.prompts])  # (n, c, d)

    assert tiny.off(found, "cavpt_prompts_image0") <= 2e-5  # of values about 1


def test_answers_that_guide_training_are_the_official_ones(tiny: Case) -> None:
    prompted, classes = tiny.prompted, tiny.classes
    by_text = prompted.logits(tiny.selection.image_features, classes.embeddings)
    by_image = prompted.logits(tiny.seen.image_features, classes.selector)

    assert tiny.off(by_text, "logits_zs_image_learned_text") <= TOLERANCE
    assert tiny.off(by_image, "logits_prompted_image_zs_text") <= TOLERANCE
    assert tiny.off(classes.raw, "text_features") <= TOLERANCE


def test_full_size_answers_in_between_are_the_official_ones(golden: Path, tmp_path: Path) -> None:
    """Layers 9 to 12 class-aware, ViT-B/32."""
    from tests.train.importing.golden_cases import complete_case, weights_of

    case = complete_case(golden / "dpt-bl9-k12", tmp_path)
    info, expected, _ = read_case(case.source)
    found = compute(info, expected, _learned(case.files, info), weights_of(info["arch"], 2024))

    test_classes_are_selected_by_the_official_logits(found)
    test_answers_that_guide_training_are_the_official_ones(found)


def _learned(files: Path, info: dict[str, Any]) -> dict[str, Floats]:
    learned = {}
    for file in info["checkpoint_files"]:
        part = Path(file).parent.name.rpartition(".")[2]
        content = torch.load(files / file, map_location="cpu", weights_only=False)
        for key, value in content["state_dict"].items():
            learned[f"{part}.{key}"] = value.float().numpy()
    return learned


def test_gaps_are_those_at_the_edge_of_the_selection(tiny: Case) -> None:
    logits, pixels = tiny.selection.logits, torch.from_numpy(_pixels())
    best = logits.sort(dim=1, descending=True).values

    gaps = tiny.prompted.selection_gaps(pixels)

    assert (gaps - (best[:, 4] - best[:, 5])).abs().max() <= TOLERANCE
    assert float(gaps.min()) == pytest.approx(0.211, abs=1e-3)  # as recorded with the case


def _pixels() -> Any:
    from tests.export.golden.seeded_clip import seeded_pixels

    return seeded_pixels(8, 64, 11)
