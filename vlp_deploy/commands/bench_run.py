"""A plan of `vlp bench` is carried out, phase by phase, and becomes a report."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from vlp_deploy.classes.coupled import fixed_batch
from vlp_deploy.classifier import Classifier
from vlp_deploy.commands.phases import Begin
from vlp_deploy.formats.bundle import Bundle
from vlp_deploy.measuring.accuracy import Findings
from vlp_deploy.measuring.bench import measure_cold_start, measure_contenders, warnings_about
from vlp_deploy.measuring.contender import Contender
from vlp_deploy.measuring.evaluation import Evaluator, Questions, evaluate
from vlp_deploy.measuring.gemm import measure_gemm
from vlp_deploy.measuring.loops import LoopPlan, with_loops
from vlp_deploy.measuring.records import BenchReport, ContenderResult, GemmRate, Stages
from vlp_deploy.measuring.stages import measure_stages, write_golden_images
from vlp_deploy.measuring.timing import PASSES, Machine


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured, and for how long. `engine` is what was asked for, "auto" say.

    `seconds` are spent on each contender at each batch size, and in each loop.
    """

    batches: Sequence[int]
    seconds: float
    loops: LoopPlan
    stages: bool
    cold_start: bool
    engine: str
    threads: int
    device: str


def measure(
    contenders: Mapping[str, Contender],
    classifier: Classifier,
    questions: Questions | None,
    plan: Plan,
    machine: Machine,
    begin: Begin,
) -> BenchReport:
    """Everything that was planned. The first of `contenders` is the `classifier` itself."""
    bundle, manifest = classifier.bundle, classifier.bundle.manifest
    results, found = _latencies(contenders, bundle, plan, begin), None
    if questions:
        results, found = _answers(results, contenders, classifier, questions, plan, begin)
    one = _takes_one(bundle)
    stages = start = None
    if plan.stages and one:
        begin("stages of an image", None)
        stages = _stages(classifier, questions, plan.seconds)
    if plan.cold_start and one:
        begin("cold start", None)
        start = measure_cold_start(bundle, engine=plan.engine, device=plan.device)
    return BenchReport(
        bundle=str(bundle.path),
        method=manifest.method,
        engine=classifier.engine,
        precision=manifest.precision,
        device=plan.device,
        classes=len(classifier.classes),
        gflops_per_image=manifest.graphs[manifest.class_graph].flops / 1e9,
        threads=plan.threads,
        data=questions.source if questions else "",
        machine=machine,
        warnings=warnings_about(machine, results[0].latencies),
        left_out=tuple(_left_out(bundle, plan)),
        cold_start=start,
        stages=stages,
        gemm=_gemm(bundle, plan, begin),
        findings=found,
        contenders=results,
    )


def _latencies(
    contenders: Mapping[str, Contender], bundle: Bundle, plan: Plan, begin: Begin
) -> tuple[ContenderResult, ...]:
    advance = begin("latency", PASSES * len(plan.batches))
    results = measure_contenders(
        contenders,
        bundle,
        batches=plan.batches,
        seconds=plan.seconds * (len(contenders) + 1),  # the reference work takes its turns, too
        threads=plan.threads,
        progress=advance,
    )
    if plan.loops:
        advance = begin("callers at once", len(plan.loops) * len(contenders))
        results = with_loops(results, contenders, bundle, plan=plan.loops, progress=advance)
    return tuple(_with_kind(result, contenders[result.name]) for result in results)


def _with_kind(result: ContenderResult, contender: Contender) -> ContenderResult:
    engine, precision = result.name, "fp32"
    if isinstance(contender, Classifier):
        engine, precision = contender.engine, contender.bundle.manifest.precision
    return msgspec.structs.replace(result, engine=engine, precision=precision)


def _answers(
    results: tuple[ContenderResult, ...],
    contenders: Mapping[str, Contender],
    classifier: Classifier,
    questions: Questions,
    plan: Plan,
    begin: Begin,
) -> tuple[tuple[ContenderResult, ...], Findings]:
    """Answers are given in a batch size that was measured: nothing is compiled for another."""
    advance = begin("accuracy", questions.images(len(contenders)))
    evaluator = Evaluator.of(classifier.bundle, advance, batch=max(plan.batches))
    return evaluate(results, contenders, classifier, questions, evaluator)


def _takes_one(bundle: Bundle) -> bool:
    """Whether one image alone can be classified."""
    return fixed_batch(bundle.manifest.structure) in (None, 1)


def _stages(classifier: Classifier, questions: Questions | None, seconds: float) -> Stages:
    """What one image costs: of the labelled images, or of the bundle's own as JPEG files."""
    if questions:
        paths = [sample.path for sample in questions.samples]
        return measure_stages(classifier, paths, source="labelled images", seconds=seconds)
    with tempfile.TemporaryDirectory() as folder:
        paths = write_golden_images(classifier.bundle, Path(folder))
        source = "the bundle's golden images as JPEG files"
        return measure_stages(classifier, paths, source=source, seconds=seconds)


def _gemm(bundle: Bundle, plan: Plan, begin: Begin) -> tuple[GemmRate, ...]:
    """The processor's, for image towers that are mostly matrix products of one shape: ViTs."""
    vit = bundle.manifest.backbone.config.vit
    if not (plan.cold_start and plan.device == "cpu" and vit):
        return ()
    begin("matrix products", None)
    return measure_gemm(vit, batches=plan.batches, threads=plan.threads)


def _left_out(bundle: Bundle, plan: Plan) -> Iterator[str]:
    """What was asked for and cannot be measured, and why."""
    if (plan.stages or plan.cold_start) and not _takes_one(bundle):
        batch = fixed_batch(bundle.manifest.structure)
        yield (
            "stages and cold start, which are those of one image: this bundle takes exactly "
            f"{batch} at a time"
        )
    if plan.cold_start and plan.device != "cpu":
        yield "the share of a matrix product's rate, which is that of the processor"
    elif plan.cold_start and not bundle.manifest.backbone.config.vit:
        yield "the share of a matrix product's rate, which is known for plain ViTs only"
