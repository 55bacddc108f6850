"""`vlp bench`: what a bundle costs and how often it is right, in a table and as JSON."""

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.progress import Progress

from vlp_deploy.classes.coupled import fixed_batch
from vlp_deploy.classifier import Classifier
from vlp_deploy.data.dataset import load_dataset
from vlp_deploy.embedded import default_bundle
from vlp_deploy.errors import DataError, EngineError
from vlp_deploy.extras import load_function
from vlp_deploy.files import write_atomic
from vlp_deploy.formats.architecture import Record
from vlp_deploy.formats.bundle import Bundle
from vlp_deploy.measuring import bench as measuring
from vlp_deploy.measuring.bench import AGAINST, Contender
from vlp_deploy.measuring.compare import compare as compare_reports
from vlp_deploy.measuring.compare import load_report
from vlp_deploy.measuring.records import OURS, BenchReport
from vlp_deploy.measuring.tables import Shown, comparison_tables, report_tables
from vlp_deploy.measuring.timing import PASSES, describe_machine

PACKAGES = ("vlp-deploy", "numpy", "pillow", "onnxruntime", "openvino", "torch", "open_clip_torch")
REPORT_FILE, COMPARISON_FILE = "bench.json", "comparison.json"


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
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(help="Measure nothing: say what changed from one report to the other."),
    ] = None,
) -> None:
    """Measure latency per batch size, throughput, cold start, and accuracy on labelled images.

    With --against, the same tuned classifier runs in PyTorch in the same run, by turns with the
    bundle, and a ratio is printed with its 95 % interval. Close other programs first.
    """
    if output:
        _require_writable(output, COMPARISON_FILE if compare else REPORT_FILE)
    if compare:
        return _compare(compare, output)
    machine = describe_machine(PACKAGES)  # its load before we add to it
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
    steps = PASSES * len(batches) + len(samples) * len(contenders)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("latency", total=steps)
        results = measuring.measure_contenders(
            contenders,
            opened,
            samples,
            batches=batches,
            seconds=seconds,
            threads=threads,
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
        machine=machine,
        warnings=measuring.warnings_about(machine, results[0].latencies),
        cold_start=start,
        contenders=results,
    )
    show(report_tables(report))
    if output:
        _write(report, output / REPORT_FILE)


def _require_writable(folder: Path, file: str) -> None:
    """Raise DataError if `file` could not be written; to be told before the measuring."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise DataError(
            f"--output {folder} cannot be written: {error.strerror}. Choose another folder"
        ) from error
    if (folder / file).is_dir():
        raise DataError(f"--output: {folder / file} is a folder. Choose another --output")


def _rival(
    name: str, bundle: Bundle, classes: tuple[str, ...], pretrained: str | None, threads: int
) -> Contender:
    if name not in AGAINST:
        raise EngineError(f"--against {name}: unknown. Available: {', '.join(AGAINST)}")
    load = load_function(AGAINST[name], what=f"`vlp bench --against {name}`")
    contender: Contender = load(bundle, classes=classes, pretrained=pretrained, threads=threads)
    return contender


def show(parts: Iterable[Shown]) -> None:
    """Tables and lines on stdout."""
    console = Console(highlight=False, markup=False, emoji=False)
    for part in parts:
        console.print(part)


def _write(record: Record, path: Path) -> None:
    write_atomic(path, msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")


def _compare(pair: tuple[Path, Path], output: Path | None) -> None:
    """Show what changed from the first report to the second."""
    before, after = (load_report(path / REPORT_FILE if path.is_dir() else path) for path in pair)
    comparison = compare_reports(before, after)
    show(comparison_tables(comparison))
    if output:
        _write(comparison, output / COMPARISON_FILE)
