"""The road for models whose image tower is no plain ViT: train, export, classify, new classes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from tests.other_towers import CONFIGS, ByteTokenizer, write_model, write_pictures
from vlp_deploy import Classifier
from vlp_deploy.cli import run
from vlp_deploy.data.dataset import load_dataset
from vlp_deploy.errors import BundleError
from vlp_deploy.formats.architecture import OPENAI_MEAN, OPENAI_STD
from vlp_deploy.formats.bundle import Bundle
from vlp_deploy.formats.checkpoint import PromptCheckpoint
from vlp_deploy.tolerance import TOLERANCE_AT_100 as LOGIT_TOLERANCE
from vlp_train.backbones import reload_backbone
from vlp_train.forward import prompted_clip

METHODS = {
    "resnet": ("coop", "-O", "context_tokens=4"),
    "convnext": ("kgcoop",),
    "mobileclip": ("deep_language",),
}
LEARNING = ("--shots", "2", "--epochs", "1", "--batch-size", "3", "--learning-rate", "0.05")


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_whole_road(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(1)
    model, data = write_model(tmp_path, kind), write_pictures(tmp_path / "data")
    folder, bundle = tmp_path / "run", tmp_path / "bundle"
    names = ["--model", model.model, "--pretrained", model.pretrained]
    method, *options = METHODS[kind]

    learn = ["--method", method, *options, *LEARNING, "--output", str(folder)]
    assert run(["train", str(data), *names, *learn]) == 0
    export = ["--pretrained", model.pretrained, "--output", str(bundle)]
    assert run(["export", str(folder), *export]) == 0

    assert "turning the image tower" in capsys.readouterr().err
    manifest = Bundle(bundle).manifest
    assert [row.batch for row in manifest.parity] == [1, 2, 5, 8]
    assert manifest.graphs["image"].flops > 1e6
    assert str(Path.cwd()).encode() not in (bundle / "image.onnx").read_bytes()
    assert "image_tower.onnx" not in Bundle(bundle).prompts()
    check_new_classes(bundle, model.pretrained, PromptCheckpoint.load(folder))
    check_classify(bundle, data, capsys)


@torch.no_grad()
def check_new_classes(bundle: Path, pretrained: str, checkpoint: PromptCheckpoint) -> None:
    """Classes nobody trained on, embedded without PyTorch, agree with PyTorch."""
    names = ["zebra", "a rather long name of a class", "dog"]
    pixels = checkpoint.tensors["reference.pixels"][:3]

    found = Classifier.load(bundle, engine="onnx").with_classes(names).logits(pixels)

    clip = reload_backbone(checkpoint.header.backbone, pretrained)
    model = prompted_clip(checkpoint.header, clip, names)
    prompts = {name: torch.from_numpy(value) for name, value in Bundle(bundle).prompts().items()}
    expected = model.references(prompts, torch.from_numpy(pixels))["reference.logits"]
    assert np.abs(found - expected.numpy()).max() <= LOGIT_TOLERANCE


def check_classify(bundle: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    options = ["--bundle", str(bundle), "--engine", "onnx", "--format", "jsonl"]

    assert run(["classify", str(data / "test"), *options]) == 0

    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 9
    assert {row["label"] for row in rows} <= set(load_dataset(data).class_names)


def test_the_road_of_a_text_tower_that_is_not_clips(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """SigLIP: its classes are baked, with its bias; other classes are refused."""
    torch.set_num_threads(1)
    monkeypatch.setattr("open_clip.tokenizer.HFTokenizer", ByteTokenizer)
    model, data = write_model(tmp_path, "siglip"), write_pictures(tmp_path / "data")
    folder, bundle = tmp_path / "run", tmp_path / "bundle"
    names = ["--model", model.model, "--pretrained", model.pretrained, "--method", "zeroshot"]

    learn = ["--template", "a photo of a {}.", "--template", "{}", "--output", str(folder)]
    assert run(["train", str(data), *names, *learn]) == 0
    assert run(["export", str(folder), "--output", str(bundle)]) == 0

    check_classify(bundle, data, capsys)
    classifier = Classifier.load(bundle, engine="onnx")
    pixels = PromptCheckpoint.load(folder).tensors["reference.pixels"][:2]
    expected = open_clip_logits(model.network, pixels, classifier.classes)
    assert np.abs(classifier.logits(pixels) - expected).max() <= LOGIT_TOLERANCE
    assert list(Bundle(bundle).manifest.graphs) == ["image"]
    with pytest.raises(BundleError, match="serves only its own classes: the model's text tower"):
        classifier.with_classes(["zebra"])


def open_clip_logits(
    network: Any, pixels: NDArray[np.uint8], names: Sequence[str]
) -> NDArray[np.float32]:
    """scale · cosine + bias, classes averaged over the two templates."""
    mean, std = (torch.tensor(c).view(3, 1, 1) for c in (OPENAI_MEAN, OPENAI_STD))
    tokens = ByteTokenizer("", 16)
    with torch.no_grad():
        images = network.encode_image((torch.from_numpy(pixels) / 255 - mean) / std, normalize=True)
        each = [
            network.encode_text(tokens([template.format(name) for name in names]), normalize=True)
            for template in ("a photo of a {}.", "{}")
        ]
        classes = F.normalize(sum(each), dim=-1)
        logits = network.logit_scale.exp() * images @ classes.T + network.logit_bias
    answers: NDArray[np.float32] = logits.numpy()
    return answers
