"""A tiny CLIP with seeded random weights, and a data set of coloured squares."""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from vlp_deploy.formats.architecture import ClipConfig
from vlp_deploy.formats.weights import expected_shapes
from vlp_train.backbones import build_clip
from vlp_train.clip import Clip
from vlp_train.request import Request

OPEN_CLIP_CONFIG = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 32, "layers": 3, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 3},
}
SHORT = {"epochs": 4, "batch_size": 6, "learning_rate": 0.05}
COLOURS = {"red fox": (200, 40, 30), "green frog": (40, 190, 60), "blue_whale": (30, 60, 210)}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Bit-identical results need equal threads, and tiny products gain nothing from more."""
    torch.set_num_threads(1)


def random_weights(config: ClipConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights that keep attention selective and features of different inputs apart."""
    random = np.random.default_rng(seed)
    weights = {}
    for name, shape in expected_shapes(config).items():
        scale = shape[-1] ** -0.5 if len(shape) > 1 else 0.1
        value = random.normal(0, 2 * scale, shape)
        if "ln_" in name and name.endswith("weight"):
            value = 1 + 0.1 * value
        weights[name] = value.astype(np.float32)
    weights["logit_scale"] = np.array(np.log(100), np.float32)
    return weights


@pytest.fixture(scope="session")
def open_clip_config() -> dict[str, Any]:
    """The tiny CLIP's shape in open_clip's words."""
    return copy.deepcopy(OPEN_CLIP_CONFIG)


@pytest.fixture(scope="session")
def tiny_config() -> ClipConfig:
    return ClipConfig.from_open_clip(OPEN_CLIP_CONFIG)


@pytest.fixture
def tiny_clip(tiny_config: ClipConfig) -> Clip:
    return build_clip(tiny_config, random_weights(tiny_config))


@dataclass(frozen=True)
class ModelFiles:
    """What `--model` and `--pretrained` take."""

    model: str
    pretrained: str


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, tiny_config: ClipConfig) -> ModelFiles:
    folder = tmp_path_factory.mktemp("model")
    (folder / "tiny.json").write_text(json.dumps(OPEN_CLIP_CONFIG))
    save_file(random_weights(tiny_config), folder / "tiny.safetensors")
    return ModelFiles(str(folder / "tiny.json"), str(folder / "tiny.safetensors"))


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ and test/ with one folder a colour: 6 and 4 noisy squares each."""
    folder = tmp_path_factory.mktemp("toy")
    random = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 4)):
        for name, colour in COLOURS.items():
            target = folder / split / name
            target.mkdir(parents=True)
            for index in range(count):
                noise = random.normal(0, 25, (20, 24, 3))
                pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(target / f"{index}.png")
    return folder


@pytest.fixture
def request_for(toy_data: Path, tiny_model: Any, tmp_path: Path) -> Callable[..., Request]:
    """A request on the toy data, with changes."""

    def build(output: str = "run", **changes: Any) -> Request:
        defaults = {"data": toy_data, "method": "coop", "output": tmp_path / output, **SHORT}
        if changes.get("method") == "coop" or "method" not in changes:
            defaults["method_options"] = {"context_tokens": 4}
        if changes.get("method") == "zeroshot":
            defaults = {name: v for name, v in defaults.items() if name not in SHORT}
        files = {"model": tiny_model.model, "pretrained": tiny_model.pretrained}
        return Request(**{**defaults, **files, **changes})

    return build
