"""From the name of an output to the run that writes it: stdout, a pipe, or a file that stays."""

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from vlp_deploy.bulk.outputs.header import RunHeader
from vlp_deploy.bulk.outputs.run import Run
from vlp_deploy.errors import DataError
from vlp_deploy.files import atomic_file


@contextmanager
def opened_run(output: Path | None, header: RunHeader, *, width: int, force: bool) -> Iterator[Run]:
    """Where answers go; closed at the end, finished or not. Errors of writing name the file.

    `output` None is stdout; `width` is that of embeddings.
    """
    try:
        with ExitStack() as stack:
            if output is not None and _can_continue(output, header.format):
                run = Run.saved(Path(os.path.realpath(output)), header, width=width, force=force)
            else:
                file = stack.enter_context(_stream(output))
                run = Run.streamed(file, header, width=width, force=force)
            stack.callback(run.close)
            yield run
    except OSError as error:
        if output is None:  # a reader of stdout that went away, say
            raise
        raise DataError(f"--output {output} cannot be written: {error.strerror}") from error


def _can_continue(output: Path, format: str) -> bool:
    """Whether answers stay there and can be read again."""
    special = output.exists() and not output.is_file() and not output.is_dir()
    return format != "table" and not special and not _is_stdout(output)


@contextmanager
def _stream(output: Path | None) -> Iterator[BinaryIO]:
    """stdout, a pipe or device, or a file that appears when all went well."""
    if output is None or _is_stdout(output):
        yield sys.stdout.buffer
        return
    special = output.exists() and not output.is_file()
    with open(output, "wb") if special else atomic_file(Path(os.path.realpath(output))) as file:
        yield file


def _is_stdout(output: Path) -> bool:
    """Whether `output` is another name of stdout, /dev/stdout say, wherever that leads."""
    try:
        return os.path.samestat(os.stat(output), os.fstat(sys.stdout.fileno()))
    except (OSError, ValueError):  # not there yet, or stdout is not a real file
        return False
