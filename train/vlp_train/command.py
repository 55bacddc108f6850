"""`vlp train`: from the command line to a training run, with a progress bar."""

import shlex
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import Field, fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from vlp_deploy import embedded
from vlp_deploy.data.dataset import Subset
from vlp_deploy.errors import TrainingError
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

DATA, MODEL = "Data", "Model"
SCHEDULE, IMAGES, MEMORY = "Schedule", "Images", "Memory and precision"


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


class PrecisionName(StrEnum):
    """What `--precision` takes."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class SubsetName(StrEnum):
    """What `--subset` takes."""

    all = "all"
    base = "base"
    new = "new"


class ScheduleName(StrEnum):
    """What `--schedule` takes."""

    cosine = "cosine"
    constant = "constant"


def train(
    data: Annotated[
        Path,
        typer.Argument(
            help="Labelled images: a folder of class folders, a .csv/.jsonl/.parquet list with "
            "path and label, or CoOp's split_zhou_*.json."
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(help="The run's folder: prompt.safetensors, resume.safetensors, log.jsonl."),
    ],
    method: Annotated[
        str, typer.Option(help="What is learned, and how; all methods are listed below.")
    ] = "coop",
    option: Annotated[
        list[str] | None,
        typer.Option(
            "-O",
            "--option",
            metavar="NAME=VALUE",
            help="A hyper-parameter of the method, repeatable, such as -O context_tokens=4; listed "
            "below.",
        ),
    ] = None,
    stage1: Annotated[
        Path | None,
        typer.Option(
            "--stage1",
            help="For dpc: the run or checkpoint of the prompt that a second one is tuned beside.",
        ),
    ] = None,
    template: Annotated[
        list[str] | None,
        typer.Option(
            help="Sentence around the class name, {}, for methods whose text is not learned "
            "(zeroshot, vpt). Repeat it to average several."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run, or start it.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Delete a run that is in the way.")
    ] = False,
    subset: Annotated[
        SubsetName,
        typer.Option(
            rich_help_panel=DATA,
            help="Classes to train on. base: the first half by label, rounded up; the accuracy on "
            "it, on the new half and their harmonic mean are told. new: the other half.",
        ),
    ] = SubsetName.all,
    shots: Annotated[
        int | None,
        typer.Option(
            rich_help_panel=DATA,
            help="Training images a class, drawn with --seed. Default: all of them.",
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            rich_help_panel=DATA, help="Decides the shots, the initial prompts, order and crops."
        ),
    ] = 1,
    evaluate: Annotated[
        list[Path] | None,
        typer.Option(
            rich_help_panel=DATA,
            help="More data to measure the trained prompt on, repeatable; its classes may be new. "
            "With --resume also where the run is finished.",
        ),
    ] = None,
    image_root: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=DATA, help="Where the paths of a list start. Default: its folder."
        ),
    ] = None,
    classnames: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=DATA,
            help="File with a class name for every folder name (n01440764 tench).",
        ),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            rich_help_panel=MODEL,
            help="vlp-tiny (embedded), an open_clip name such as ViT-B-16-quickgelu, or an "
            "open_clip .json configuration.",
        ),
    ] = "vlp-tiny",
    pretrained: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=MODEL,
            help="Its weights: an open_clip tag such as openai, or a local file.",
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            rich_help_panel=SCHEDULE, help="Default: the method's own, by the number of shots."
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            rich_help_panel=SCHEDULE,
            help="Images a forward pass, over all processes. Default: the method's own.",
        ),
    ] = None,
    accumulate: Annotated[
        int | None,
        typer.Option(
            rich_help_panel=SCHEDULE,
            help="Batches whose gradients make one step: what N times the batch size does, in the "
            "memory of one. Losses that couple the images of a batch (dpt, dcp, dpc) still see one "
            "batch at a time. Default: 1.",
        ),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(rich_help_panel=SCHEDULE, help="At its peak. Default: the method's own."),
    ] = None,
    schedule: Annotated[
        ScheduleName | None,
        typer.Option(
            rich_help_panel=SCHEDULE,
            help="How the rate goes on after the warm-up, epoch by epoch. Default: the method's "
            "own, which is cosine.",
        ),
    ] = None,
    warmup_epochs: Annotated[
        int | None,
        typer.Option(
            rich_help_panel=SCHEDULE,
            help="Epochs at a rate of 1e-5 before the peak. Default: 1, or 0 of one epoch.",
        ),
    ] = None,
    momentum: Annotated[
        float | None, typer.Option(rich_help_panel=SCHEDULE, help="Of SGD. Default: 0.9.")
    ] = None,
    weight_decay: Annotated[
        float | None,
        typer.Option(rich_help_panel=SCHEDULE, help="Pulls prompts to zero. Default: 5e-4."),
    ] = None,
    augment: Annotated[
        bool,
        typer.Option(
            rich_help_panel=IMAGES,
            help="Random crops. Without them every epoch sees the images as they are served, and "
            "the features of a frozen image tower are computed once, which is much faster.",
        ),
    ] = True,
    flip: Annotated[
        bool, typer.Option(rich_help_panel=IMAGES, help="Mirror half of the crops.")
    ] = True,
    cache_features: Annotated[
        bool,
        typer.Option(
            "--cache-features",
            rich_help_panel=IMAGES,
            help="Run the image tower over the images once, not in every epoch. It changes what is "
            "learned: no random crops, unless --views caches some. For methods that leave the "
            "image tower alone.",
        ),
    ] = False,
    views: Annotated[
        int | None,
        typer.Option(
            rich_help_panel=IMAGES,
            help="With --cache-features: cache N random crops of every image, taken in turn, one "
            "an epoch.",
        ),
    ] = None,
    class_chunk: Annotated[
        int | None,
        typer.Option(
            rich_help_panel=MEMORY,
            help="Class prompts in the text tower at once; computed again for the backward pass, "
            "which takes half as long again and the memory of one chunk. 0: all. Default: all, or "
            "what fits where they would take more than 2 GiB.",
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(rich_help_panel=MEMORY, help="auto, cpu or cuda.")
    ] = "auto",
    precision: Annotated[
        PrecisionName,
        typer.Option(
            rich_help_panel=MEMORY,
            help="Of matrix products. auto: fp32 on a CPU, half precision on CUDA.",
        ),
    ] = PrecisionName.auto,
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
        method_options=parse_options(option or [], template or []),
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
