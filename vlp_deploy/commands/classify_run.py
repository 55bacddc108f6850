"""From a request to its answers, written: what `vlp classify` does once its options are read."""

import itertools
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from vlp_deploy import __version__
from vlp_deploy.answers import Answer
from vlp_deploy.bulk import ray_run
from vlp_deploy.bulk.inputs import Inputs, holds_images
from vlp_deploy.bulk.items import Input
from vlp_deploy.bulk.outputs.base import Companion
from vlp_deploy.bulk.outputs.gallery import Gallery
from vlp_deploy.bulk.outputs.header import Decoding, RunHeader
from vlp_deploy.bulk.outputs.opening import opened_run
from vlp_deploy.bulk.outputs.run import Run
from vlp_deploy.bulk.outputs.sorted_images import SortedImages
from vlp_deploy.bulk.progress import class_bar, progress_bar
from vlp_deploy.bulk.request import Request, Source
from vlp_deploy.bulk.watching import arrivals
from vlp_deploy.classes.class_list import ClassNames, name_key, read_class_list
from vlp_deploy.classes.coupled import fixed_batch
from vlp_deploy.classifier import Classifier
from vlp_deploy.errors import DataError
from vlp_deploy.question import Question

Answering = Callable[[Iterable[Input]], Iterator[Answer]]


def run_request(request: Request) -> int:
    """Answer for every image, and return the exit code. Raises VlpError."""
    targets = request.targets
    names = read_class_list(request.source.classes) if request.source.classes else None
    loaded = _load(request.source)
    classifier = _with_classes(loaded, names, request.source.templates)
    question = _question(request, classifier)
    _warn(request, loaded, names)
    inputs = Inputs(request.images)
    items = iter(()) if request.watch else _not_empty(inputs)
    header = _header(request, classifier, question, names)
    task = _task(request, classifier, question, names)
    here = partial(classifier.stream, question=question, read_threads=request.read_threads)
    width = classifier.bundle.manifest.backbone.config.embed_dim
    with opened_run(targets.output, header, width=width, force=targets.force) as run:
        run.companions += _companions(request, classifier)
        if request.watch:
            _watch(here, run, request.images)
        elif run.is_complete and not run.companions:
            return _report_complete(run)
        else:
            items = run.unanswered(items)
            shown = targets.output is not None or not sys.stdout.isatty()
            with _answering(here, request.ray, task) as answering:
                _write(answering(items), run, inputs, shown=shown)
    _report(run, inputs.tally.left_out)
    return int(run.failed > 0)


def _load(source: Source) -> Classifier:
    classifier = Classifier.load(source.bundle, source.engine, source.threads, device=source.device)
    if sys.stderr.isatty():  # every record of a run has it as well
        precision = classifier.bundle.manifest.precision
        print(f"vlp: {classifier.engine_version}, {precision}", file=sys.stderr)
    return classifier


def _with_classes(
    classifier: Classifier, names: ClassNames | None, templates: tuple[str, ...] | None
) -> Classifier:
    if names is None:
        return classifier
    with class_bar() as show:
        return classifier.with_classes(names, templates, progress=show)


def _question(request: Request, classifier: Classifier) -> Question:
    """What is asked of every image. Raises BundleError if the bundle does not know when to reject.

    That has to be found out before any output is touched.
    """
    if request.question.multi_label:
        _ = classifier.class_thresholds
    return replace(
        request.question,
        batch_size=fixed_batch(classifier.bundle.manifest.structure) or request.question.batch_size,
        reject_below=classifier.reject_below(request.rejection),
    )


def _warn(request: Request, loaded: Classifier, names: ClassNames | None) -> None:
    """Say what the user might not expect of this bundle, these classes, these inputs."""
    manifest, warnings = loaded.bundle.manifest, []
    known = {name_key(name) for name in loaded.classes}
    new = [label for label, *_ in names or () if name_key(label) not in known]
    if manifest.new_classes.warning and new:
        warnings.append(f"{len(new)} classes are new. {manifest.new_classes.warning}")
    if (batch := fixed_batch(manifest.structure)) is not None:
        warnings.append(
            f"every answer depends on the {batch - 1} other images of its batch: this bundle was "
            "exported with --context batch, to reproduce published numbers. Where images lack, "
            "those of the batch are taken again"
        )
    held = [path for path in request.images if holds_images(os.fspath(path))]
    if request.targets.symlink and held:
        warnings.append(f"images inside {held[0]} cannot be linked to: they are copied")
    for warning in warnings:
        print(f"vlp: warning: {warning}", file=sys.stderr)


def _not_empty(inputs: Inputs) -> Iterator[Input]:
    """The inputs. Raises DataError at once if there are none."""
    items = iter(inputs)
    if (first := next(items, None)) is None:
        raise DataError(f"there are no images in {', '.join(map(str, inputs.paths))}")
    return itertools.chain([first], items)


def _header(
    request: Request, classifier: Classifier, question: Question, names: ClassNames | None
) -> RunHeader:
    embeddings = request.targets.embeddings
    return RunHeader(
        tool=f"vlp-deploy {__version__}",
        bundle=classifier.bundle.digest,
        engine=classifier.engine,
        device=request.source.device,
        classes=names,
        templates=request.source.templates,
        inputs=tuple(map(_text, request.images)),
        format=request.targets.format,
        top_k=question.top_k,
        batch_size=question.batch_size,
        reject_below=question.reject_below,
        multi_label=question.multi_label,
        decoding=_decoding(classifier, question),
        embeddings=_text(embeddings) if embeddings else None,
    )


def _decoding(classifier: Classifier, question: Question) -> Decoding:
    preprocessing, limits = classifier.bundle.manifest.preprocessing, question.limits
    return Decoding(
        jpeg="exact" if question.exact_decode else "scaled",
        exif_transpose=preprocessing.exif_transpose,
        background=preprocessing.background,
        max_pixels=limits.max_pixels,
        max_bytes=limits.max_bytes,
        seconds=limits.seconds,
    )


def _text(path: Path) -> str:
    """A path for a record: what is not UTF-8 in it is replaced."""
    return os.fsencode(path).decode("utf-8", "replace")


def _task(
    request: Request, classifier: Classifier, question: Question, names: ClassNames | None
) -> ray_run.Task:
    return ray_run.Task(
        bundle=os.path.abspath(classifier.bundle.path),
        digest=classifier.bundle.digest,
        engine=classifier.engine,
        threads=request.source.threads or 1,
        device=request.source.device,
        classes=names,
        templates=request.source.templates,
        question=question,
    )


def _companions(request: Request, classifier: Classifier) -> Iterator[Companion]:
    """What is wanted to be made of the images themselves."""
    targets = request.targets
    for template, link in ((targets.copy_to, False), (targets.symlink, True)):
        if template:
            yield SortedImages(template, classifier.classes, link=link)
    if targets.html:
        title = f"Classified: {', '.join(map(_text, request.images[:3]))}"
        limits = request.question.limits
        yield Gallery(targets.html, limits=limits, title=title, force=targets.force)


@contextmanager
def _answering(here: Answering, ray: str | None, task: ray_run.Task) -> Iterator[Answering]:
    """What answers: this process, or a Ray cluster."""
    if ray is None:
        yield here
        return
    with ray_run.connected(ray) as package:
        yield partial(ray_run.answers, package, task=task)


def _watch(answering: Answering, run: Run, folders: Iterable[Path]) -> None:
    """Answer for every image that is there or arrives, until somebody interrupts."""
    try:
        for images in arrivals(list(folders), run.reopened()):
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
