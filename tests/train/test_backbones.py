"""From names and files to a frozen CLIP, and the words for those that do not fit."""

import json
from pathlib import Path
from typing import Any

import msgspec
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from vlp_deploy.errors import ModelError
from vlp_deploy.formats.architecture import OPENAI_MEAN, ClipConfig, Preprocessing
from vlp_deploy.formats.weights import fingerprint, load_weights
from vlp_train import backbones
from vlp_train.backbones import load_backbone, load_preprocessing, reload_backbone


def test_a_json_model_is_loaded_frozen(tiny_model: Any, tiny_config: ClipConfig) -> None:
    clip, backbone = load_backbone(tiny_model.model, tiny_model.pretrained)

    assert backbone.name == "tiny"
    assert backbone.config == clip.config == tiny_config
    assert backbone.sha256 == fingerprint(load_weights(Path(tiny_model.pretrained), tiny_config))
    assert not any(parameter.requires_grad for parameter in clip.parameters())


def test_a_torch_file_is_the_same_model(tiny_model: Any, tmp_path: Path) -> None:
    state = load_file(tiny_model.pretrained)
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "w.pt")

    _, backbone = load_backbone(tiny_model.model, str(tmp_path / "w.pt"))

    assert backbone.sha256 == load_backbone(tiny_model.model, tiny_model.pretrained)[1].sha256


def test_a_torch_file_with_code_inside_is_refused(tiny_model: Any, tmp_path: Path) -> None:
    torch.save({"state_dict": Path("/etc")}, tmp_path / "w.pt")

    with pytest.raises(ModelError, match="cannot be read as a plain PyTorch state dict"):
        load_backbone(tiny_model.model, str(tmp_path / "w.pt"))


def test_half_precision_weights_become_float32(tiny_model: Any, tmp_path: Path) -> None:
    state = {name: value.half() for name, value in load_file(tiny_model.pretrained).items()}
    save_file(state, tmp_path / "half.safetensors")

    clip, _ = load_backbone(tiny_model.model, str(tmp_path / "half.safetensors"))

    assert all(parameter.dtype == torch.float32 for parameter in clip.parameters())


def test_a_hub_configuration_brings_its_preprocessing(
    open_clip_config: dict[str, Any], tiny_model: Any, tmp_path: Path
) -> None:
    content = {
        "model_cfg": open_clip_config,
        "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
    }
    (tmp_path / "hub.json").write_text(json.dumps(content))

    preprocessing = load_preprocessing(str(tmp_path / "hub.json"))

    assert preprocessing.mean == (0.5, 0.5, 0.5)
    assert preprocessing.image_size == 16
    assert load_backbone(str(tmp_path / "hub.json"), tiny_model.pretrained)[1].name == "hub"


def test_a_reloaded_backbone_must_have_the_same_weights(tiny_model: Any, tmp_path: Path) -> None:
    _, backbone = load_backbone(tiny_model.model, tiny_model.pretrained)
    state = load_file(tiny_model.pretrained)
    state["visual.proj"][0, 0] += 1
    save_file(state, tmp_path / "other.safetensors")

    same = reload_backbone(backbone, tiny_model.pretrained)

    assert same.config == backbone.config
    with pytest.raises(ModelError, match="Pass the same weights"):
        reload_backbone(backbone, str(tmp_path / "other.safetensors"))


def test_a_record_keeps_the_name_of_a_local_file_and_not_its_folder(tiny_model: Any) -> None:
    _, backbone = load_backbone(tiny_model.model, tiny_model.pretrained)

    assert backbone.pretrained == "tiny.safetensors"
    with pytest.raises(ModelError, match=r"the local file 'tiny\.safetensors': .*--pretrained"):
        reload_backbone(backbone)


def test_a_tag_is_reloaded_through_open_clip(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Any
) -> None:
    _, backbone = load_backbone(tiny_model.model, tiny_model.pretrained)
    named = msgspec.structs.replace(backbone, name="ViT-B-32", pretrained="openai")
    state = load_file(tiny_model.pretrained)
    monkeypatch.setattr(backbones, "_downloaded", lambda model, tag, quick_gelu: state)

    assert reload_backbone(named).config == backbone.config
    with pytest.raises(
        ModelError, match=r"ViT-B-32 has no weights 'opnai'\. Did you mean 'openai'"
    ):
        reload_backbone(named, "opnai")
    with pytest.raises(ModelError, match=r"tiny \(openai\), which open_clip does not know"):
        reload_backbone(msgspec.structs.replace(named, name="tiny"))


def test_the_embedded_backbone_is_reloaded() -> None:
    _, backbone = load_backbone("vlp-tiny")

    assert backbone.pretrained == "embedded"
    assert reload_backbone(backbone).config == backbone.config


def test_preprocessing_of_a_local_file_is_that_of_all_the_models_tags(tmp_path: Path) -> None:
    file = str(tmp_path / "w.safetensors")

    assert load_preprocessing("ViT-B-16", file).mean == OPENAI_MEAN
    assert load_preprocessing("ViT-L-14", "laion2b_s32b_b82k").mean == (0.5, 0.5, 0.5)
    with pytest.warns(UserWarning, match="OpenAI's way is taken"):
        preprocessing = load_preprocessing("ViT-L-14", file)  # two kinds of tags
    assert preprocessing.mean == OPENAI_MEAN


def test_preprocessing_is_that_of_the_configuration(
    open_clip_config: dict[str, Any], tmp_path: Path
) -> None:
    options = {"mean": [0.0, 0.0, 0.0], "interpolation": "bilinear", "resize_mode": "squash"}
    content = {"model_cfg": open_clip_config, "preprocess_cfg": options}
    (tmp_path / "hub.json").write_text(json.dumps(content))

    found = load_preprocessing(str(tmp_path / "hub.json"))

    assert (found.mean, found.std) == ((0.0, 0.0, 0.0), Preprocessing(image_size=1).std)
    assert (found.interpolation, found.resize_mode) == ("bilinear", "squash")


def test_a_tag_knows_its_resize() -> None:
    assert load_preprocessing("MobileCLIP-S1", "datacompdr").interpolation == "bilinear"
    assert load_preprocessing("RN50-quickgelu", "openai").interpolation == "bicubic"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": [0.5, 0.5]}, "preprocess_cfg: Expected `array` of length 3"),
        ({"std": [0.0, 1.0, 1.0]}, "preprocess_cfg: .*> 0"),
        ([], "preprocess_cfg must be an object"),
        ({"resize_mode": "longest"}, r"Invalid enum value 'longest' - at `\$\.resize_mode`"),
    ],
)
def test_preprocessing_that_cannot_be_done_is_named(
    open_clip_config: dict[str, Any], tmp_path: Path, options: Any, message: str
) -> None:
    content = {"model_cfg": open_clip_config, "preprocess_cfg": options}
    (tmp_path / "hub.json").write_text(json.dumps(content))

    with pytest.raises(ModelError, match=message):
        load_preprocessing(str(tmp_path / "hub.json"))


@pytest.mark.parametrize(
    ("model", "pretrained", "message"),
    [
        ("ViT-B-61", "openai", "no model 'ViT-B-61'. Did you mean 'ViT-B-16'"),
        ("vlp-tyni", None, "no model 'vlp-tyni'. Did you mean 'vlp-tiny'"),
        ("ViT-B-32", "openia", "has no weights 'openia'. Did you mean 'openai'"),
        ("ViT-B-32", None, "needs --pretrained: a local weights file or one of openai"),
        (
            "ViT-B-32-quickgelu",
            "laion2b_s34b_b79k",
            "has no weights 'laion2b",
        ),
        ("RN50", "openia", "has no weights 'openia'. Did you mean 'openai'"),
        ("coca_ViT-B-32", "laion2b_s13b_b90k", "has multimodal_cfg"),
        ("absent.json", "w.safetensors", r"absent\.json cannot be read"),
    ],
)
def test_models_that_do_not_fit_are_explained(
    model: str, pretrained: str | None, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        load_backbone(model, pretrained)


def test_openai_weights_with_the_wrong_activation_are_refused(tmp_path: Path) -> None:
    (tmp_path / "openai-b32.safetensors").write_bytes(b"")

    with pytest.raises(ModelError, match="--model ViT-B-32-quickgelu"):
        load_backbone("ViT-B-32", str(tmp_path / "openai-b32.safetensors"))


def test_a_tag_decides_the_activation(monkeypatch: pytest.MonkeyPatch) -> None:
    """`ViT-B-32` with `openai` is QuickGELU although the name does not say so."""
    asked = {}

    def create_model(name: str, **options: Any) -> torch.nn.Module:
        asked.update(options, name=name)
        config = open_clip.get_model_config(name)
        with torch.device("meta"):
            network = open_clip.model.CLIP(**config, quick_gelu=options["force_quick_gelu"])
        return network.to_empty(device="cpu")

    monkeypatch.setattr(open_clip, "create_model", create_model)

    _, backbone = load_backbone("ViT-B-32", "openai")

    assert backbone.config.quick_gelu
    assert asked["force_quick_gelu"]
    assert asked["pretrained"] == "openai"


def test_a_download_that_fails_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def create_model(name: str, **options: Any) -> torch.nn.Module:
        raise OSError("no network")

    monkeypatch.setattr(open_clip, "create_model", create_model)

    with pytest.raises(ModelError, match=r"cannot be fetched \(no network\)"):
        load_backbone("ViT-B-32", "openai")
