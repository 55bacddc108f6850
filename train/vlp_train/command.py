"""`vlp train`: from the command line to a training run, with a progress bar."""

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from vlp_deploy.errors import TrainingError
from vlp_train.fit import Precision, Report, Step
from vlp_train.methods import METHODS
from vlp_train.training import Outcome, Request
from vlp_train.training import train as run_training

METHOD_HELP = "; ".join(f"{name}: learns {entry.summary}" for name, entry in METHODS.items())


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
            help="A hyper-parameter of the method, repeatable. coop: context_tokens=16, "
            'words="a photo of a", position=end|middle|front, class_specific=true; '
            "vpt: visual_tokens=8, depth=1 (shallow), pre_ln, survive_last.",
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
        int | None, typer.Option(help="Epochs at a rate of 1e-5 before the cosine. Default: 1.")
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
            help="More data to measure the trained prompt on, repeatable; its classes may be new."
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
        options["templates"] = tuple(templates)
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
