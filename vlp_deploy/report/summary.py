"""From a report to what is read first: a few facts, and what may be concluded from them."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vlp_deploy.measuring.accuracy import Agreement
from vlp_deploy.measuring.gemm import gemm_share
from vlp_deploy.measuring.records import BenchReport, ContenderResult
from vlp_deploy.report.figure import Table
from vlp_deploy.report.quality import points_text
from vlp_deploy.report.scale import number

OTHERS = (
    "Measured by turns in the same run, with the same classes. Times are multiples of the bundle's,"
    " turn by turn; points are the bundle's top-1 minus theirs, image by image. In brackets 95% "
    "intervals: what is lost is no more than they say."
)


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
        interval = f"95% interval {number(first.p50_low_ms)} to {number(first.p50_high_ms)}"
        yield Fact(f"{number(first.p50_ms)} ms", f"median latency, batch {first.batch}", interval)
        best = max(ours.latencies, key=lambda latency: latency.images_per_s)
        yield Fact(number(best.images_per_s), "images a second", f"batch {best.batch}")
        yield from _beside(report.contenders)
        if (reached := gemm_share(report, first)) is not None:
            detail = f"NumPy's fastest in float32, batch {first.batch}"
            yield Fact(f"{reached:.0%}", "of a matrix product's rate", detail)
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


def _beside(contenders: Sequence[ContenderResult]) -> Iterator[Fact]:
    """How much faster than what was named first of all that it is compared with."""
    for other in contenders[1:2]:
        for latency, ratio in zip(other.latencies[:1], other.ratios[:1], strict=True):
            detail = f"batch {latency.batch}, 95% interval {ratio.low:.2f} to {ratio.high:.2f}"
            yield Fact(f"{ratio.median:.2f}×", f"as fast as {other.name}", detail)


def comparison_table(report: BenchReport) -> Table:
    """The other contenders beside the bundle: their times over its own, its accuracy minus theirs.

    Without other contenders it has no rows.
    """
    batches = [latency.batch for latency in report.contenders[0].latencies]
    header = [f"time, batch {batch}" for batch in batches]
    measured = any(other.agreement for other in report.contenders[1:])
    if measured:
        header += ["top-1, points", "same answer", "logits differ by"]
    rows = (
        (
            other.name,
            *(_interval(r.median, r.low, r.high, "{:.2f}".format) for r in other.ratios),
            *(_agreement(other.agreement) if measured else ()),
        )
        for other in report.contenders[1:]
    )
    return Table(header=("", *header), rows=tuple(rows))


def _agreement(found: Agreement | None) -> tuple[str, str, str]:
    if found is None:
        return "", "", ""
    apart = found.top1_difference
    return (
        _interval(apart.value, apart.low, apart.high, points_text) if apart else "",
        f"{found.same_top1:,} of {found.images:,}",
        f"{found.max_logit_difference:.1e}",
    )


def _interval(value: float, low: float, high: float, form: Callable[[float], str]) -> str:
    return f"{form(value)} ({form(low)} to {form(high)})"


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
