"""Image towers that are no plain ViT: loaded, checked against open_clip, turned into a graph."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from tests.other_towers import CONFIGS, SIGLIP, SIZE, Model, write_model, write_pictures
from tests.train.conftest import random_weights
from tests.train.importing import official
from vlp_deploy.cli import run
from vlp_deploy.errors import CheckpointError, MissingExtraError, ModelError, TrainingError
from vlp_deploy.formats.architecture import ClipConfig, Preprocessing
from vlp_deploy.formats.checkpoint import IMAGE_GRAPH, PromptCheckpoint
from vlp_train import tracing
from vlp_train.backbones import load_backbone, reload_backbone
from vlp_train.importing import road
from vlp_train.importing.road import check_tower
from vlp_train.methods import METHODS, check_towers
from vlp_train.request import Request
from vlp_train.tracing import image_graph
from vlp_train.training import train

PREPROCESSING = Preprocessing(image_size=SIZE)
ROUNDING = 1e-5  # of features whose length is about 1, added up in another order


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    folder = tmp_path_factory.mktemp("models")
    return {kind: write_model(folder, kind) for kind in CONFIGS}


@pytest.fixture(scope="module")
def graphs(models: dict[str, Model]) -> Callable[[str], bytes]:
    """The ONNX file of a kind of tower; each is made once."""

    @functools.cache
    def graph(kind: str) -> bytes:
        clip, _ = load_backbone(models[kind].model, models[kind].pretrained)
        told: list[str] = []
        content = image_graph(clip, PREPROCESSING, told.append)[IMAGE_GRAPH].tobytes()
        assert clip.config.image_tower in told[0]
        return content

    return graph


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("data"))


def pixels(count: int = 3) -> torch.Tensor:
    random = np.random.default_rng(1)
    return torch.from_numpy(random.integers(0, 256, (count, 3, SIZE, SIZE), dtype=np.uint8))


def normalised(images: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(c).view(3, 1, 1) for c in (PREPROCESSING.mean, PREPROCESSING.std))
    return (images / 255 - mean) / std


@pytest.mark.parametrize("kind", CONFIGS)
@torch.no_grad()
def test_both_towers_are_those_of_open_clip(kind: str, models: dict[str, Model]) -> None:
    clip, backbone = load_backbone(models[kind].model, models[kind].pretrained)
    ids = torch.zeros(2, 77, dtype=torch.long)
    ids[0, :4], ids[1, :3] = (
        torch.tensor([49406, 320, 1125, 49407]),
        torch.tensor([49406, 5, 49407]),
    )
    eot = torch.tensor([3, 2])

    images, texts = clip.encode_image(normalised(pixels())), clip.encode_text_fast(ids, eot)

    network = models[kind].network
    assert torch.allclose(images, network.encode_image(normalised(pixels())), atol=ROUNDING)
    assert torch.allclose(texts, network.encode_text(ids), atol=ROUNDING)
    assert torch.allclose(clip.encode_text(ids), texts, atol=ROUNDING)
    again = reload_backbone(backbone, models[kind].pretrained)
    assert torch.equal(again.encode_image(normalised(pixels())), images)


@pytest.mark.parametrize("kind", CONFIGS)
@torch.no_grad()
def test_the_graph_takes_raw_pixels_in_any_number(
    kind: str, models: dict[str, Model], graphs: Callable[[str], bytes]
) -> None:
    session = onnxruntime.InferenceSession(graphs(kind), providers=["CPUExecutionProvider"])

    for count in (1, 5):
        (found,) = session.run(["embedding"], {"image": pixels(count).numpy()})
        expected = F.normalize(models[kind].network.encode_image(normalised(pixels(count))), dim=-1)
        assert np.abs(found - expected.numpy()).max() < ROUNDING


def test_branches_that_only_training_needs_are_merged(graphs: Callable[[str], bytes]) -> None:
    onnx = pytest.importorskip("onnx")

    nodes = [node.op_type for node in onnx.load_from_string(graphs("mobileclip")).graph.node]

    # those of attention stay, which stand in front of no convolution
    assert nodes.count("BatchNormalization") <= 2


def test_a_plain_vit_has_no_such_graph(tiny_clip: Any) -> None:
    assert image_graph(tiny_clip, Preprocessing(image_size=16)) == {}


def test_a_missing_exporter_is_told_before_the_training(
    models: dict[str, Model], monkeypatch: pytest.MonkeyPatch, data: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr(tracing, "find_spec", lambda name: None)
    resnet = models["resnet"]

    with pytest.raises(MissingExtraError, match=r"onnxscript.*\n?.*train"):
        train(
            Request(
                data=data,
                method="coop",
                output=tmp_path / "run",
                model=resnet.model,
                pretrained=resnet.pretrained,
            )
        )

    assert not (tmp_path / "run" / "resume.safetensors").exists()


@pytest.mark.parametrize("kind", ["resnet", "mobileclip"])
@pytest.mark.parametrize("method", [name for name, entry in METHODS.items() if not entry.any_tower])
def test_methods_that_reach_into_towers_are_refused(kind: str, method: str) -> None:
    config = ClipConfig.from_open_clip(CONFIGS[kind])

    with pytest.raises(TrainingError, match="for any towers: zeroshot, coop, kgcoop, deep_lang"):
        check_towers(method, config)


def test_weights_of_another_tower_are_told(models: dict[str, Model], tmp_path: Path) -> None:
    state = load_file(models["resnet"].pretrained)
    del state["visual.layer2.0.conv1.weight"]
    save_file(state, tmp_path / "w.safetensors")

    with pytest.raises(ModelError, match=r"do not fit a ResNet .* visual\.layer2\.0\.conv1"):
        load_backbone(models["resnet"].model, str(tmp_path / "w.safetensors"))


def test_a_tower_that_open_clip_does_not_know_is_told(
    models: dict[str, Model], tmp_path: Path
) -> None:
    config = {**CONFIGS["convnext"], "vision_cfg": {"timm_model_name": "convnext_sbae"}}
    (tmp_path / "m.json").write_text(json.dumps(config))

    with pytest.raises(ModelError, match="cannot build the towers of convnext_sbae"):
        load_backbone(str(tmp_path / "m.json"), models["convnext"].pretrained)


def official_coop(model: Model) -> dict[str, torch.Tensor]:
    """What CoOp's trainer saves, for this model's token embeddings."""
    table = {"token_embedding.weight": load_file(model.pretrained)["token_embedding.weight"]}
    arrays = {name: value.numpy() for name, value in table.items()}
    context = official.values(4, 32)
    return {"ctx": context, **official.buffers(arrays, tokens=4)}


def test_official_checkpoints_on_a_resnet_are_imported(
    models: dict[str, Model],
    graphs: Callable[[str], bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tensors = {IMAGE_GRAPH: np.frombuffer(graphs("resnet"), np.uint8)}
    monkeypatch.setattr(road, "image_graph", lambda clip, preprocessing, tell: tensors)
    folder = official.run_folder(tmp_path / "rn50_ep50", official_coop(models["resnet"]))
    names = ["--model", models["resnet"].model, "--pretrained", models["resnet"].pretrained]

    code = run(["import", str(folder), *names, "--output", str(tmp_path / "x.safetensors")])

    assert code == 0
    checkpoint = PromptCheckpoint.load(tmp_path / "x.safetensors")
    assert checkpoint.header.method == "coop"
    assert checkpoint.tensors[IMAGE_GRAPH].tobytes() == graphs("resnet")


def test_official_prompts_of_a_vit_are_refused_for_a_resnet(
    models: dict[str, Model], tiny_config: ClipConfig, tmp_path: Path
) -> None:
    weights = random_weights(tiny_config)
    folder = official.run_folder(tmp_path / "run", official.maple(weights, tiny_config))
    names = ["--model", models["resnet"].model, "--pretrained", models["resnet"].pretrained]

    assert run(["import", str(folder), *names, "--output", str(tmp_path / "x.safetensors")]) == 1


def test_only_zero_shot_serves_a_text_tower_that_is_not_clips() -> None:
    config = ClipConfig.from_open_clip(SIGLIP)

    check_towers("zeroshot", config)

    with pytest.raises(TrainingError, match="The method for them is zeroshot"):
        check_towers("coop", config)


def test_a_tokenizer_that_cannot_be_had_is_told(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(name: str, **options: Any) -> None:
        raise OSError(f"{name} is not a local folder")

    monkeypatch.setattr("open_clip.tokenizer.HFTokenizer", unreachable)
    model = write_model(tmp_path, "siglip")

    with pytest.raises(ModelError, match=r"tokenizer no/tokenizer .* a folder that holds them"):
        train(
            Request(
                data=data,
                method="zeroshot",
                output=tmp_path / "run",
                model=model.model,
                pretrained=model.pretrained,
            )
        )


def test_official_checkpoints_are_refused_for_another_text_tower() -> None:
    config = ClipConfig.from_open_clip(SIGLIP)

    with pytest.raises(CheckpointError, match="another text tower"):
        check_tower("coop", config)
