"""Prompt checkpoints: what is written is read, and what does not fit is named with its file."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from vlp_deploy.errors import CheckpointError
from vlp_deploy.formats.architecture import (
    Backbone,
    ClipConfig,
    OtherVision,
    Preprocessing,
    TextLayout,
    TextTower,
    VisionTower,
    VisualLayout,
)
from vlp_deploy.formats.checkpoint import IMAGE_GRAPH, RUN_FILE, Header, PromptCheckpoint

CONFIG = ClipConfig(
    embed_dim=4,
    quick_gelu=False,
    vit=VisionTower(image_size=8, patch_size=4, width=8, layers=1, heads=2, mlp_width=16),
    text=TextTower(context_length=77, vocab_size=49408, width=6, layers=1, heads=2, mlp_width=16),
)
HEADER = Header(
    method="coop",
    hyper_parameters={"context_tokens": 2},
    backbone=Backbone(name="tiny", pretrained="random", sha256="0" * 64, config=CONFIG),
    class_names=("cat", "dog", "fox"),
    templates=("X X {}.",),
    text_layout=TextLayout(tokens=2),
    visual_layout=VisualLayout(tokens=3),
    preprocessing=Preprocessing(image_size=8),
    provenance={"seed": 1},
)
TENSORS: dict[str, NDArray[Any]] = {
    "text.prompts": np.ones((1, 2, 6), np.float32),
    "text.class_prompts": np.ones((3, 2, 6), np.float32),
    "visual.prompts": np.ones((1, 3, 8), np.float32),
    "reference.pixels": np.ones((8, 3, 8, 8), np.uint8),
    "reference.logits": np.ones((8, 3), np.float32),
    "reference.per_sample_logits": np.ones((8, 3), np.float32),
    "reference.selector_logits": np.ones((8, 3), np.float32),
}
FLOATS = [name for name in TENSORS if name != "reference.pixels"]


def write(path: Path, tensors: dict[str, NDArray[Any]]) -> Path:
    """A file with a good header and any tensors."""
    save_file(tensors, path, metadata={"vlp": msgspec.json.encode(HEADER).decode()})
    return path


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    PromptCheckpoint(header=HEADER, tensors=TENSORS).save(tmp_path / RUN_FILE)

    for path in (tmp_path, tmp_path / RUN_FILE):
        loaded = PromptCheckpoint.load(path)
        assert loaded.header == HEADER
        assert loaded.tensors.keys() == TENSORS.keys()
        assert all(np.array_equal(loaded.tensors[n], TENSORS[n]) for n in TENSORS)


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_of_another_shape_is_named_with_its_file(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", {**TENSORS, name: TENSORS[name][..., :-1]})

    with pytest.raises(CheckpointError, match=rf"x\.safetensors: .*{name} is \("):
        PromptCheckpoint.load(path)


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_of_another_kind_is_named_with_its_file(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", {**TENSORS, name: TENSORS[name].astype(np.float16)})

    with pytest.raises(CheckpointError, match=rf"x\.safetensors: .*{name} is float16, expected"):
        PromptCheckpoint.load(path)


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_tensor_with_no_number_is_named_with_its_file(
    name: str, value: float, tmp_path: Path
) -> None:
    spoiled = TENSORS[name].copy()
    spoiled.flat[-1] = value
    path = write(tmp_path / "x.safetensors", {**TENSORS, name: spoiled})

    with pytest.raises(CheckpointError, match=rf"x\.safetensors: .*{name} holds NaN or inf"):
        PromptCheckpoint.load(path)


@pytest.mark.parametrize("name", ["reference.pixels", "reference.logits"])
def test_references_must_be_there(name: str, tmp_path: Path) -> None:
    tensors = {other: value for other, value in TENSORS.items() if other != name}
    path = write(tmp_path / "x.safetensors", tensors)

    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        PromptCheckpoint.load(path)


def test_files_that_are_no_checkpoint_are_explained(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "plain.safetensors")
    (tmp_path / "text.safetensors").write_text("not at all")
    save_file(TENSORS, tmp_path / "new.safetensors", metadata={"vlp": '{"schema":99}'})
    save_file(TENSORS, tmp_path / "odd.safetensors", metadata={"vlp": '{"schema":1}'})

    for name, message in (
        ("plain", "no 'vlp' in its metadata"),
        ("text", "is not a safetensors file"),
        ("new", "has checkpoint schema 99; this version reads 1"),
        ("odd", r"the header of .*odd\.safetensors is damaged"),
        ("absent", "no prompt checkpoint at"),
    ):
        with pytest.raises(CheckpointError, match=message):
            PromptCheckpoint.load(tmp_path / f"{name}.safetensors")


def test_an_image_tower_that_is_no_plain_vit_has_to_come_along() -> None:
    resnet = OtherVision(name="a ResNet", image_size=8, options={})
    config = msgspec.structs.replace(CONFIG, vit=None, other=resnet)
    backbone = msgspec.structs.replace(HEADER.backbone, config=config)
    header = msgspec.structs.replace(HEADER, backbone=backbone)
    tensors = {name: value for name, value in TENSORS.items() if name != "visual.prompts"}
    graph = {IMAGE_GRAPH: np.zeros(5, np.uint8)}

    PromptCheckpoint(header=header, tensors=tensors | graph)

    with pytest.raises(CheckpointError, match=r"image_tower\.onnx is missing, .* a ResNet"):
        PromptCheckpoint(header=header, tensors=tensors)
    with pytest.raises(CheckpointError, match=r"visual\.prompts is \(1, 3, 8\)"):
        PromptCheckpoint(header=header, tensors=TENSORS | graph)
