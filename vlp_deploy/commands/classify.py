"""`vlp classify`: pictures from files, archives and tables to a line of answer each, torch-free."""

import itertools
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from vlp_deploy import __version__
from vlp_deploy.answers import Answer
from vlp_deploy.bulk import ray_run
from vlp_deploy.bulk.inputs import Inputs
from vlp_deploy.bulk.items import Input
from vlp_deploy.bulk.outputs.embeddings import EMBEDDING_SUFFIXES
from vlp_deploy.bulk.outputs.gallery import Gallery
from vlp_deploy.bulk.outputs.header import Decoding, RunHeader
from vlp_deploy.bulk.outputs.run import Run
from vlp_deploy.bulk.outputs.sorted_images import LABEL, SortedImages, searched_around
from vlp_deploy.bulk.progress import progress_bar, status
from vlp_deploy.bulk.reading import READ_THREADS
from vlp_deploy.bulk.watching import arrivals
from vlp_deploy.classes.class_list import ClassNames, name_key, read_class_list
from vlp_deploy.classifier import BATCH_SIZE, Classifier
from vlp_deploy.errors import DataError
from vlp_deploy.files import atomic_file
from vlp_deploy.images.limits import MAX_BYTES, MAX_PIXELS, SECONDS, Limits

MEGABYTE = 1_000_000
RESULTS, SPEED, LIMITS = "Where results go", "Engine and speed", "Limits of one file"
Answering = Callable[[Iterable[Input]], Iterator[Answer]]


class Format(StrEnum):
    """How answers are written."""

    TABLE = "table"
    JSONL = "jsonl"
    CSV = "csv"
    PARQUET = "parquet"


def classify(
    images: Annotated[
        list[Path],
        typer.Argument(
            help="Images, folders to search, .tar and .zip archives, .parquet tables; - for a list "
            "of paths on stdin."
        ),
    ],
    classes: Annotated[
        Path | None,
        typer.Option(help="New classes: a UTF-8 file, one a line, synonyms separated by tabs."),
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="Bundle folder. Default: $VLP_BUNDLE, else the embedded.")
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Candidates to name for every image.")] = 5,
    format: Annotated[
        Format | None,
        typer.Option(rich_help_panel=RESULTS, help="Default: by the name of --output, else table."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=RESULTS,
            help="Write here instead of to stdout. A .jsonl or .csv file or a .parquet folder that "
            "was left unfinished is continued by typing the same command again.",
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force", rich_help_panel=RESULTS, help="Begin --output and --embeddings anew."
        ),
    ] = False,
    embeddings: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=RESULTS,
            help="Also write image embeddings: .npy, or .parquet for a folder of parts.",
        ),
    ] = None,
    copy_to: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=RESULTS,
            metavar="DIR/{label}",
            help="Also copy every image into the folder of its label. Nothing is replaced.",
        ),
    ] = None,
    symlink: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=RESULTS,
            metavar="DIR/{label}",
            help="The same with symbolic links in place of copies.",
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=RESULTS,
            help="At the end, also write a page of thumbnails by label, to look at offline.",
        ),
    ] = None,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            help="Classify what is in the folders and then what arrives there, until Ctrl-C.",
        ),
    ] = False,
    exact_decode: Annotated[
        bool,
        typer.Option(
            "--exact-decode", rich_help_panel=SPEED, help="Decode JPEG in full; slower on photos."
        ),
    ] = False,
    engine: Annotated[
        str, typer.Option(rich_help_panel=SPEED, help="auto, onnx or fake.")
    ] = "auto",
    device: Annotated[str, typer.Option(rich_help_panel=SPEED, help="cpu or cuda.")] = "cpu",
    threads: Annotated[
        int, typer.Option(min=0, rich_help_panel=SPEED, help="0: the engine's own choice.")
    ] = 0,
    read_threads: Annotated[
        int, typer.Option(min=1, rich_help_panel=SPEED, help="Threads that read images.")
    ] = (READ_THREADS),
    batch_size: Annotated[
        int, typer.Option(min=1, rich_help_panel=SPEED, help="Images the engine gets at once.")
    ] = (BATCH_SIZE),
    ray: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=SPEED,
            metavar="local|ADDRESS",
            help="Let a Ray cluster classify: one made here, or the one at the address.",
        ),
    ] = None,
    template: Annotated[
        list[str] | None,
        typer.Option(
            help="Prompt with {} for the names in --classes; repeat it to average several."
        ),
    ] = None,
    max_pixels: Annotated[
        int, typer.Option(min=1, rich_help_panel=LIMITS, help="An image with more is an error.")
    ] = MAX_PIXELS,
    max_memory: Annotated[
        int,
        typer.Option(
            min=1,
            rich_help_panel=LIMITS,
            help="Megabytes that decoding may take, of all images at once.",
        ),
    ] = MAX_BYTES // MEGABYTE,
    timeout: Annotated[
        float,
        typer.Option(
            min=0, rich_help_panel=LIMITS, help="Seconds to read an image, 0 for any time."
        ),
    ] = SECONDS,
) -> int:
    """Classify images and give one line for each, in the order they were named.

    In folders every file counts that is named like an image or begins like one. Results go to
    stdout, the rest to stderr. Exit code 1 if an input could not be classified.
    """
    chosen = _format(format, output)
    _check(chosen, output, embeddings, template_alone=bool(template) and classes is None)
    _check_sorting(images, copy_to, symlink)
    if watch:
        _check_watch(images, chosen, embeddings, ray)
    limits = Limits(max_pixels=max_pixels, max_bytes=max_memory * MEGABYTE, seconds=timeout or None)
    names = read_class_list(classes) if classes else None
    loaded = Classifier.load(bundle, engine, threads or None, device=device)
    classifier = _with_classes(loaded, names, template)
    _warn_of_new_classes(loaded, names)
    inputs = Inputs(images)
    items = iter(()) if watch else _not_empty(inputs)
    header = RunHeader(
        tool=f"vlp-deploy {__version__}",
        bundle=classifier.bundle.digest,
        engine=classifier.engine,
        device=device,
        classes=tuple(map(tuple, names)) if names else None,
        templates=tuple(template) if template else None,
        inputs=tuple(map(_text, images)),
        format=chosen,
        top_k=top_k,
        batch_size=batch_size,
        decoding=_decoding(classifier, limits, exact_decode=exact_decode),
        embeddings=_text(embeddings) if embeddings else None,
    )
    task = ray_run.Task(
        bundle=os.path.abspath(classifier.bundle.path),
        digest=classifier.bundle.digest,
        engine=engine,
        threads=threads or 1,
        device=device,
        classes=names,
        templates=header.templates,
        top_k=top_k,
        batch_size=batch_size,
        exact_decode=exact_decode,
        limits=limits,
        with_embeddings=embeddings is not None,
    )
    here = partial(ray_run.answers_here, classifier, task=task, read_threads=read_threads)
    width = classifier.bundle.manifest.backbone.config.embed_dim
    with _opened(output, embeddings, header, width=width, force=force) as run:
        run.companions += _sorted(classifier, copy_to, symlink)
        if html:
            title = f"Classified: {', '.join(header.inputs[:3])}"
            run.companions.append(Gallery(html, limits=limits, title=title, force=force))
        if watch:
            _watch(here, run, images)
        elif run.is_complete and not run.companions:
            return _report_complete(run)
        else:
            items = run.unanswered(items)
            shown = output is not None or not sys.stdout.isatty()
            with _answering(here, ray, task) as answering:
                _write(answering(items), run, inputs, shown=shown)
    _report(run, inputs.tally.left_out)
    return int(run.failed > 0)


def _format(format: Format | None, output: Path | None) -> Format:
    """What was asked for, else what the output's name says, else a table."""
    by_name = output.suffix.removeprefix(".").lower() if output else ""
    return format or (Format(by_name) if by_name in set(Format) else Format.TABLE)


def _check(
    format: Format, output: Path | None, embeddings: Path | None, *, template_alone: bool
) -> None:
    """Raise for options that do not go together."""
    if format == Format.PARQUET and output is None:
        raise typer.BadParameter("parquet is a folder of parts: name it with --output")
    if template_alone:  # the bundle does not keep its classes' synonyms
        raise typer.BadParameter("--template is for new classes: name them with --classes")
    if embeddings and embeddings.suffix not in EMBEDDING_SUFFIXES:
        raise typer.BadParameter(
            f"--embeddings {embeddings}: expected a name in {' or '.join(EMBEDDING_SUFFIXES)}"
        )


def _check_sorting(images: list[Path], *templates: str | None) -> None:
    """Raise for folders without a label, or whose images would be found and sorted again."""
    for template in filter(None, templates):
        if template.count(LABEL) != 1:
            raise typer.BadParameter(f"{template}: expected a folder with {LABEL} in it, once")
        if (searched := searched_around(template, images)) is not None:
            raise typer.BadParameter(f"{template} lies in {searched}, which is searched for images")


def _check_watch(images: list[Path], format: Format, *others: object) -> None:
    """Raise for what cannot be watched, or written in the order in which files arrive."""
    if absent := [str(path) for path in images if not path.is_dir()]:
        raise typer.BadParameter(f"--watch is for folders; {absent[0]} is none")
    if format == Format.PARQUET or any(others):
        raise typer.BadParameter("--watch goes with lines only: no parquet, --embeddings or --ray")


def _with_classes(
    classifier: Classifier, names: ClassNames | None, templates: list[str] | None
) -> Classifier:
    if names is None:
        return classifier
    with status() as say:
        return classifier.with_classes(
            names,
            templates,
            progress=lambda done, total: say(f"{done:,} of {total:,} class texts"),
        )


def _warn_of_new_classes(loaded: Classifier, names: ClassNames | None) -> None:
    """Say what the bundle's method is known for on classes that it was not trained on."""
    known = {name_key(name) for name in loaded.classes}
    warning = loaded.bundle.manifest.new_classes.warning
    new = [label for label, *_ in names or () if name_key(label) not in known]
    if warning and new:
        print(f"vlp: warning: {len(new)} classes are new. {warning}", file=sys.stderr)


def _not_empty(inputs: Inputs) -> Iterator[Input]:
    """The inputs. Raises DataError at once if there are none."""
    items = iter(inputs)
    if (first := next(items, None)) is None:
        raise DataError(f"there are no images in {', '.join(map(str, inputs.paths))}")
    return itertools.chain([first], items)


def _decoding(classifier: Classifier, limits: Limits, *, exact_decode: bool) -> Decoding:
    preprocessing = classifier.bundle.manifest.preprocessing
    return Decoding(
        jpeg="exact" if exact_decode else "scaled",
        exif_transpose=preprocessing.exif_transpose,
        background=preprocessing.background,
        max_pixels=limits.max_pixels,
        max_bytes=limits.max_bytes,
        seconds=limits.seconds,
    )


def _text(path: Path) -> str:
    """A path for a record: what is not UTF-8 in it is replaced."""
    return os.fsencode(path).decode("utf-8", "replace")


@contextmanager
def _opened(
    output: Path | None, embeddings: Path | None, header: RunHeader, *, width: int, force: bool
) -> Iterator[Run]:
    """Where answers go; closed at the end, finished or not. Errors of writing name the file."""
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
    return format != Format.TABLE and not special and not _is_stdout(output)


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


def _sorted(
    classifier: Classifier, copy_to: str | None, symlink: str | None
) -> Iterator[SortedImages]:
    """What sorts images into folders, if it is wanted."""
    for template, link in ((copy_to, False), (symlink, True)):
        if template:
            yield SortedImages(template, classifier.classes, link=link)


@contextmanager
def _answering(here: Answering, ray: str | None, task: ray_run.Task) -> Iterator[Answering]:
    """What answers: this process, or a Ray cluster."""
    if ray is None:
        yield here
        return
    with ray_run.connected(ray) as package:
        yield partial(ray_run.answers, package, task=task)


def _watch(answering: Answering, run: Run, folders: list[Path]) -> None:
    """Answer for every image that is there or arrives, until somebody interrupts."""
    try:
        for images in arrivals(folders, run.reopened()):
            for answer in answering(run.remembered(iter(images))):
                run.write(answer)
    except KeyboardInterrupt:
        run.finish()


def _write(answers: Iterator[Answer], run: Run, inputs: Inputs, *, shown: bool) -> None:
    """Write all answers, or as many as there are when somebody interrupts."""
    try:
        with progress_bar(inputs.count, begun=run.rows, shown=shown) as show:
            for answer in answers:
                run.write(answer)
                show(run.rows, run.failed)
    except KeyboardInterrupt:
        if run.can_continue:
            text = f"vlp: {run.rows:,} inputs are answered; the same command goes on from there"
            print(text, file=sys.stderr)
        raise
    run.finish()


def _report(run: Run, left_out: int) -> None:
    """What happened, on stderr, where it is not plain from the answers."""
    parts = [f"{run.rows:,} inputs", f"{run.failed:,} failed"]
    if run.begun:
        parts.append(f"{run.begun:,} were answered before")
    if left_out:
        parts.append(f"{left_out:,} other files in the folders were left out")
    if run.failed or len(parts) > 2:
        print(f"vlp: {', '.join(parts)}", file=sys.stderr)


def _report_complete(run: Run) -> int:
    print(
        f"vlp: the output is complete already: {run.rows:,} inputs, {run.failed:,} failed;"
        " --force begins anew",
        file=sys.stderr,
    )
    return int(run.failed > 0)
