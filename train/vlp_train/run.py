"""A training run as a folder: what it was asked to do, how far it is, and what came of it.

    prompt.safetensors   the prompt checkpoint; it exists when the run is complete, never before
    resume.safetensors   after every epoch: prompts, momentum, options and the log so far
    log.jsonl            one line an epoch, rewritten from resume.safetensors

Each file is replaced in one step, so a run killed at any moment stands at the end of an epoch.
"""

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_safetensors

from vlp_deploy.errors import TrainingError
from vlp_deploy.files import write_atomic
from vlp_deploy.formats.architecture import Record
from vlp_deploy.formats.checkpoint import RESUME_FILE, RUN_FILE

LOG_FILE = "log.jsonl"
SCHEMA_VERSION = 1

Arrays = Mapping[str, NDArray[Any]]


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Keep other processes from training in `folder`. The kernel unlocks it after a kill.

    Raises TrainingError if another one does, or if the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise TrainingError(f"{folder} cannot be used: {error.strerror}") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise TrainingError(f"another process is training in {folder}") from None
    else:
        yield
    finally:
        os.close(handle)


class Epoch(Record, frozen=True, kw_only=True):
    """One line of the log. `loss` and `accuracy` are means over the epoch's training images."""

    epoch: int  # 1 is the first
    loss: float
    accuracy: float
    learning_rate: float
    seconds: float


class Progress(Record, frozen=True, kw_only=True):
    """The header of resume.safetensors."""

    schema: int = SCHEMA_VERSION
    options: dict[str, Any]  # everything that influences the weights
    threads: int
    processes: int = 1
    scaler: dict[str, int | float]  # state of float16's loss scaling; empty elsewhere
    log: tuple[Epoch, ...]


class _Schema(msgspec.Struct):
    """All of a header that every version can read."""

    schema: int


class Run:
    """One training run's folder. Where others write it, too, only one of them `writes`."""

    def __init__(self, folder: Path, *, writes: bool = True) -> None:
        self.folder, self.writes = folder, writes
        self.checkpoint = folder / RUN_FILE
        self._resume, self._log = folder / RESUME_FILE, folder / LOG_FILE

    @property
    def finished(self) -> bool:
        """Whether the prompt checkpoint is there."""
        return self.checkpoint.is_file()

    @property
    def started(self) -> bool:
        """Whether there is an epoch to resume from."""
        return self._resume.is_file()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs from training in this folder."""
        with locked_folder(self.folder) if self.writes else nullcontext():
            yield

    def save(self, progress: Progress, tensors: Arrays) -> None:
        """Record the end of an epoch."""
        if not self.writes:
            return
        header = msgspec.json.encode(progress).decode()
        write_atomic(self._resume, to_safetensors(dict(tensors), metadata={"vlp": header}))
        self._write_log(progress)

    def load(self, options: Mapping[str, Any]) -> tuple[Progress, dict[str, NDArray[Any]]]:
        """Where the run stands, its log brought in line.

        Raises TrainingError if the file is damaged, or if the run was started with other options.
        """
        progress, tensors = self._read()
        self.check_options(progress.options, options)
        self._write_log(progress)
        return progress, tensors

    def check_options(self, started: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
        """Raise TrainingError naming the options that differ from those the run started with."""
        asked = msgspec.json.decode(msgspec.json.encode(asked))  # tuples become lists
        differences = [
            f"{name} was {started.get(name)!r}, now {asked.get(name)!r}"
            for name in sorted({*started, *asked})
            if started.get(name) != asked.get(name)
        ]
        if differences:
            raise TrainingError(
                f"{self.folder} was started with other options: {'; '.join(differences)}. "
                "Resume with the same ones, or start over with --force in place of --resume"
            )

    def clear(self) -> None:
        """Delete what a run wrote here, the result first; other files stay."""
        if not self.writes:
            return
        for path in (self.checkpoint, self._resume, self._log):
            path.unlink(missing_ok=True)

    def _read(self) -> tuple[Progress, dict[str, NDArray[np.float32]]]:
        try:
            with safe_open(self._resume, framework="numpy") as file:
                header = (file.metadata() or {}).get("vlp", "")
                tensors = {name: file.get_tensor(name) for name in list(file.keys())}
            schema = msgspec.json.decode(header, type=_Schema).schema
            if schema == SCHEMA_VERSION:
                return msgspec.json.decode(header, type=Progress), tensors
        except (SafetensorError, OSError, msgspec.DecodeError) as error:
            raise TrainingError(
                f"{self._resume} is damaged ({error}). Start over with --force"
            ) from error
        raise TrainingError(
            f"{self._resume} has schema {schema}; this version goes on from {SCHEMA_VERSION}. "
            "Use the vlp-deploy version that wrote it, or start over with --force"
        )

    def _write_log(self, progress: Progress) -> None:
        if not self.writes:
            return
        lines = (msgspec.json.encode(epoch) + b"\n" for epoch in progress.log)
        write_atomic(self._log, b"".join(lines))
