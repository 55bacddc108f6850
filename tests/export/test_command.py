"""`vlp export` as it is typed."""

from pathlib import Path

import pytest

from tests.export.tiny_clip import (
    VOCABULARY,
    make_checkpoint,
    make_config,
    make_weights,
    save_weights,
)
from vlp_deploy.cli import run
from vlp_deploy.engines.tensorrt import TensorRtEngine
from vlp_deploy.formats.bundle import Bundle
from vlp_export.command import describe_cost

CONFIG = make_config(vocab_size=VOCABULARY)


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    weights = make_weights(CONFIG)
    make_checkpoint(CONFIG, weights).save(tmp_path / "prompt.safetensors")
    save_weights(weights, tmp_path / "clip.safetensors")
    paths = ("prompt.safetensors", "bundle", "clip.safetensors")
    source, output, pretrained = (str(tmp_path / name) for name in paths)
    return ["export", source, "--output", output, "--pretrained", pretrained]


def test_tables_are_printed_and_the_bundle_is_there(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(arguments)

    printed = capsys.readouterr()
    assert code == 0, printed.err
    assert "against the un-folded model" in printed.out
    assert printed.out.count(" ok ") == 4  # batches 1, 2, 5, 8
    assert "image" in printed.out
    assert "vlp classify" in printed.out
    assert Bundle(tmp_path / "bundle").manifest.method == "zeroshot"


def test_second_export_to_the_same_place_needs_force(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 0

    assert run(arguments) == 1
    assert "pass --force" in capsys.readouterr().err
    assert run([*arguments, "--force"]) == 0


def test_unsupported_precision_is_refused(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*arguments, "--precision", "fp8"]) == 1

    assert "engine onnx does not take fp8" in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()


def test_help_explains_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", "--help"]) == 0

    text = " ".join(capsys.readouterr().out.split())
    for option in ("--engine", "--precision", "--output", "--pretrained", "--classes", "--force"):
        assert option in text


def test_cost_that_grows_with_the_classes_is_told() -> None:
    small, large = describe_cost(8.2, 10), describe_cost(303.0, 1000)

    assert "8.2 GFLOP an image for 10 classes" in small
    assert "more than" not in small
    assert "more than 3 image towers of ViT-B/16: serve fewer classes" in large


@pytest.mark.parametrize(("installed", "code"), [(True, 0), (False, 3)])
def test_tensorrts_bundle_is_written_whether_or_not_it_can_be_built(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    installed: bool,
    code: int,
) -> None:
    monkeypatch.setattr(TensorRtEngine, "is_installed", lambda: installed)

    assert run([*arguments, "--engine", "tensorrt"]) == code

    printed = " ".join("".join(capsys.readouterr()).split())
    assert f"`vlp export {tmp_path / 'bundle'} --engine tensorrt`, on the machine with the GPU" in (
        printed
    )
    assert ("pip install 'vlp-deploy[tensorrt]'" in printed) is not installed
    manifest = Bundle(tmp_path / "bundle").manifest
    assert manifest.engine == "tensorrt"
    assert [profile["B"][2] for profile in manifest.profiles["image"]] == [1, 8, 32, 128]
    assert manifest.profiles["text"][0]["L"][2] == 20  # the context of this backbone
