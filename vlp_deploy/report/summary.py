"""From a report to what is read first: a few facts, and what may be concluded from them."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vlp_deploy.measuring.records import BenchReport, ContenderResult
from vlp_deploy.report.figure import Table
from vlp_deploy.report.quality import points_text
from vlp_deploy.report.scale import number


class Fact(NamedTuple):
    """A figure, what it is, and what has to be known about it."""

    value: str
    name: str
    detail: str


def title(report: BenchReport) -> str:
    """The name of the bundle's folder."""
    return Path(report.bundle).name or report.bundle


def subtitle(report: BenchReport) -> str:
    """What was measured, and where."""
    machine = report.machine
    return (
        f"{report.method}, {report.classes:,} classes, {report.engine} {report.precision}, "
        f"{number(report.gflops_per_image)} GFLOP an image, {report.threads} of {machine.cores} "
        f"threads of {machine.cpu}, load {number(machine.load_average)} before the run"
    )


def facts(report: BenchReport) -> Iterator[Fact]:
    """The bundle's own figures."""
    ours = report.contenders[0]
    if ours.latencies:
        first = ours.latencies[0]
        interval = f"95 % interval {number(first.p50_low_ms)} to {number(first.p50_high_ms)}"
        yield Fact(f"{number(first.p50_ms)} ms", f"median latency, batch {first.batch}", interval)
        best = max(ours.latencies, key=lambda latency: latency.images_per_s)
        yield Fact(number(best.images_per_s), "images a second", f"batch {best.batch}")
    if found := ours.accuracy:
        interval = f"{found.top1.low:.1%} to {found.top1.high:.1%}, {found.images:,} images"
        yield Fact(f"{found.top1.value:.1%}", "top-1 accuracy", interval)
        detail = f"negative log-likelihood {found.nll:.3f}"
        yield Fact(f"{found.ece:.1%}", "calibration error", detail)
    if start := report.cold_start:
        later = float(np.median(start.later_s))
        detail = f"{number(start.first_s)} s with an empty cache"
        yield Fact(f"{number(later)} s", "process start to answer", detail)
        yield Fact(f"{number(start.peak_memory_mb)} MB", "peak memory", "of that process")


def sentences(report: BenchReport) -> Iterator[str]:
    """How the bundle compares with the other contenders."""
    for other in report.contenders[1:]:
        yield from _times(other)
        if other.agreement and (difference := other.agreement.top1_difference):
            low, high = points_text(difference.low), points_text(difference.high)
            yield (
                f"Top-1 of the bundle minus {other.name}: {points_text(difference.value)} points, "
                f"95 % interval {low} to {high}; the same answer for {other.agreement.same_top1} "
                f"of {other.agreement.images} images, largest difference of a logit "
                f"{other.agreement.max_logit_difference:.1e}."
            )


def _times(other: ContenderResult) -> Iterator[str]:
    for latency, ratio in zip(other.latencies, other.ratios, strict=True):
        cached = "" if other.text_embeddings_cached else ", text tower included"
        yield (
            f"{other.name} takes {ratio.median:.2f} times as long at batch {latency.batch} "
            f"({ratio.low:.2f} to {ratio.high:.2f}){cached}."
        )


def machine_table(report: BenchReport) -> Table:
    """Where the figures were measured."""
    machine = report.machine
    rows = [
        ("bundle", report.bundle),
        ("data", report.data or "none"),
        ("processor", machine.cpu),
        ("cores", str(machine.cores)),
        ("threads", str(report.threads)),
        ("load average before", str(machine.load_average)),
        ("Python", machine.python),
        *machine.packages.items(),
    ]
    return Table(header=("what", "value"), rows=tuple(rows))
