"""`vlp import` as it is typed."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.train.conftest import ModelFiles
from tests.train.importing import official
from tests.train.importing.official import Weights, checkpoint, nothing_may_run, run_folder, save
from vlp_deploy.cli import run
from vlp_deploy.formats.architecture import ClipConfig, Preprocessing
from vlp_deploy.formats.checkpoint import PromptCheckpoint
from vlp_train.backbones import load_backbone
from vlp_train.forward import prompted_clip
from vlp_train.importing.pictures import drawn_pictures, samples_of
from vlp_train.reference import reference_pixels


def command(path: Path, model: ModelFiles, *more: str) -> list[str]:
    output = str(path.parent / "prompt.safetensors")
    names = ["--model", model.model, "--pretrained", model.pretrained, "--output", output]
    return ["import", str(path), *names, *more]


def test_a_run_becomes_a_checkpoint(
    weights: Weights, tiny_model: ModelFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run_folder(tmp_path / "run", official.coop(weights), planned=50)

    assert run(command(path, tiny_model, "-O", "position=middle")) == 0

    told = capsys.readouterr().out
    output = tmp_path / "prompt.safetensors"
    assert "recognised: CoOp (KaiyangZhou/CoOp), epoch 5 of 50; imported as coop" in told
    assert "prompts:    4 text tokens in 1 layer, class name middle" in told
    assert "classes:    4: red fox, u . s . flag, blue whale, 7 3 7 - 8 0 0" in told
    assert "assumed" not in told
    assert f"next:       vlp export {output} --engine onnx" in told
    assert f"--pretrained {tiny_model.pretrained}" in told
    saved = PromptCheckpoint.load(output)
    assert saved.header.provenance["made_by"] == "vlp import"
    assert saved.tensors["reference.logits"].shape == (8, 4)


def test_reference_is_the_unfolded_model(
    weights: Weights, tiny_model: ModelFiles, tiny_config: ClipConfig, tmp_path: Path
) -> None:
    """Every image alone, every class alone: the file's logits are the forward pass's."""
    path = run_folder(tmp_path / "run", official.maple(weights, tiny_config))
    assert run(command(path, tiny_model)) == 0
    saved = PromptCheckpoint.load(tmp_path / "prompt.safetensors")
    clip, _ = load_backbone(tiny_model.model, tiny_model.pretrained)
    prompts = {name: torch.from_numpy(value) for name, value in saved.tensors.items()}

    for index, name in enumerate(saved.header.class_names):
        prompted = prompted_clip(saved.header, clip, [name])
        with torch.no_grad():
            logits = prompted.predict(
                prompts["reference.pixels"][:1], prompts, prompted.classes(prompts)
            )
        # float32 at a logit scale of 100
        assert abs(float(logits) - saved.tensors["reference.logits"][0, index]) < 1e-3


def test_assumptions_are_told_and_kept(
    weights: Weights,
    tiny_model: ModelFiles,
    tiny_config: ClipConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = run_folder(tmp_path / "run", official.ivlp(weights, tiny_config))

    assert run(command(path, tiny_model)) == 0

    told = capsys.readouterr().out
    assert "sentence:   X X of a {}." in told
    assert "prompts:    2 text tokens in 2 layers, 3 visual tokens in 3 layers" in told
    assert "assumed:    the sentence keeps the words 'of a'" in told
    saved = PromptCheckpoint.load(tmp_path / "prompt.safetensors")
    assert "keeps the words" in saved.header.provenance["assumed"][0]


def test_nothing_is_overwritten_unasked(
    weights: Weights, tiny_model: ModelFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run_folder(tmp_path / "run", official.coop(weights))
    output = tmp_path / "prompt.safetensors"
    output.write_text("precious")

    assert run(command(path, tiny_model)) == 1
    assert "exists. Choose another name, or replace it with --force" in capsys.readouterr().err
    assert output.read_text() == "precious"
    assert run(command(path, tiny_model, "--force")) == 0
    assert PromptCheckpoint.load(output).header.method == "coop"
    assert run([*command(path, tiny_model)[:-1], str(tmp_path), "--force"]) == 1


def test_a_malicious_file_runs_nothing_and_writes_nothing(
    weights: Weights, tiny_model: ModelFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Payload:
        def __reduce__(self) -> object:
            return os.system, (f"touch {tmp_path / 'trace'}",)

    with nothing_may_run(tmp_path):
        content = checkpoint(official.coop(weights), scheduler={"successor": Payload()})
        path = save(content, tmp_path / "prompt_learner" / "model.pth.tar-5")

        assert run(command(path.parent, tiny_model)) == 1

    error = capsys.readouterr().err
    assert "asks to call posix.system (os.system)('touch" in error
    assert not (tmp_path / "prompt.safetensors").exists()


def test_options_are_read_as_written(
    weights: Weights, tiny_model: ModelFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run_folder(tmp_path / "run", official.coop(weights))
    for wrong in (["position"], ["=end"], ["position=end", "-O", "position=front"]):
        assert run(command(path, tiny_model, "-O", *wrong)) == 1
        assert "no NAME=VALUE" in capsys.readouterr().err


def test_images_of_the_user_are_compared_on(
    weights: Weights, tiny_model: ModelFiles, toy_data: Path, tmp_path: Path
) -> None:
    path = run_folder(tmp_path / "run", official.coop(weights))

    assert run(command(path, tiny_model, "--images", str(toy_data))) == 0

    saved = PromptCheckpoint.load(tmp_path / "prompt.safetensors")
    expected = reference_pixels(samples_of(toy_data), Preprocessing(image_size=16))
    np.testing.assert_array_equal(saved.tensors["reference.pixels"], expected)
    assert run(command(path, tiny_model, "--force", "--images", str(tmp_path / "run"))) == 1


@pytest.mark.parametrize("size", [16, 64, 224])
def test_drawn_pictures_differ_and_use_the_range(size: int) -> None:
    pictures = drawn_pictures(size)

    assert (pictures.shape, pictures.dtype) == ((8, 3, size, size), np.uint8)
    assert pictures.std(axis=(1, 2, 3)).min() > 20
    assert len({picture.tobytes() for picture in pictures}) == 8
    np.testing.assert_array_equal(pictures, drawn_pictures(size))
    steps = np.abs(np.diff(pictures.astype(int), axis=3)).max()
    assert steps <= 256 * 5 // (size - 1) + 2  # smooth


def test_context_of_dcp_can_be_frozen_at_once(
    weights: Weights,
    tiny_model: ModelFiles,
    tiny_config: ClipConfig,
    toy_data: Path,
    tmp_path: Path,
) -> None:
    path = run_folder(tmp_path / "run", official.cmpa(weights, tiny_config))

    assert run(command(path, tiny_model, "-O", "context=frozen", "--images", str(toy_data))) == 0

    tensors = PromptCheckpoint.load(tmp_path / "prompt.safetensors").tensors
    assert tensors["visual.prompts"].shape == (3, 4, 32)
    assert tensors["reference.per_sample_logits"].shape == (8, 4)
    assert (tensors["reference.logits"] != tensors["reference.per_sample_logits"]).any()
