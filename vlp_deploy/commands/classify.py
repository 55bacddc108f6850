"""`vlp classify`: images and folders to a line of answer each, without PyTorch."""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from vlp_deploy.class_list import read_class_list
from vlp_deploy.classifier import BATCH_SIZE, Classifier, Failure, Prediction
from vlp_deploy.errors import DataError
from vlp_deploy.files import atomic_file
from vlp_deploy.find_images import ImageFinder
from vlp_deploy.results import WRITERS, ResultWriter


class Format(StrEnum):
    """How answers are written."""

    TABLE = "table"
    JSONL = "jsonl"
    CSV = "csv"
    PARQUET = "parquet"


def classify(
    images: Annotated[list[Path], typer.Argument(help="Images, and folders to search.")],
    classes: Annotated[
        Path | None,
        typer.Option(help="New classes: a UTF-8 file, one a line, synonyms separated by tabs."),
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="Bundle folder. Default: $VLP_BUNDLE, else the embedded.")
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Candidates to name for every image.")] = 5,
    format: Annotated[
        Format | None, typer.Option(help="Default: by the name of --output, else table.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="File to write instead of stdout; appears when complete. A pipe or a device is "
            "written as answers come."
        ),
    ] = None,
    exact_decode: Annotated[
        bool, typer.Option("--exact-decode", help="Decode JPEG in full; slower on photos.")
    ] = False,
    engine: Annotated[str, typer.Option(help="auto, onnx or fake.")] = "auto",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(min=0, help="0: the engine's own choice.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Images the engine gets at once.")] = (
        BATCH_SIZE
    ),
    template: Annotated[
        list[str] | None,
        typer.Option(
            help="Prompt with {} for the names in --classes; repeat it to average several."
        ),
    ] = None,
) -> int:
    """Classify images and print one line for each, in the order they were given.

    In folders every file counts that is named like an image or begins like one. Results go to
    stdout, the rest to stderr. Exit code 1 if an input could not be classified.
    """
    chosen = _format(format, output)
    if chosen == Format.PARQUET and output is None:
        raise typer.BadParameter("parquet is binary: name a file with --output")
    if template and classes is None:  # the bundle does not keep its classes' synonyms
        raise typer.BadParameter("--template is for new classes: name them with --classes")
    names = read_class_list(classes) if classes else None
    classifier = Classifier.load(bundle, engine, threads or None, device=device)
    if names is not None:
        with _status() as say:
            classifier = classifier.with_classes(
                names,
                template,
                progress=lambda done, total: say(f"{done:,} of {total:,} class texts"),
            )
    found = ImageFinder(images)
    answers = classifier.stream(found, top_k, batch_size, exact_decode=exact_decode)
    answers_scroll_by = output is None and sys.stdout.isatty()
    with _opened(output) as file, _status(shown=not answers_scroll_by) as say:
        done, failed = _write(answers, WRITERS[chosen](file), say)
        if not done:
            raise DataError(f"there are no images in {', '.join(map(str, images))}")
    _report(done, failed, found.left_out)
    return int(failed > 0)


def _format(format: Format | None, output: Path | None) -> Format:
    """What was asked for, else what the output's name says, else a table."""
    by_name = output.suffix.removeprefix(".").lower() if output else ""
    return format or (Format(by_name) if by_name in set(Format) else Format.TABLE)


@contextmanager
def _opened(output: Path | None) -> Iterator[BinaryIO]:
    """Where answers go: stdout, a pipe or device, or a file that appears when all went well."""
    if output is None or _is_stdout(output):
        yield sys.stdout.buffer
        return
    try:
        with (
            open(output, "wb")
            if output.exists() and not output.is_file()
            else atomic_file(Path(os.path.realpath(output)))
        ) as file:
            yield file
    except OSError as error:
        raise DataError(f"--output {output} cannot be written: {error.strerror}") from error


def _is_stdout(output: Path) -> bool:
    """Whether `output` is another name of stdout, /dev/stdout say, wherever that leads."""
    try:
        return os.path.samestat(os.stat(output), os.fstat(sys.stdout.fileno()))
    except (OSError, ValueError):  # not there yet, or stdout is not a real file
        return False


def _write(
    answers: Iterable[Prediction | Failure], writer: ResultWriter, say: Callable[[str], None]
) -> tuple[int, int]:
    """Write all answers; the numbers of inputs and of failures."""
    done = failed = 0
    started = time.perf_counter()
    for answer in answers:
        writer.write(answer)
        done += 1
        failed += isinstance(answer, Failure)
        rate = done / (time.perf_counter() - started)
        say(f"{done:,} images, {failed:,} failed, {rate:.1f} images/s")
    writer.close()
    return done, failed


@contextmanager
def _status(*, shown: bool = True) -> Iterator[Callable[[str], None]]:
    """A line on stderr that changes; none where nobody would see it."""
    if not (shown and sys.stderr.isatty()):
        yield lambda text: None
        return
    from rich.console import Console  # takes 50 ms, and only a terminal needs it

    with Console(stderr=True).status("starting") as status:
        yield status.update


def _report(done: int, failed: int, left_out: int) -> None:
    """What happened, on stderr, where it is not plain from the answers."""
    if failed or left_out:
        parts = [f"{done:,} inputs", f"{failed:,} failed"]
        if left_out:
            parts.append(f"{left_out:,} other files in the folders were left out")
        print(f"vlp: {', '.join(parts)}", file=sys.stderr)
