"""The forward pass that defines checkpoints, against logits of the methods' official code."""

from typing import Any

import numpy as np
import pytest
import torch

from tests.export.golden.seeded_clip import Floats, clip_config, seeded_weights
from tests.export.test_golden import HERE, LOCAL_CASES, checkpoint_of, read_case
from vlp_train.backbones import build_clip
from vlp_train.conditioned import meta_shift
from vlp_train.forward import prompted_clip

# what two correct float32 implementations were found to differ by, at a logit scale of 100
TOLERANCE = 1e-4


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
