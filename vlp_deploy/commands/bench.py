"""`vlp bench`: what a bundle costs and how often it is right, in a table and as JSON."""

import json
import os
import tempfile
from collections.abc import Iterable, Sequence, Set
from pathlib import Path

import msgspec
from rich.console import Console

from vlp_deploy.classes.class_list import name_key, read_class_list
from vlp_deploy.classes.coupled import fixed_batch
from vlp_deploy.classifier import Classifier
from vlp_deploy.commands import bench_options as option
from vlp_deploy.commands.bench_run import Plan, measure
from vlp_deploy.commands.phases import phases
from vlp_deploy.data.dataset import Dataset, load_dataset
from vlp_deploy.data.strangers import unknown_samples
from vlp_deploy.embedded import default_bundle
from vlp_deploy.engines import ENGINES
from vlp_deploy.errors import DataError
from vlp_deploy.files import write_atomic
from vlp_deploy.formats.architecture import Preprocessing, Record
from vlp_deploy.formats.bundle import Bundle
from vlp_deploy.measuring.accuracy import domain_pattern
from vlp_deploy.measuring.compare import compare as compare_reports
from vlp_deploy.measuring.compare import load_report
from vlp_deploy.measuring.contender import Contender, Progress
from vlp_deploy.measuring.evaluation import Questions, check_answerable, labels_in_bundle
from vlp_deploy.measuring.loops import LoopPlan
from vlp_deploy.measuring.records import OURS, BenchReport
from vlp_deploy.measuring.rivals import RivalOptions, load_in, load_rival, rival_names
from vlp_deploy.measuring.tables import Shown, comparison_tables, report_tables
from vlp_deploy.measuring.timing import describe_machine
from vlp_deploy.report.write import write_pages

PACKAGES = ("vlp-deploy", "numpy", "pillow", "onnxruntime", "openvino", "torch", "open_clip_torch")
REPORT_FILE, COMPARISON_FILE = "bench.json", "comparison.json"


def bench(
    bundle: option.Bundle = None,
    data: option.Data = None,
    image_root: option.ImageRoot = None,
    classnames: option.ClassNames = None,
    data_classes: option.DataClasses = False,
    unknown: option.Unknown = None,
    domain: option.Domain = None,
    base_classes: option.BaseClasses = None,
    transfer: option.Transfer = None,
    beside: option.Beside = None,
    against: option.Against = "",
    pretrained: option.Pretrained = None,
    batch: option.Batch = None,
    seconds: option.Seconds = 5.0,
    concurrency: option.Concurrency = "1,2,4",
    rate: option.Rate = "",
    constant_rate: option.ConstantRate = False,
    stages: option.Stages = True,
    threads: option.Threads = 0,
    engine: option.Engine = "auto",
    device: option.Device = "cpu",
    cold_start: option.ColdStart = True,
    output: option.Output = None,
    compare: option.Compare = None,
) -> None:
    """Measure latency per batch size, throughput, cold start, and accuracy on labelled images.

    With --against, the same tuned classifier runs in PyTorch, as a stock ONNX export or in another
    engine too, by turns with the bundle: up to 0.1 s of calls each. A ratio is the median of paired
    turns, with its 95 % interval. Close other programs first.
    """
    if output:
        _require_writable(output, COMPARISON_FILE if compare else REPORT_FILE)
    if compare:
        return _compare(compare, output)
    rivals = rival_names(against)
    loops = LoopPlan.read(concurrency, rate, constant=constant_rate, seconds=seconds)
    machine = describe_machine(PACKAGES)  # its load before we add to it
    dataset = load_dataset(data, image_root=image_root, classnames=classnames) if data else None
    opened = Bundle(bundle or default_bundle())
    threads = threads or len(os.sched_getaffinity(0))
    alone = fixed_batch(opened.manifest.structure)  # the one batch size that there is, if so
    plan = Plan(
        batches=tuple(dict.fromkeys(batch or ([alone] if alone else [1, 8]))),
        seconds=seconds,
        loops=loops,
        stages=stages,
        cold_start=cold_start,
        engine=engine,
        threads=threads,
        device=device,
    )
    with phases() as begin:
        loading = begin("loading", 1 + len(rivals) + len(beside or []))
        classifier = Classifier.load(opened.path, engine=engine, threads=threads, device=device)
        if dataset and data_classes:
            classifier = classifier.with_classes(list(dataset.class_names))
        questions = _questions(
            dataset,
            classifier,
            unknown=unknown,
            domain=domain,
            base=base_classes,
            transfer=transfer,
        )
        loading("loading", 1)
        options = RivalOptions(
            classes=classifier.classes, pretrained=pretrained, threads=threads, device=device
        )
        contenders = _contenders(classifier, rivals, beside or [], options, loading)
        report = measure(contenders, classifier, questions, plan, machine, begin)
    _finish(report, output)


def _finish(report: BenchReport, output: Path | None) -> None:
    """Show the report before it is written: a full disk takes nothing away."""
    show(report_tables(report))
    if output:
        _write(report, output / REPORT_FILE)
        write_pages(report, output)


def _contenders(
    classifier: Classifier,
    rivals: Sequence[str],
    beside: Sequence[str],
    options: RivalOptions,
    loading: Progress,
) -> dict[str, Contender]:
    """The bundle first, then what it is compared with, all for the same classes."""
    found: dict[str, Contender] = {OURS: classifier}
    for name in rivals:
        loading(f"loading {name}", 0)
        found[name] = load_rival(name, classifier.bundle, options)
        loading(f"loading {name}", 1)
    for text in beside:
        path, engine = bundle_and_engine(text, classifier.engine)
        name = os.path.basename(os.path.abspath(path))  # of "." as well
        name = name if engine == classifier.engine else f"{name}@{engine}"
        if name in found:
            raise DataError(
                f"--beside {text}: there is a contender named {name!r} already. Rename the folder"
            )
        _require_same_pixels(text, Bundle(path), classifier.bundle)
        loading(f"loading {name}", 0)
        found[name] = load_in(engine, path, options)
        loading(f"loading {name}", 1)
    return found


def _require_same_pixels(text: str, other: Bundle, ours: Bundle) -> None:
    """Raise DataError if another bundle reads images in another way: all are given our pixels."""
    theirs, wanted = (
        msgspec.structs.replace(each.manifest.preprocessing, mean=(0, 0, 0), std=(1, 1, 1))
        for each in (other, ours)  # its graph normalises by itself
    )
    if theirs != wanted:
        raise DataError(
            f"--beside {text}: its images are read as {_reading(theirs)}, the bundle's as "
            f"{_reading(wanted)}. Bundles can be measured side by side if they read images alike"
        )


def _reading(preprocessing: Preprocessing) -> str:
    fields = msgspec.structs.asdict(preprocessing)
    return ", ".join(f"{name} {fields[name]}" for name in fields if name not in ("mean", "std"))


def bundle_and_engine(text: str, engine: str) -> tuple[Path, str]:
    """BUNDLE or BUNDLE@ENGINE; folders may have an @ in their names."""
    folder, _, named = text.rpartition("@")
    return (Path(folder), named) if folder and named in ENGINES else (Path(text), engine)


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


def _questions(
    dataset: Dataset | None,
    classifier: Classifier,
    *,
    unknown: Path | None,
    domain: str | None,
    base: Path | None,
    transfer: Sequence[Path] | None,
) -> Questions | None:
    """What to ask of labelled images; None without any."""
    if dataset is None:
        if unknown or domain or base or transfer:
            raise DataError(
                "--unknown, --domain, --base-classes and --transfer are about the answers to "
                "labelled images. Give some with --data"
            )
        return None
    advice = "Add --data-classes to classify into the classes of the data instead"
    samples = labels_in_bundle(dataset, classifier.classes, advice=advice)
    strangers = unknown_samples(unknown, classifier.classes) if unknown else ()
    questions = Questions(
        source=str(dataset.source),
        samples=samples,
        domain=domain_pattern(domain) if domain else None,
        base=_base(base, classifier, {classifier.classes[s.label] for s in samples}),
        strangers=strangers,
        transfer=[load_dataset(path) for path in transfer or ()],
    )
    check_answerable(questions, classifier)
    return questions


def _base(file: Path | None, classifier: Classifier, labelled: Set[str]) -> tuple[str, ...]:
    """The classes that were tuned on, if there are labelled images of others as well."""
    if file:
        return tuple(synonyms[0] for synonyms in read_class_list(file))
    own = classifier.bundle.manifest.classes
    known = {name_key(name) for name in own}
    base = len({name_key(name) for name in labelled} & known)
    return own if min(base, len(labelled) - base) >= 2 else ()  # one class has nothing to tell


def show(parts: Iterable[Shown]) -> None:
    """Tables and lines on stdout."""
    console = Console(highlight=False, markup=False, emoji=False)
    for part in parts:
        console.print(part)


def _write(record: Record, path: Path) -> None:
    text = json.dumps(msgspec.to_builtins(record), indent=2, ensure_ascii=False)
    write_atomic(path, text.encode("utf-8", "replace") + b"\n")  # a path may not be UTF-8


def _compare(pair: tuple[Path, Path], output: Path | None) -> None:
    """Show what changed from the first report to the second."""
    before, after = (load_report(path / REPORT_FILE if path.is_dir() else path) for path in pair)
    comparison = compare_reports(before, after)
    show(comparison_tables(comparison))
    if output:
        _write(comparison, output / COMPARISON_FILE)
