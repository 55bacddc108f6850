"""`vlp export`: a tuned prompt becomes a bundle, with the proof printed."""

import time
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from vlp_deploy.engines import engine_class
from vlp_deploy.engines.tensorrt import TENSORRT
from vlp_deploy.errors import MissingExtraError
from vlp_deploy.formats.bundle import Manifest
from vlp_deploy.formats.checkpoint import REFERENCE_IMAGES
from vlp_deploy.formats.structures import Conditioned
from vlp_export.contexts import Context
from vlp_export.conversion import convert as convert_bundle
from vlp_export.exporter import DEFAULT_BUDGET
from vlp_export.exporter import export as export_bundle
from vlp_export.parity import passes
from vlp_export.precision_choice import AUTO, Budget

VIT_B_16_GFLOP = 33  # one image through its image tower
HEAVY_GFLOP = 3 * VIT_B_16_GFLOP  # an image; more of them deserve a warning


class ContextName(StrEnum):
    """What `--context` takes."""

    frozen = "frozen"
    per_sample = "per_sample"
    batch = "batch"


CONTEXTS: dict[ContextName, Context] = {
    ContextName.frozen: "frozen",
    ContextName.per_sample: "per_sample",
    ContextName.batch: "batch",
}


def export(
    source: Annotated[
        Path,
        typer.Argument(help="A training run's folder, or a checkpoint from train or import."),
    ],
    output: Annotated[Path, typer.Option(help="Folder to make; it must not exist yet.")],
    engine: Annotated[
        str,
        typer.Option(
            help="What will run the bundle: onnx (onnxruntime), openvino, tensorrt or tensorrt-rtx."
        ),
    ] = "onnx",
    precision: Annotated[
        str,
        typer.Option(
            help="Number format of the graphs: fp32, fp16, bf16, int8 or fp8; auto measures which "
            "is the fastest within the budget below. int8, fp8 and auto look at --calibration."
        ),
    ] = "fp32",
    max_accuracy_loss: Annotated[
        float,
        typer.Option(help="Of --precision auto: percentage points, where images have labels."),
    ] = DEFAULT_BUDGET.accuracy_loss,
    min_agreement: Annotated[
        float,
        typer.Option(help="Of --precision auto: per cent of images with the answer of fp32."),
    ] = DEFAULT_BUDGET.agreement,
    pretrained: Annotated[
        str | None,
        typer.Option(
            help="The backbone's weights, the very ones the prompt was tuned on: a .safetensors "
            "file, or an open_clip tag, which needs the train extra. Default: the tag that the "
            "prompt was tuned with. Not needed for vlp-tiny."
        ),
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(
            help="Bake these classes instead of those of training: one a line, synonyms "
            "separated by tabs. A bundle takes new classes later as well."
        ),
    ] = None,
    mixing_weight: Annotated[
        float | None,
        typer.Option(
            help="Of DPC: how much of the parallel prompt serves base classes, above 0 and up to "
            "1. Default: what training chose."
        ),
    ] = None,
    context: Annotated[
        ContextName | None,
        typer.Option(
            help="Of DCP: what prompts are made of. frozen: a data set's mean, as constants, the "
            "default where training stored it or --calibration is given; per_sample: each image's "
            "own, otherwise the default; batch: the official mean over a batch, to reproduce "
            "published numbers only."
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="Images to measure int8, fp8 and auto on, and of DCP to freeze the context over; "
            "best those of training. A folder or an archive, without labels too, or a list as "
            "for training."
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Of DCP with --context batch: images of every batch.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a bundle at --output, in one step.")
    ] = False,
) -> None:
    """Fold a tuned prompt into its backbone and write a bundle that needs no PyTorch.

    The graphs are run on the checkpoint's reference images at batch sizes 1, 2, 5 and 8 and
    compared with the answers that training wrote down. If they differ, the table is printed and
    nothing is written.

    A bundle as the first argument is written in another precision, or becomes an engine: vlp
    export BUNDLE --help.
    """
    started = time.perf_counter()
    with Console(stderr=True).status("starting") as status:
        manifest = export_bundle(
            source,
            output,
            pretrained=pretrained,
            classes=classes,
            mixing_weight=mixing_weight,
            context=None if context is None else CONTEXTS[context],
            calibration=calibration,
            batch_size=batch_size,
            engine=engine,
            precision=precision,
            budget=Budget(accuracy_loss=max_accuracy_loss, agreement=min_agreement),
            force=force,
            progress=status.update,
        )
    show(manifest, output, seconds=time.perf_counter() - started)


def convert(
    source: Path,
    output: Path,
    *,
    engine: str | None,
    precision: str,
    calibration: Path | None,
    max_accuracy_loss: float,
    min_agreement: float,
    force: bool,
) -> None:
    """`vlp export BUNDLE --precision`; what the options mean says `vlp_deploy.commands.export`."""
    started = time.perf_counter()
    with Console(stderr=True).status("starting") as status:
        manifest = convert_bundle(
            source,
            output,
            engine=engine,
            precision=precision,
            calibration=calibration,
            budget=Budget(accuracy_loss=max_accuracy_loss, agreement=min_agreement),
            force=force,
            progress=status.update,
        )
    show(manifest, output, seconds=time.perf_counter() - started)


def was_calibrated(manifest: Manifest) -> bool:
    """Whether somebody fitted what probabilities mean."""
    return (
        manifest.temperature != 1
        or manifest.reject_threshold is not None
        or bool(manifest.class_thresholds)
    )


def tell_of_plans(engine: str, output: Path) -> None:
    """Say when TensorRT's part comes. Raises MissingExtraError if it cannot come here."""
    chosen = engine_class(engine)
    if not chosen.is_installed():
        raise MissingExtraError(
            f"{output} is complete: typed graphs, and the sizes that {engine} is to be built for. "
            f"The plan is built on first load, or by `vlp export {output} --engine {engine}`, on "
            "the machine with the GPU. That",
            needs=chosen.distributions[0],
            extra=engine,
        )
    print(
        f"The plan is built on first load, or now by `vlp export {output} --engine {engine}`, on "
        "the machine with the GPU"
    )


def show(manifest: Manifest, output: Path, *, seconds: float) -> None:
    """Print what was exported, how far it is from the un-folded model, and what it costs.

    Raises MissingExtraError, last of all, where TensorRT's part cannot come on this machine.
    """
    console = Console(highlight=False)
    parity = Table(
        *("engine", "precision", "batch", "max |Δlogit|", "allowed", "min cosine"),
        *("batch cosine", "top-1", "verdict"),
        box=SIMPLE_HEAD,
        padding=0,  # or 80 columns would cut numbers
    )
    for row in manifest.parity:
        parity.add_row(
            row.engine,
            row.precision,
            str(row.batch),
            f"{row.max_logit_difference:.1e}",
            f"{row.tolerance:.0e}",
            f"{row.min_cosine:.7f}",
            "" if row.batch_cosine is None else f"{row.batch_cosine:.7f}",  # of an older bundle
            f"{row.top1_agreement:.0%}",
            "ok" if passes(row) else "FAILS",
        )
    graphs = Table("graph", "nodes", "GFLOP", "MB")
    for role, graph in manifest.graphs.items():
        megabytes = (output / graph.file).stat().st_size / 1e6
        cost = f"{graph.flops / 1e9:.3f}" if graph.flops else "not counted"
        graphs.add_row(role, str(graph.nodes), cost, f"{megabytes:.1f}")
    console.print("Reference images, against the un-folded model:", parity, sep="\n")
    if (left_out := REFERENCE_IMAGES - manifest.parity[0].images) > 0:
        console.print(
            f"{left_out} of {REFERENCE_IMAGES} images left out: two classes tie for the last place "
            "among those that are selected for them."
        )
    console.print("Cost of one image, and of one text row of full length:", graphs, sep="\n")
    show_trials(manifest.history[-1].get("precision", {}))
    new = "" if manifest.new_classes.allowed else " No new classes: " + manifest.new_classes.reason
    if context := manifest.history[-1].get("context"):
        console.print(describe_context(context), soft_wrap=True)
    console.print(
        f"{manifest.method}, {len(manifest.classes)} classes.{new}\n"
        f"{output} written in {seconds:.1f} s. Next: vlp classify images/ --bundle {output}",
        soft_wrap=True,
    )
    if isinstance(manifest.structure, Conditioned):
        gflop, classes = manifest.graphs[manifest.class_graph].flops / 1e9, len(manifest.classes)
        style = "yellow" if gflop > HEAVY_GFLOP else ""
        Console(stderr=True).print(describe_cost(gflop, classes), soft_wrap=True, style=style)
    if warning := manifest.new_classes.warning:
        Console(stderr=True).print(f"New classes: {warning}.", soft_wrap=True, style="yellow")
    if manifest.precision != "fp32" and was_calibrated(manifest):
        Console(stderr=True).print(
            "Temperature and thresholds are those of the fp32 bundle. To fit them to "
            f"{manifest.precision}: vlp calibrate {output} DATA --output NEW",
            soft_wrap=True,
            style="yellow",
        )
    if manifest.engine in TENSORRT:
        tell_of_plans(manifest.engine, output)


def show_trials(record: Mapping[str, Any]) -> None:
    """On stderr, what `--precision auto` tried and why it took what it took."""
    if record.get("asked") != AUTO:
        return
    trials = Table("precision", "speed, batch 1", "batch 8", "agreement", "loss", "verdict")
    for trial in record["trials"]:
        speed, loss = trial["speed"] or {}, trial["accuracy_loss"]
        trials.add_row(
            trial["precision"],
            *(f"{speed[batch]:.2f}x" if speed else "" for batch in ("1", "8")),
            "" if trial["agreement"] is None else f"{trial['agreement']:.2f} %",
            "" if loss is None else f"{loss:.2f}",
            trial["refused"] or ("taken" if trial["precision"] == record["is"] else "slower"),
        )
    console = Console(stderr=True, highlight=False)
    ranges = f"{record['range_images']} {'others' if record['apart'] else 'of them'}"
    console.print(
        f"Precisions against fp32, on {record['images']} images of {record['measured_on']}, ranges "
        f"of int8 and fp8 taken from {ranges}:",
        trials,
    )
    console.print(f"Taken: {record['is']}")
    least = record["budget"]["agreement"]
    if record["images"] * (100 - least) < 100:
        console.print(
            f"One image of {record['images']} is more than the {100 - least:g} % that may change: "
            "this tells little. Pass more with --calibration.",
            style="yellow",
        )


def describe_cost(gflop: float, classes: int) -> str:
    """What CoCoOp's graph computes for one image, with what to do where that is much."""
    text = (
        f"Every image runs the text tower for every class: {gflop:.1f} GFLOP an image for "
        f"{classes} classes, growing with their number."
    )
    if gflop > HEAVY_GFLOP:
        text += (
            f" That is more than {HEAVY_GFLOP // VIT_B_16_GFLOP} image towers of ViT-B/16: serve "
            "fewer classes, or tune with a method whose text does not depend on the image."
        )
    return text


def describe_context(record: Mapping[str, Any]) -> str:
    """What DCP's prompts are made of, from the record that the exporter keeps of it."""
    match record:
        case {"context": "frozen", "images": images, "of": source}:
            return f"Context frozen over the {images} images of {source}: prompts are constants."
        case {"context": "frozen"}:
            return "Context frozen over the training images: prompts are constants."
        case {"context": "per_sample", "times_frozen": cost}:
            return (
                f"Context per_sample: each image makes its own prompts, for {cost:.3f} times the "
                "arithmetic of a frozen context. For that one pass --calibration DATA."
            )
        case _:
            return (
                f"Context batch: ANSWERS DEPEND ON THE OTHER IMAGES OF A BATCH, which has to have "
                f"exactly {record['batch_size']}. For reproduction of published numbers only."
            )
