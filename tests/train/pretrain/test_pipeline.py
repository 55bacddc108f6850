"""One command goes on where it was interrupted, in every stage, and ends in the same weights."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from vlp_deploy.cli import guarded
from vlp_deploy.errors import DataError, TrainingError
from vlp_train.pretrain import command, pipeline, targets
from vlp_train.pretrain.fetch import Inputs
from vlp_train.pretrain.image_tower import ImageRecipe
from vlp_train.pretrain.pipeline import pretrain
from vlp_train.pretrain.release import CONFIGURATION, finished
from vlp_train.pretrain.release import main as release
from vlp_train.pretrain.state import TrainingState
from vlp_train.pretrain.text_tower import TextRecipe
from vlp_train.pretrain.unseen import COLOUR_SETS
from vlp_train.run import locked_folder

IMAGES = ImageRecipe(samples=16, batch=4, part=2, negatives=4, warmup_steps=1, checkpoint_steps=2)
TEXTS = TextRecipe(samples=16, batch=4, warmup_steps=1, checkpoint_steps=2)
SMALL = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 64, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
# offset, lexicographer file, lemma: animals and food
NOUNS = ((1, 5, "dog"), (2, 13, "cherry"), (3, 5, "bear"), (4, 13, "bread"))


def embedded(texts: list[str]) -> Tensor:
    """What stands in for the teacher: unit vectors (N, 384), a function of each text."""
    rows = [np.random.default_rng(list(text.encode())).standard_normal(384) for text in texts]
    return F.normalize(torch.tensor(np.stack(rows), dtype=torch.float32), dim=1)


@pytest.fixture
def inputs(icons: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Inputs:
    """Three small packages, a small CLIP and no teacher."""
    for name, value in SMALL.items():
        monkeypatch.setitem(CONFIGURATION, name, value)
    monkeypatch.setattr(targets, "embed", embedded)
    for prefix in COLOUR_SETS:
        body = '<circle cx="12" cy="12" r="9" fill="#2a2"/>'
        content: dict[str, Any] = {"icons": {"dog-1": {"body": body}, "cherry": {"body": body}}}
        content |= {"prefix": prefix, "info": {}, "lastModified": 0, "width": 24, "height": 24}
        (icons / "json" / f"{prefix}.json").write_text(json.dumps(content))
    nouns, art = tmp_path / "nouns", tmp_path / "art"
    nouns.mkdir()
    (art / "usr/share/openclipart/svg").mkdir(parents=True)
    senses = [f"{offset:08} {file:02} n 01 {lemma} 0 000 | gloss" for offset, file, lemma in NOUNS]
    index = [f"{lemma} n 1 0 1 0 {offset:08}" for offset, _, lemma in NOUNS]
    (nouns / "data.noun").write_text("\n".join(senses) + "\n")
    (nouns / "index.noun").write_text("\n".join(index) + "\n")
    return Inputs(icons=icons, openclipart=art, wordnet=nouns)


def run(inputs: Inputs, output: Path, images: ImageRecipe = IMAGES) -> bytes:
    pretrain(inputs, output, image_recipe=images, text_recipe=TEXTS, threads=1)
    return (output / "weights.safetensors").read_bytes()


def interrupt(monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> None:
    """Interrupt when a function has done its work, as Ctrl-C may."""
    original = getattr(owner, name)

    def interrupting(*arguments: Any, **options: Any) -> None:
        original(*arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, name, interrupting)


def steps_of(checkpoint: Path) -> int:
    with safe_open(checkpoint, framework="pt") as file:
        return int(file.metadata()["step"])


def test_a_run_interrupted_in_every_stage_ends_in_the_same_weights(
    inputs: Inputs, tmp_path: Path
) -> None:
    whole = run(inputs, tmp_path / "whole")
    broken = tmp_path / "broken"
    # function -> the files it is interrupted behind, and the steps that a training's file holds
    stages = [
        (pipeline, "load_corpus", "corpus/corpus.json", None),
        (pipeline, "make_targets", "targets.safetensors", None),
        (TrainingState, "save", "image.safetensors", 2),
        (TrainingState, "save", "image.safetensors", 4),
        (TrainingState, "save", "text.safetensors", 2),
        (TrainingState, "save", "text.safetensors", 4),
        (pipeline, "scale_of", "text.safetensors", 4),
    ]
    for owner, name, file, steps in stages:
        with pytest.MonkeyPatch.context() as patch:
            interrupt(patch, owner, name)
            with pytest.raises(KeyboardInterrupt):
                run(inputs, broken)
        assert steps is None or steps_of(broken / file) == steps
        assert (broken / file).exists()
        assert not (broken / "weights.safetensors").exists()
    made = {path: path.stat().st_mtime_ns for path in broken.rglob("*") if path.is_file()}
    assert run(inputs, broken) == whole
    assert all(path.stat().st_mtime_ns == time for path, time in made.items())  # nothing again


def test_an_unfinished_run_is_refused_with_other_options_and_inputs(
    inputs: Inputs, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, TrainingState, "save")
        with pytest.raises(KeyboardInterrupt):
            run(inputs, tmp_path / "run")
    kept = (tmp_path / "run" / "image.safetensors").read_bytes()
    with pytest.raises(TrainingError, match=r"with seed 0; this one has seed 1\. Give the same"):
        run(inputs, tmp_path / "run", replace(IMAGES, seed=1))
    (inputs.wordnet / "index.noun").write_text("dog n 1 0 1 0 00000001\n")
    with pytest.raises(TrainingError, match=r"with data '\w+'; this one has data '\w+'\. Give the"):
        run(inputs, tmp_path / "run")
    assert (tmp_path / "run" / "image.safetensors").read_bytes() == kept


def test_without_held_out_icons_nothing_is_trained(inputs: Inputs, tmp_path: Path) -> None:
    for prefix in COLOUR_SETS:
        content = {"prefix": prefix, "info": {}, "lastModified": 0, "icons": {}}
        (inputs.icons / "json" / f"{prefix}.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="has the name of a caption"):
        run(inputs, tmp_path / "run")
    assert not (tmp_path / "run" / "image.safetensors").exists()


def test_a_training_that_diverges_keeps_its_last_good_step(inputs: Inputs, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"the loss at step \d+ is nan.*a lower --rate"):
        run(inputs, tmp_path / "run", replace(IMAGES, rate_share=1e30, checkpoint_steps=1))
    assert not finished(tmp_path / "run" / "image.safetensors")


def test_an_unfinished_run_is_released_as_an_average(
    inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, broken, out = (tmp_path / name for name in ("whole", "broken", "out"))
    run(inputs, whole)
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, TrainingState, "save")
        with pytest.raises(KeyboardInterrupt):
            run(inputs, broken)
    arguments = ["--run", str(broken), "--icons", str(inputs.icons), "--output", str(out)]
    with pytest.raises(TrainingError, match=r"has no text tower yet.*with --text"):
        release(arguments)
    release([*arguments, "--text", str(whole)])
    assert capsys.readouterr().out.startswith("average weights, logit scale ")
    release(["--run", str(whole), "--icons", str(inputs.icons), "--output", str(out)])
    assert capsys.readouterr().out.startswith("parameter weights, ")
    assert (out / "weights.safetensors").read_bytes() == (
        whole / "weights.safetensors"
    ).read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--samples", "5"], "samples is 5; expected at least one batch, 1152"),
        (["--text-samples", "5"], "samples is 5; expected at least one batch, 1024"),
        (["--rate", "nan"], "rate is nan; expected a number above 0"),
        (["--decay", "5"], "decay is 5.0; expected a share above 0, at most 1"),
        (["--threads", "0"], "argument --threads: got 0, expected at least 1"),
    ],
)
def test_impossible_options_are_refused_before_anything_is_fetched(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        command.main(["--output", str(tmp_path / "run"), *options])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("missing", "told"), [("resvg_py", "resvg-py"), ("scipy", "scipy")])
def test_a_missing_package_is_told(
    missing: str, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vlp_train.pretrain.__main__ import main

    def without(target: str) -> object:
        raise ModuleNotFoundError(name=missing)

    monkeypatch.setattr("vlp_deploy.extras.import_module", without)
    assert guarded(main) == 3
    expected = f"pre-training needs {told}. Install it with: pip install 'vlp-deploy[pretrain]'"
    assert expected in capsys.readouterr().err


def test_a_folder_takes_one_run_at_a_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: object())
    with locked_folder(tmp_path):
        assert guarded(lambda: command.main(["--output", str(tmp_path)])) == 1
    assert "another process is training in" in capsys.readouterr().err
