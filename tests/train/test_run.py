"""The run folder: one writer, no torn files, no resuming with other options."""

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from vlp_deploy.errors import TrainingError
from vlp_train.run import Epoch, Progress, Run

OPTIONS = {"seed": 1, "learning_rate": 0.002, "templates": ("a {}.",)}
TENSORS = {"prompt.context": np.arange(6, dtype=np.float32).reshape(1, 2, 3)}


def progress(epochs: int) -> Progress:
    log = tuple(
        Epoch(epoch=e, loss=1 / e, accuracy=0.5, learning_rate=1e-5, seconds=0.1)
        for e in range(1, epochs + 1)
    )
    return Progress(options=dict(OPTIONS), threads=1, scaler={}, log=log)


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.save(progress(3), TENSORS)

    loaded, tensors = run.load(OPTIONS)

    assert loaded.log == progress(3).log
    assert np.array_equal(tensors["prompt.context"], TENSORS["prompt.context"])


def test_the_log_has_one_line_an_epoch(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    for epochs in (1, 2, 3):
        run.save(progress(epochs), TENSORS)

    lines = (tmp_path / "run/log.jsonl").read_text().splitlines()

    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]
    assert json.loads(lines[1])["loss"] == 0.5


@pytest.mark.parametrize("left_behind", ['{"epoch":1}\n{"epoch":2}\n{"epoch":3}\n{"ep', ""])
def test_a_log_that_is_ahead_or_behind_is_mended_by_loading(
    tmp_path: Path, left_behind: str
) -> None:
    run = Run(tmp_path / "run")
    run.save(progress(2), TENSORS)
    (tmp_path / "run/log.jsonl").write_text(left_behind)

    run.load(OPTIONS)

    lines = (tmp_path / "run/log.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]


def test_other_options_are_refused_and_named(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.save(progress(1), TENSORS)

    with pytest.raises(TrainingError) as caught:
        run.load({**OPTIONS, "seed": 2, "flip": True})

    assert "flip was None, now True; seed was 1, now 2" in str(caught.value)
    assert "--force" in str(caught.value)
    assert "learning_rate" not in str(caught.value)


@pytest.mark.parametrize("keep", [0, 7, 100])
def test_a_damaged_resume_file_is_refused(tmp_path: Path, keep: int) -> None:
    run = Run(tmp_path / "run")
    run.save(progress(1), TENSORS)
    content = (tmp_path / "run/resume.safetensors").read_bytes()
    (tmp_path / "run/resume.safetensors").write_bytes(content[:keep])

    with pytest.raises(TrainingError, match="is damaged"):
        run.load(OPTIONS)


def test_a_resume_file_of_another_schema_is_refused(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.save(msgspec.structs.replace(progress(1), schema=99), TENSORS)

    with pytest.raises(TrainingError, match=r"has schema 99; this version goes on from 1"):
        run.load(OPTIONS)


def test_a_folder_serves_one_process_at_a_time(tmp_path: Path) -> None:
    with (
        Run(tmp_path / "run").locked(),
        pytest.raises(TrainingError, match="another process is training"),
        Run(tmp_path / "run").locked(),
    ):
        pass

    with Run(tmp_path / "run").locked():
        pass  # the first one has let go


def test_clearing_leaves_other_files_alone(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.save(progress(1), TENSORS)
    (tmp_path / "notes.txt").write_text("mine")

    run.clear()

    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_folder_that_is_a_file_is_explained(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")

    with pytest.raises(TrainingError, match="cannot be used"), Run(tmp_path / "run").locked():
        pass
