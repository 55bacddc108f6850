"""The road for models whose image tower is no plain ViT: train, export, classify, new classes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.other_towers import CONFIGS, write_model, write_pictures
from vlp_deploy import Classifier
from vlp_deploy.cli import run
from vlp_deploy.data.dataset import load_dataset
from vlp_deploy.formats.bundle import Bundle
from vlp_deploy.formats.checkpoint import PromptCheckpoint
from vlp_deploy.tolerance import TOLERANCE_AT_100 as LOGIT_TOLERANCE
from vlp_train.eager import load_eager

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


def check_new_classes(bundle: Path, pretrained: str, checkpoint: PromptCheckpoint) -> None:
    """Classes nobody trained on, embedded without PyTorch, agree with PyTorch."""
    names = ["zebra", "a rather long name of a class", "dog"]
    pixels = checkpoint.tensors["reference.pixels"][:3]

    found = Classifier.load(bundle, engine="onnx").with_classes(names).logits(pixels)

    eager = load_eager(Bundle(bundle), classes=names, pretrained=pretrained, threads=1)
    assert np.abs(found - eager.logits(pixels)).max() <= LOGIT_TOLERANCE


def check_classify(bundle: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    options = ["--bundle", str(bundle), "--engine", "onnx", "--format", "jsonl"]

    assert run(["classify", str(data / "test"), *options]) == 0

    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 9
    assert {row["label"] for row in rows} <= set(load_dataset(data).class_names)
