"""`vlp train`: from the command line to a training run, with a progress bar."""

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import Field, fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from vlp_deploy import embedded
from vlp_deploy.errors import TrainingError
from vlp_train.fit import Precision, Report, Step
from vlp_train.methods import METHODS
from vlp_train.training import Outcome, Request
from vlp_train.training import train as run_training

TEMPLATES = "templates"  # the option behind --template
METHOD_HELP = "; ".join(f"{name}: learns {entry.summary}" for name, entry in METHODS.items())


def option_help() -> str:
    """Every method's options with their defaults, read off its configuration."""
    lines = []
    for name, entry in METHODS.items():
        options = [field for field in fields(entry.config) if field.name != TEMPLATES]  # type: ignore[arg-type]
        if options:
            lines.append(f"{name}: {', '.join(map(_option, options))}")
    return "; ".join(lines)


def _option(field: Field[Any]) -> str:
    """NAME=DEFAULT, or NAME=ONE|OTHER for a choice, the default first."""
    if get_origin(field.type) is Literal:
        return f"{field.name}={'|'.join(get_args(field.type))}"
    given = "" if field.default in (None, "") else f"={str(field.default).lower()}"
    return f"{field.name}{given}"


class PrecisionName(StrEnum):
    """What `--precision` takes."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


PRECISIONS: dict[PrecisionName, Precision | None] = {
    PrecisionName.auto: None,
    PrecisionName.fp32: "fp32",
    PrecisionName.bf16: "bf16",
    PrecisionName.fp16: "fp16",
}


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
    method: Annotated[str, typer.Option(help=METHOD_HELP + ".")] = "coop",
    option: Annotated[
        list[str] | None,
        typer.Option(
            "-O",
            "--option",
            metavar="NAME=VALUE",
            help="A hyper-parameter of the method, repeatable, such as -O context_tokens=4. "
            f"{option_help()}.",
        ),
    ] = None,
    template: Annotated[
        list[str] | None,
        typer.Option(
            help="Sentence around the class name, {}, for methods whose text is not learned "
            "(zeroshot, vpt). Repeat it to average several."
        ),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            help="vlp-tiny (embedded), an open_clip name such as ViT-B-16-quickgelu, or an "
            "open_clip .json configuration."
        ),
    ] = "vlp-tiny",
    pretrained: Annotated[
        str | None,
        typer.Option(help="Its weights: an open_clip tag such as openai, or a local file."),
    ] = None,
    shots: Annotated[
        int | None,
        typer.Option(help="Training images a class, drawn with --seed. Default: all of them."),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Decides the shots, the initial prompts, order and crops.")
    ] = 1,
    epochs: Annotated[
        int | None, typer.Option(help="Default: the method's own, by the number of shots.")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Peak of the cosine. Default: the method's own.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images a step. Default: the method's own.")
    ] = None,
    warmup_epochs: Annotated[
        int | None,
        typer.Option(
            help="Epochs at a rate of 1e-5 before the cosine. Default: 1, or 0 of one epoch."
        ),
    ] = None,
    augment: Annotated[
        bool,
        typer.Option(
            help="Random crops. Without them the features of a frozen image tower are computed "
            "once, which is much faster."
        ),
    ] = True,
    flip: Annotated[bool, typer.Option(help="Mirror half of the crops.")] = True,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    precision: Annotated[
        PrecisionName,
        typer.Option(help="Of matrix products. auto: fp32 on a CPU, half precision on CUDA."),
    ] = PrecisionName.auto,
    image_root: Annotated[
        Path | None, typer.Option(help="Where the paths of a list start. Default: its folder.")
    ] = None,
    classnames: Annotated[
        Path | None,
        typer.Option(help="File with a class name for every folder name (n01440764 tench)."),
    ] = None,
    evaluate: Annotated[
        list[Path] | None,
        typer.Option(
            help="More data to measure the trained prompt on, repeatable; its classes may be new. "
            "With --resume also where the run is finished."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run, or start it.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Delete a run that is in the way.")
    ] = False,
) -> None:
    """Tune a prompt on labelled images.

    A run that was interrupted, even by kill -9, goes on with the same command and --resume, and on
    a CPU with the same number of threads it ends in the same bits.
    """
    request = Request(
        data=data,
        output=output,
        method=method,
        method_options=parse_options(option or [], template or []),
        model=model,
        pretrained=pretrained,
        image_root=image_root,
        classnames=classnames,
        shots=shots,
        seed=seed,
        epochs=epochs,
        learning_rate=learning_rate,
        batch_size=batch_size,
        warmup_epochs=warmup_epochs,
        augment=augment,
        flip=flip,
        device=device,
        precision=PRECISIONS[precision],
        evaluate=tuple(evaluate or ()),
        resume=resume,
        force=force,
    )
    try:
        with progress_bar() as report:
            outcome = run_training(request, report)
    except KeyboardInterrupt:
        print(f"vlp: to go on: vlp {_resuming(sys.argv[1:])}", file=sys.stderr)
        raise
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
def progress_bar() -> Iterator[Report]:
    """A bar on stderr that shows each step."""
    columns = (
        TextColumn("epoch {task.fields[epoch]}"),
        BarColumn(),
        TextColumn("loss {task.fields[loss]}  accuracy {task.fields[accuracy]}"),
        TextColumn("lr {task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = None

        def report(step: Step) -> None:
            nonlocal task
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
    lines += [
        f"{name}: {accuracy.top1:.2%} of {accuracy.images} images right, {accuracy.classes} classes"
        for name, accuracy in outcome.metrics.items()
    ]
    lines.append(f"written: {outcome.path}")
    lines.append(f"next:    vlp export {folder} --engine onnx --output {folder}-bundle")
    return lines


def _resuming(arguments: list[str]) -> str:
    """The same command, made to go on."""
    kept = [argument for argument in arguments if argument not in ("--resume", "--force")]
    return shlex.join([*kept, "--resume"])
