"""From a path at any level of an output folder to the checkpoint files of one training run.

    RUN/prompt_learner/model.pth.tar-50        one model, one file
    RUN/image_encoder.transformer.*/model…     DPT writes the parts of a model into sibling folders
    RUN/…/checkpoint                           names the last file

What the files hold is decided by their keys (`detect.py`); folders only say what belongs together.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from vlp_deploy.errors import CheckpointError
from vlp_train.importing.detect import DPT_PART

LAST, BEST = "checkpoint", "model-best.pth.tar"
MODEL_FILE = re.compile(r"model\.pth\.tar-(\d+)")
SHOWN = 6


def find_files(path: Path, *, epoch: str = "", without: Path | None = None) -> tuple[Path, ...]:
    """The files of one model: one, or DPT's two or three.

    `epoch` chooses among those that were saved: a number, or `best`; without it the last one.
    `without` is another run that is not meant, where `path` is above both.

    Raises CheckpointError where there is nothing, or more than one run.
    """
    if path.is_file():
        if epoch and epoch_name(path) != epoch:
            raise CheckpointError(f"-O epoch={epoch} names another file than {path}: leave one out")
        siblings = _siblings(path.parent)
        return (path, *(_choose(folder, epoch_name(path)) for folder in siblings))
    if not path.is_dir():
        raise CheckpointError(f"there is no file or folder {path}")
    folders = _model_folders(path, without)
    if not folders:
        raise CheckpointError(
            f"{path} holds no model.pth.tar-* at any level. Expected the output folder of one of "
            "the methods' official trainers"
        )
    chosen = [path, *_siblings(path)] if path in folders else _one_run(path, folders)
    return tuple(_choose(folder, epoch) for folder in chosen)


def _model_folders(path: Path, without: Path | None) -> list[Path]:
    """All folders at or under `path` that hold checkpoints."""
    excluded = without.resolve() if without else None
    found = {file.parent for file in path.rglob("model*.pth.tar*") if epoch_name(file)}
    return sorted(
        folder for folder in found if excluded is None or not _is_within(folder.resolve(), excluded)
    )


def _is_within(folder: Path, run: Path) -> bool:
    return run in (folder, *folder.parents) or folder in run.parents


def _one_run(path: Path, folders: Iterable[Path]) -> list[Path]:
    """The folders of the only model under `path`."""
    runs: defaultdict[Path, list[Path]] = defaultdict(list)
    for folder in folders:
        runs[folder.parent if _may_be_part(folder) else folder].append(folder)
    if len(runs) == 1:
        return next(iter(runs.values()))
    names = [str(run.relative_to(path)) for run in runs]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    raise CheckpointError(
        f"{path} holds {len(runs)} trained models: {', '.join(names[:SHOWN])}{more}. Give the "
        "folder of one of them"
    )


def _siblings(folder: Path) -> list[Path]:
    """The other folders of the same model."""
    if not _may_be_part(folder):
        return []
    others = {folder.parent / "prompt_learner", *folder.parent.glob(f"{DPT_PART}*")}
    return sorted(other for other in others - {folder} if _saved(other))


def _may_be_part(folder: Path) -> bool:
    return folder.name == "prompt_learner" or folder.name.startswith(DPT_PART)


def _saved(folder: Path) -> Mapping[str, Path]:
    """Epoch (or `best`) → file."""
    files = folder.iterdir() if folder.is_dir() else ()
    return {name: file for file in files if file.is_file() and (name := epoch_name(file))}


def epoch_name(file: Path) -> str:
    """What `-O epoch=` calls a file: its number, `best`, or nothing if it was renamed."""
    if match := MODEL_FILE.fullmatch(file.name):
        return match[1]
    return "best" if file.name == BEST else ""


def _choose(folder: Path, epoch: str) -> Path:
    saved = _saved(folder)
    if epoch in saved:
        return saved[epoch]
    if epoch:
        raise CheckpointError(
            f"{folder} has no epoch {epoch}. Saved are: {', '.join(sorted(saved, key=_age))}"
        )
    named = _named_last(folder)
    if named:
        return named
    return saved[max(saved, key=_age)]


def _age(epoch: str) -> tuple[int, int]:
    return (0, 0) if epoch == "best" else (1, int(epoch))


def _named_last(folder: Path) -> Path | None:
    """The file that Dassl's text file `checkpoint` names, if it is there."""
    try:
        name = (folder / LAST).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    file = folder / name
    return file if Path(name).name == name and name and file.is_file() else None
