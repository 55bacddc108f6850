"""`vlp train`: from the command line to a training run, with a progress bar."""

import shlex
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import Field, fields
from typing import Any, Literal, get_args, get_origin

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from vlp_deploy import embedded
from vlp_deploy.data.dataset import Subset
from vlp_deploy.errors import TrainingError
from vlp_train import command_options as option
from vlp_train.command_options import PrecisionName, SubsetName
from vlp_train.devices import Precision
from vlp_train.fit import Report, Step
from vlp_train.methods import METHODS
from vlp_train.parallel import StoppedElsewhereError, place
from vlp_train.request import Request
from vlp_train.schedule import Schedule
from vlp_train.training import Outcome
from vlp_train.training import train as run_training

TEMPLATES = "templates"  # the option behind --template
HELP_WIDTH = 76


def option_help() -> str:
    """Every method: what it learns, and its options with defaults, off its configuration."""
    lines = []
    for name, entry in METHODS.items():
        options = [field for field in fields(entry.config) if field.name != TEMPLATES]  # type: ignore[arg-type]
        lines += _wrapped(f"{name:<14}{entry.summary}", indent=14)
        if options:
            lines += _wrapped(" " * 14 + "-O " + ", ".join(map(_option, options)), indent=17)
    return "\n".join(lines)


def _wrapped(text: str, *, indent: int) -> list[str]:
    return textwrap.wrap(
        text,
        HELP_WIDTH,
        subsequent_indent=" " * indent,
        drop_whitespace=True,
        break_on_hyphens=False,
        break_long_words=False,
    )


def _option(field: Field[Any]) -> str:
    """NAME=DEFAULT, or NAME=ONE|OTHER for a choice, the default first."""
    if get_origin(field.type) is Literal:
        return f"{field.name}={'|'.join(get_args(field.type))}"
    given = "" if field.default in (None, "") else f"={str(field.default).lower()}"
    return shlex.quote(f"{field.name}{given}") if " " in given else f"{field.name}{given}"


# \b keeps lines as they are
EPILOG = f"\b\nMethods, what they learn, and their options:\n{option_help()}"


def train(
    data: option.Data,
    output: option.Output,
    method: option.Method = "coop",
    method_option: option.MethodOption = None,
    stage1: option.Stage1 = None,
    template: option.Template = None,
    resume: option.Resume = False,
    force: option.Force = False,
    subset: option.Subset = SubsetName.all,
    shots: option.Shots = None,
    seed: option.Seed = 1,
    evaluate: option.Evaluate = None,
    image_root: option.ImageRoot = None,
    classnames: option.Classnames = None,
    model: option.Model = "vlp-tiny",
    pretrained: option.Pretrained = None,
    epochs: option.Epochs = None,
    batch_size: option.BatchSize = None,
    accumulate: option.Accumulate = None,
    learning_rate: option.LearningRate = None,
    schedule: option.Schedule = None,
    warmup_epochs: option.WarmupEpochs = None,
    momentum: option.Momentum = None,
    weight_decay: option.WeightDecay = None,
    augment: option.Augment = True,
    flip: option.Flip = True,
    cache_features: option.CacheFeatures = False,
    views: option.Views = None,
    class_chunk: option.ClassChunk = None,
    device: option.Device = "auto",
    precision: option.Precision = PrecisionName.auto,
) -> None:
    """Tune a prompt on labelled images.

    A run that was interrupted, even by kill -9, goes on with the same command and --resume, and on
    a CPU with the same number of threads it ends in the same bits.

    In several processes: torchrun --nproc-per-node N -m vlp_deploy train … takes the same steps as
    one process; each works on its share of every batch, on a GPU of its own where there are any.
    """
    request = Request(
        data=data,
        output=output,
        method=method,
        method_options=parse_options(method_option or [], template or []),
        stage1=stage1,
        model=model,
        pretrained=pretrained,
        image_root=image_root,
        classnames=classnames,
        subset=msgspec.convert(subset.value, Subset),
        shots=shots,
        seed=seed,
        epochs=epochs,
        learning_rate=learning_rate,
        schedule=None if schedule is None else msgspec.convert(schedule.value, Schedule),
        warmup_epochs=warmup_epochs,
        momentum=momentum,
        weight_decay=weight_decay,
        batch_size=batch_size,
        accumulate=accumulate,
        augment=augment,
        flip=flip,
        cache_features=cache_features,
        views=views,
        class_chunk=class_chunk,
        device=device,
        precision=None if precision == "auto" else msgspec.convert(precision.value, Precision),
        evaluate=tuple(evaluate or ()),
        resume=resume,
        force=force,
    )
    rank, processes, _ = place()
    try:
        with progress_bar(shown=rank == 0) as report:
            outcome = run_training(request, report)
    except StoppedElsewhereError:
        time.sleep(1)  # the process that failed says why before torchrun ends it
        raise typer.Exit(code=1) from None
    except KeyboardInterrupt:
        if rank == 0:
            program = _program(processes)
            print(f"vlp: to go on: {program} {_resuming(sys.argv[1:])}", file=sys.stderr)
        raise
    if rank == 0:
        for line in summary(outcome):
            print(line)


def parse_options(assignments: list[str], templates: list[str]) -> dict[str, str | tuple[str, ...]]:
    """`NAME=VALUE` texts and templates as a method's options. Raises TrainingError."""
    options: dict[str, str | tuple[str, ...]] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or not name:
            raise TrainingError(f"-O {assignment!r} is no NAME=VALUE, such as -O context_tokens=4")
        options[name.strip().replace("-", "_")] = value
    if templates:
        options[TEMPLATES] = tuple(templates)
    return options


@contextmanager
def progress_bar(*, shown: bool = True) -> Iterator[Report]:
    """A bar on stderr that shows each step."""
    if not shown:
        yield lambda step: None
        return
    columns = (
        TextColumn("epoch {task.fields[epoch]}"),
        BarColumn(),
        TextColumn("loss {task.fields[loss]}  accuracy {task.fields[accuracy]}"),
        TextColumn("lr {task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = None

        def report(step: Step | str) -> None:
            nonlocal task
            if isinstance(step, str):
                progress.console.print(step)
                return
            if task is None:
                task = progress.add_task("", total=None, epoch="", loss="", accuracy="", rate="")
            progress.update(
                task,
                completed=(step.epoch - 1) * step.steps + step.step,
                total=step.epochs * step.steps,
                epoch=f"{step.epoch}/{step.epochs}",
                loss=f"{step.loss:.3f}",
                accuracy=f"{step.accuracy:.1%}",
                rate=f"{step.learning_rate:.1e}",
            )

        yield report


def summary(outcome: Outcome) -> list[str]:
    """What a run came to, line by line."""
    header, folder = outcome.checkpoint.header, outcome.path.parent
    lines = [f"{header.method} on {header.backbone.name}: {len(header.class_names)} classes"]
    images = header.preprocessing
    if header.backbone.name != embedded.MODEL_NAME:  # which local weights cannot tell
        lines.append(f"images: {images.image_size} pixels, mean {images.mean}, std {images.std}")
    if outcome.log:
        last = outcome.log[-1]
        lines.append(
            f"epoch {last.epoch}: training loss {last.loss:.3f}, accuracy {last.accuracy:.1%}"
        )
    lines += outcome.notes
    lines += [
        f"{name}: {accuracy.top1:.2%} of {accuracy.images} images right, {accuracy.classes} classes"
        for name, accuracy in outcome.metrics.items()
    ]
    if outcome.harmonic_mean is not None:
        lines.append(f"harmonic mean of base and new: {outcome.harmonic_mean:.2%}")
    lines.append(f"written: {outcome.path}")
    lines.append(f"next:    vlp export {folder} --engine onnx --output {folder}-bundle")
    return lines


def _program(processes: int) -> str:
    """What was started, as far as this process knows."""
    if processes == 1:
        return "vlp"
    return f"torchrun --nproc-per-node {processes} -m vlp_deploy"


def _resuming(arguments: list[str]) -> str:
    """The same command, made to go on."""
    kept = [argument for argument in arguments if argument not in ("--resume", "--force")]
    return shlex.join([*kept, "--resume"])
