"""One command goes on where it was interrupted, in every stage, and ends in the same weights."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vlp_deploy.cli import guarded
from vlp_deploy.errors import DataError, TrainingError
from vlp_train.pretrain import command, pipeline, targets
from vlp_train.pretrain.fetch import Inputs
from vlp_train.pretrain.image_tower import ImageRecipe
from vlp_train.pretrain.pipeline import pretrain
from vlp_train.pretrain.release import CONFIGURATION
from vlp_train.pretrain.release import main as release
from vlp_train.pretrain.state import TrainingState, read_state
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
        assert steps is None or read_state(broken / file).step == steps
        assert (broken / file).exists()
        assert not (broken / "weights.safetensors").exists()
    made = times(broken)
    assert run(inputs, broken) == whole
    assert made.items() < times(broken).items()  # nothing was made again


def times(folder: Path) -> dict[Path, int]:
    """When each file below a folder was written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_an_unfinished_run_is_refused_with_other_options_and_inputs(
    inputs: Inputs, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, TrainingState, "save")
        with pytest.raises(KeyboardInterrupt):
            run(inputs, output)
    made = times(output)
    with pytest.raises(TrainingError, match=r"with seed 0; this one has seed 1\. Give the same"):
        run(inputs, output, replace(IMAGES, seed=1))
    nouns = (inputs.wordnet / "index.noun").read_text()
    (inputs.wordnet / "index.noun").write_text("dog n 1 0 1 0 00000001\n")
    with pytest.raises(TrainingError, match="was made for other texts"):
        run(inputs, output)
    assert times(output) == made
    (inputs.wordnet / "index.noun").write_text(nouns)
    listed = output / "corpus" / "corpus.json"
    listed.write_text(listed.read_text().replace("dog-outline", "dog-renamed"))
    with pytest.raises(TrainingError, match=r"with data '\w+'; this one has data '\w+'\. Give the"):
        run(inputs, output)


def test_without_held_out_icons_nothing_is_trained(inputs: Inputs, tmp_path: Path) -> None:
    for prefix in COLOUR_SETS:
        content = {"prefix": prefix, "info": {}, "lastModified": 0, "icons": {}}
        (inputs.icons / "json" / f"{prefix}.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="has the name of a caption"):
        run(inputs, tmp_path / "run")
    assert not (tmp_path / "run" / "image.safetensors").exists()


def test_a_training_that_diverges_stops_and_keeps_an_earlier_step(
    inputs: Inputs, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match=r"the loss at step 2 is nan.*a lower --rate"):
        run(inputs, tmp_path / "run", replace(IMAGES, rate_share=1e30, checkpoint_steps=1))
    assert read_state(tmp_path / "run" / "image.safetensors").step == 1


@pytest.mark.parametrize("content", [b"", b"\x02\0\0\0\0\0\0\0{}"])
def test_what_is_no_state_is_told(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "state").write_bytes(content)  # nothing, and a file without metadata
    with pytest.raises(TrainingError, match=r"is not the state of a training: .* Delete it"):
        read_state(tmp_path / "state")


def test_unfinished_towers_are_released_as_averages(
    inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, broken, out = (tmp_path / name for name in ("whole", "broken", "out"))
    run(inputs, whole)
    arguments = ["--icons", str(inputs.icons), "--output", str(out), "--run"]
    stages = [  # behind each state that is saved
        (["--text", str(whole)], "image tower: average, text tower: parameter"),
        (["--text", str(whole)], "image tower: parameter, text tower: parameter"),
        ([], "image tower: parameter, text tower: average"),
    ]
    for options, told in stages:
        with pytest.MonkeyPatch.context() as patch:
            interrupt(patch, TrainingState, "save")
            with pytest.raises(KeyboardInterrupt):
                run(inputs, broken)
        if options:
            with pytest.raises(TrainingError, match=r"has no text tower yet.*with --text"):
                release([*arguments, str(broken)])
        release([*arguments, str(broken), *options])
        assert capsys.readouterr().out.startswith(told)
    release([*arguments, str(whole)])
    assert (out / "weights.safetensors").read_bytes() == (
        whole / "weights.safetensors"
    ).read_bytes()


def test_towers_of_different_targets_are_not_joined(inputs: Inputs, tmp_path: Path) -> None:
    run(inputs, tmp_path / "one")
    (inputs.wordnet / "index.noun").write_text("dog n 1 0 1 0 00000001\n")
    run(inputs, tmp_path / "other")
    options = ["--icons", str(inputs.icons), "--output", str(tmp_path / "out")]
    options += ["--run", str(tmp_path / "one"), "--text", str(tmp_path / "other")]
    with pytest.raises(TrainingError, match="their joint spaces differ"):
        release(options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--samples", "5"], "samples are 5; expected at least one batch, 1152"),
        (["--text-samples", "5"], "text samples are 5; expected at least one batch, 1024"),
        (["--rate", "nan"], "rate is nan; expected a number above 0"),
        (["--decay", "5"], "decay is 5.0; expected a share above 0, at most 1"),
        (["--threads", "0"], "argument --threads: got 0, expected a whole number above 0"),
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
