"""`vlp bench`: what a bundle costs and how often it is right, in a table and as JSON."""

import os
import tempfile
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from vlp_deploy.classes.coupled import fixed_batch
from vlp_deploy.classifier import Classifier
from vlp_deploy.data.dataset import load_dataset
from vlp_deploy.embedded import default_bundle
from vlp_deploy.errors import DataError, EngineError
from vlp_deploy.extras import load_function
from vlp_deploy.files import write_atomic
from vlp_deploy.formats.bundle import Bundle
from vlp_deploy.measuring import bench as measuring
from vlp_deploy.measuring.bench import AGAINST, Contender
from vlp_deploy.measuring.records import OURS, BenchReport
from vlp_deploy.measuring.timing import PERCENTILES, describe_machine

PACKAGES = ("vlp-deploy", "numpy", "pillow", "onnxruntime", "openvino", "torch", "open_clip_torch")
REPORT_FILE = "bench.json"


def bench(
    bundle: Annotated[
        Path | None, typer.Argument(help="Folder made by `vlp export`. Default: the embedded one.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Labelled images: accuracy on their test split, with JPEG decoded in full, as "
            "`vlp classify` does with --exact-decode only."
        ),
    ] = None,
    image_root: Annotated[
        Path | None, typer.Option(help="What the paths in a list --data are relative to.")
    ] = None,
    classnames: Annotated[
        Path | None, typer.Option(help="File of 'folder name' lines that names --data's classes.")
    ] = None,
    data_classes: Annotated[
        bool, typer.Option(help="Classify into the class names of --data, not the bundle's.")
    ] = False,
    against: Annotated[
        str, typer.Option(help="Run the same classifier beside it, comma-separated: torch.")
    ] = "",
    pretrained: Annotated[
        str | None, typer.Option(help="The backbone's weights, for --against torch.")
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(min=1, help="Batch sizes: 1, 8, or the bundle's own.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0, help="Time to spend on each batch size.")] = 5.0,
    threads: Annotated[int, typer.Option(min=0, help="0: one for every core.")] = 0,
    engine: Annotated[str, typer.Option(help="auto, or an engine's name.")] = "auto",
    cold_start: Annotated[bool, typer.Option(help="Also measure fresh processes.")] = True,
    output: Annotated[
        Path | None, typer.Option(help=f"Folder for {REPORT_FILE}; replaced if it is there.")
    ] = None,
) -> None:
    """Measure latency per batch size, throughput, cold start, and accuracy on labelled images.

    With --against, the same tuned classifier runs in PyTorch in the same run, by turns with the
    bundle, and a ratio is printed with its 95 % interval. Close other programs first.
    """
    if output:
        _require_writable(output)
    dataset = load_dataset(data, image_root=image_root, classnames=classnames) if data else None
    opened = Bundle(bundle or default_bundle())
    threads = threads or len(os.sched_getaffinity(0))
    classifier = Classifier.load(opened.path, engine=engine, threads=threads)
    if dataset and data_classes:
        classifier = classifier.with_classes(list(dataset.class_names))
    samples = measuring.labels_in_bundle(dataset, classifier.classes) if dataset else []
    contenders: dict[str, Contender] = {OURS: classifier}
    for name in filter(None, against.split(",")):
        contenders[name] = _rival(name, opened, classifier.classes, pretrained, threads)

    alone = fixed_batch(opened.manifest.structure)  # the one batch size that there is, if so
    batches = batch or ([alone] if alone else [1, 8])
    steps = len(batches) + len(samples) * len(contenders)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("latency", total=steps)
        results = measuring.measure_contenders(
            contenders,
            opened,
            samples,
            batches=batches,
            seconds=seconds,
            progress=lambda text, n: bar.update(task, advance=n, description=text),
        )
        bar.update(task, description="cold start")
        starts = cold_start and alone in (None, 1)  # one image is classified
        start = measuring.measure_cold_start(opened, engine=engine) if starts else None
    manifest = opened.manifest
    report = BenchReport(
        bundle=str(opened.path),
        method=manifest.method,
        engine=classifier.engine,
        precision=manifest.precision,
        classes=len(classifier.classes),
        gflops_per_image=manifest.graphs[manifest.class_graph].flops / 1e9,
        threads=threads,
        data=str(data or ""),
        machine=describe_machine(PACKAGES),
        cold_start=start,
        contenders=results,
    )
    print_report(report)
    if output:
        content = msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"
        write_atomic(output / REPORT_FILE, content)


def _require_writable(folder: Path) -> None:
    """Raise DataError if REPORT_FILE could not be written; to be told before the measuring."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise DataError(
            f"--output {folder} cannot be written: {error.strerror}. Choose another folder"
        ) from error
    if (folder / REPORT_FILE).is_dir():
        raise DataError(f"--output: {folder / REPORT_FILE} is a folder. Choose another --output")


def _rival(
    name: str, bundle: Bundle, classes: tuple[str, ...], pretrained: str | None, threads: int
) -> Contender:
    if name not in AGAINST:
        raise EngineError(f"--against {name}: unknown. Available: {', '.join(AGAINST)}")
    load = load_function(AGAINST[name], what=f"`vlp bench --against {name}`")
    contender: Contender = load(bundle, classes=classes, pretrained=pretrained, threads=threads)
    return contender


def print_report(report: BenchReport) -> None:
    """The report as a table on stdout."""
    machine, console = report.machine, Console(highlight=False, markup=False, emoji=False)
    loaded = machine.load_average > machine.cores
    console.print(
        f"{report.method}, {report.classes} classes, {report.engine} {report.precision}, "
        f"{report.gflops_per_image:.3g} GFLOP an image, {report.threads} threads\n"
        f"{machine.cpu}, load {machine.load_average}"
        + (" (a loaded machine: trust the ratios only)" if loaded else "")
    )
    table = Table("contender", "batch", *(f"p{p} ms" for p in PERCENTILES), "images/s")
    for contender in report.contenders:
        for latency in contender.latencies:
            times = (latency.p50_ms, latency.p90_ms, latency.p95_ms, latency.p99_ms)
            cells = (f"{value:.2f}" for value in (*times, latency.images_per_s))
            table.add_row(contender.name, str(latency.batch), *cells)
    console.print(table)
    for contender in report.contenders[1:]:
        for latency, ratio in zip(contender.latencies, contender.ratios, strict=True):
            console.print(
                f"batch {latency.batch}: {contender.name} takes {ratio.median:.2f}x the time of "
                f"{OURS} ({ratio.low:.2f} to {ratio.high:.2f}, {latency.calls} paired calls)"
            )
    for contender in report.contenders:
        if contender.accuracy and contender.agreement:
            console.print(
                f"{contender.name}: top-1 {contender.accuracy.top1:.2%}, top-5 "
                f"{contender.accuracy.top5:.2%} of {contender.accuracy.images} images, decoded in "
                f"full; same first class as {OURS} for {contender.agreement.same_top1}, largest "
                f"difference of a logit {contender.agreement.max_logit_difference:.1e}"
            )
    if report.cold_start:
        later = np.median(report.cold_start.later_s)
        console.print(
            f"process start to first answer: {report.cold_start.first_s:.2f} s the first time, "
            f"{later:.2f} s after that; peak memory {report.cold_start.peak_memory_mb:.0f} MB"
        )
