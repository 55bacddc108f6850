"""The forward pass that defines checkpoints, against logits of the methods' official code."""

import pickle  # noqa: TID251 (golden checkpoints, whose origin is known)
import types
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.export.golden.seeded_clip import Floats, clip_config, seeded_pixels, seeded_weights
from tests.export.test_golden import HERE, LOCAL_CASES, checkpoint_of, read_case
from tests.export.test_golden import check as check_export
from tests.train.importing.golden_cases import complete_case, model_files
from vlp_deploy.formats.checkpoint import PromptCheckpoint
from vlp_export.contexts import ContextChoice, settle_context
from vlp_export.exporter import build_bundle
from vlp_train.backbones import build_clip
from vlp_train.conditioned import meta_shift
from vlp_train.coupled import CoupledClip
from vlp_train.forward import prompted_clip
from vlp_train.importing.road import ImportRequest, convert

# what two correct float32 implementations were found to differ by, at a logit scale of 100
TOLERANCE = 1e-4
EXPORT_TOLERANCE = 2e-4  # as in tests/export/test_golden.py; 6e-5 are seen


@pytest.fixture(scope="session")
def weights() -> dict[str, Floats]:
    return seeded_weights(clip_config("tiny-test-quickgelu"), 2024)


def check(case: dict[str, Any], expected: Any, learned: Any, weights: dict[str, Floats]) -> None:
    """Plain and fast forward pass against the official logits."""
    checkpoint = checkpoint_of(case, expected, learned, weights)
    header = checkpoint.header
    clip = build_clip(header.backbone.config, weights)
    prompted = prompted_clip(header, clip, header.class_names)
    prompts = {name: torch.from_numpy(value) for name, value in checkpoint.tensors.items()}
    with torch.no_grad():
        pixels = prompts["reference.pixels"]
        plain, fast = (
            prompted.predict(pixels, prompts, prompted.classes(prompts, plain=plain)).numpy()
            for plain in (True, False)
        )

    assert np.abs(plain - expected["logits"]).max() <= TOLERANCE
    assert np.abs(fast - expected["logits"]).max() <= TOLERANCE


@pytest.mark.parametrize("name", LOCAL_CASES)
def test_official_logits(name: str, weights: dict[str, Floats]) -> None:
    check(*read_case(HERE / name), weights)


def test_official_shift_and_class_features_of_each_image(weights: dict[str, Floats]) -> None:
    case, expected, learned = read_case(HERE / "cocoop-m4-tiny")
    checkpoint = checkpoint_of(case, expected, learned, weights)
    clip = build_clip(checkpoint.header.backbone.config, weights)
    prompted = prompted_clip(checkpoint.header, clip, checkpoint.header.class_names)
    prompts = {name: torch.from_numpy(value) for name, value in checkpoint.tensors.items()}
    with torch.no_grad():
        images = prompted.image_features(prompts["reference.pixels"], prompts)

        shift = meta_shift(prompts, images)
        classes = prompted.classes(prompts)(images)

    texts = expected["text_features"]  # (B, K, D), as long as the tower makes them
    texts = texts / np.linalg.norm(texts, axis=-1, keepdims=True)
    np.testing.assert_allclose(shift, expected["meta_shift"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(classes, texts, rtol=0, atol=5e-6)


class _TolerantUnpickler(pickle.Unpickler):
    """Stands in for classes of the training code, which is not installed."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return super().find_class(module, name)
        except ModuleNotFoundError:
            return type(name, (), {})


TOLERANT = types.SimpleNamespace(
    Unpickler=_TolerantUnpickler, load=pickle.load, __name__="tolerant"
)


@lru_cache(maxsize=1)  # the large ones take 600 MB
def weights_of(arch: str, seed: int) -> dict[str, Floats]:
    return seeded_weights(clip_config(arch), seed)


@pytest.mark.parametrize(
    "name",
    [
        "cocoop-m4",
        "coop-end-tiny",
        "coop-middle-csc-tiny",
        "coop-middle-m4-words",
        "coop-end-m4-words",
        "dpt-vpt",
        "vpt-deep",
        "vpt-shallow",
    ],
)
def test_official_logits_of_official_files(name: str, golden: Path) -> None:
    """The forward pass, and the export of the same prompts."""
    case, expected, _ = read_case(golden / name)
    content = torch.load(
        golden / name / case["checkpoint_files"][0],
        map_location="cpu",
        weights_only=False,
        pickle_module=TOLERANT,
    )
    learned = {
        key: value.float().numpy()
        for key, value in content["state_dict"].items()
        if not key.startswith("token_")  # copies of token embeddings
    }
    weights = weights_of(case["arch"], case["clip_seed"])

    check(case, expected, learned, weights)
    check_export(build_bundle(checkpoint_of(case, expected, learned, weights), weights), expected)


def test_dcp_gives_the_official_logits_in_every_context(golden: Path, tmp_path: Path) -> None:
    """Each image by itself; four in a batch; a context frozen over those four, as files."""
    name = "cmpa-m16-d9"
    complete = complete_case(golden / name, tmp_path / "official")
    _, expected, _ = read_case(golden / name)
    model, pretrained = model_files(complete.info, tmp_path)
    request = ImportRequest(
        path=complete.files, model=model, pretrained=pretrained, options=complete.options
    )
    conversion = convert(request)
    weights = weights_of(complete.info["arch"], complete.info["clip_seed"])
    clip = build_clip(conversion.header.backbone.config, weights)
    prompted = prompted_clip(conversion.header, clip, conversion.header.class_names)
    assert isinstance(prompted, CoupledClip)
    prompts = {key: torch.from_numpy(value) for key, value in conversion.tensors.items()}
    pixels = seeded_pixels(8, 224, complete.info["image_seed"])
    images = torch.from_numpy(pixels)

    with torch.no_grad():
        classes = prompted.classes(prompts, plain=True)
        alone = prompted.predict(images, prompts, classes)
        together = prompted.in_context("batch").predict(images[:4], prompts, classes)
        context = prompted.freeze(prompts, lambda: [images[:3], images[3:4]])
    assert np.abs(alone.numpy() - expected["logits_b1"]).max() <= TOLERANCE
    assert np.abs(together.numpy() - expected["logits_b4"]).max() <= TOLERANCE
    found = context["visual.prompts"][1:].numpy()
    assert np.abs(found - expected["visual_context_b4"]).max() <= TOLERANCE

    (tmp_path / "four").mkdir()
    for index, image in enumerate(pixels[:4]):
        Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / "four" / f"{index}.png")
    checkpoint = PromptCheckpoint(
        header=conversion.header,
        tensors={
            **conversion.tensors,
            "reference.pixels": pixels,
            "reference.logits": expected["logits_b1"],
        },
    )
    for choice, rows, logits in (
        (ContextChoice(), slice(8), "logits_b1"),
        (ContextChoice(calibration=tmp_path / "four"), slice(4), "logits_b4"),
    ):
        settled = settle_context(checkpoint, weights, choice, lambda step: None)
        contents = build_bundle(settled.checkpoint, weights)
        difference = contents.golden.logits[rows] - expected[logits]
        assert np.abs(difference).max() <= EXPORT_TOLERANCE
        assert max(r.max_logit_difference for r in contents.manifest.parity) <= EXPORT_TOLERANCE
