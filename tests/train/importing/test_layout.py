"""A path at any level leads to the files of one model."""

from pathlib import Path

import pytest

from vlp_deploy.errors import CheckpointError
from vlp_train.importing.layout import find_files

PART = "image_encoder.transformer."


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_every_level_leads_to_the_same_file(tmp_path: Path) -> None:
    zoo = tmp_path / "weights" / "base"
    file = touch(zoo / "seed1" / "MultiModalPromptLearner" / "model.pth.tar-5")
    touch(zoo / "seed1" / "tensorboard" / "events")

    for path in (file, file.parent, file.parents[1], zoo, tmp_path):
        assert find_files(path) == (file,)


def test_several_runs_are_told_apart(tmp_path: Path) -> None:
    for seed in range(1, 9):
        touch(tmp_path / f"seed{seed}" / "VLPromptLearner" / "model.pth.tar-5")

    with pytest.raises(CheckpointError, match=r"8 trained models: seed1/.* and 2 more\. Give"):
        find_files(tmp_path)


def test_last_epoch_is_named_or_highest(tmp_path: Path) -> None:
    for epoch in (5, 10, 20):
        touch(tmp_path / f"model.pth.tar-{epoch}")
    best = touch(tmp_path / "model-best.pth.tar")

    assert find_files(tmp_path)[0].name == "model.pth.tar-20"
    (tmp_path / "checkpoint").write_text("model.pth.tar-10\n")
    assert find_files(tmp_path)[0].name == "model.pth.tar-10"
    assert find_files(tmp_path, epoch="5")[0].name == "model.pth.tar-5"
    assert find_files(tmp_path, epoch="best") == (best,)
    with pytest.raises(CheckpointError, match=r"no epoch 7\. Saved are: best, 5, 10, 20"):
        find_files(tmp_path, epoch="7")


@pytest.mark.parametrize("named", ["model.pth.tar-9", "../other", "", "\0", "."])
def test_a_misleading_checkpoint_file_is_passed_over(named: str, tmp_path: Path) -> None:
    file = touch(tmp_path / "run" / "model.pth.tar-5")
    touch(tmp_path / "other")
    (file.parent / "checkpoint").write_text(named)

    assert find_files(file.parent) == (file,)


def test_only_the_best_was_saved(tmp_path: Path) -> None:
    best = touch(tmp_path / "prompt_learner" / "model-best.pth.tar")

    assert find_files(tmp_path) == (best,)


def test_parts_of_dpt_are_found_from_any_of_them(tmp_path: Path) -> None:
    folders = ("prompt_learner", f"{PART}ctx_learner", f"{PART}extractor")
    files = {touch(tmp_path / "run" / folder / "model.pth.tar-60") for folder in folders}

    for path in (tmp_path, tmp_path / "run", *files, *(file.parent for file in files)):
        assert set(find_files(path)) == files
    for folder in folders:
        touch(tmp_path / "run" / folder / "model.pth.tar-100")
    assert {file.name for file in find_files(tmp_path)} == {"model.pth.tar-100"}
    assert set(find_files(next(iter(files)))) == files


def test_two_methods_in_one_folder_are_two_runs(tmp_path: Path) -> None:
    touch(tmp_path / "prompt_learner" / "model.pth.tar-50")
    inner = touch(tmp_path / "VLPromptLearner" / "model.pth.tar-5")

    with pytest.raises(CheckpointError, match="2 trained models"):
        find_files(tmp_path)
    assert find_files(inner.parent) == (inner,)


def test_first_stage_is_left_out(tmp_path: Path) -> None:
    first = touch(tmp_path / "stage1" / "prompt_learner" / "model.pth.tar-50")
    second = touch(tmp_path / "stage2" / "prompt_learner" / "model.pth.tar-20")

    for stage1 in (tmp_path / "stage1", first.parent, first):
        assert find_files(tmp_path, without=stage1) == (second,)


def test_a_renamed_file_is_taken(tmp_path: Path) -> None:
    file = touch(tmp_path / "coop.pth")

    assert find_files(file) == (file,)


def test_where_there_is_nothing_that_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no file or folder"):
        find_files(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=r"holds no model\.pth\.tar"):
        find_files(tmp_path)
    file = touch(tmp_path / "model.pth.tar-5")
    with pytest.raises(CheckpointError, match="names another file"):
        find_files(file, epoch="50")
