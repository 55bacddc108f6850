"""From a report of `vlp bench`, or a comparison of two, to what is shown in a terminal."""

from collections.abc import Iterator

import numpy as np
from rich.table import Table

from vlp_deploy.measuring.compare import Comparison
from vlp_deploy.measuring.records import OURS, BenchReport
from vlp_deploy.measuring.timing import PERCENTILES, Spread

Shown = str | Table


def report_tables(report: BenchReport) -> Iterator[Shown]:
    """The whole report, in the order in which it is read."""
    machine = report.machine
    yield (
        f"{report.method}, {report.classes} classes, {report.engine} {report.precision}, "
        f"{report.gflops_per_image:.3g} GFLOP an image, {report.threads} threads\n"
        f"{machine.cpu}, load {machine.load_average}"
    )
    yield from (f"warning: {warning}" for warning in report.warnings)
    yield _latencies(report)
    yield from _ratios(report)
    yield from _accuracies(report)
    if report.cold_start:
        later = np.median(report.cold_start.later_s)
        yield (
            f"process start to first answer: {report.cold_start.first_s:.2f} s the first time, "
            f"{later:.2f} s after that; peak memory {report.cold_start.peak_memory_mb:.0f} MB"
        )


def _latencies(report: BenchReport) -> Table:
    table = Table("contender", "batch", *(f"p{p} ms" for p in PERCENTILES), "calls", "images/s")
    for contender in report.contenders:
        for latency in contender.latencies:
            calls, rate = str(latency.calls), f"{latency.images_per_s:.1f}"
            table.add_row(contender.name, str(latency.batch), *_cells(latency), calls, rate)
    return table


def _cells(spread: Spread) -> list[str]:
    times = (spread.p50_ms, spread.p90_ms, spread.p95_ms, spread.p99_ms)
    return [f"{value:.2f}" for value in times]


def _ratios(report: BenchReport) -> Iterator[Shown]:
    for contender in report.contenders[1:]:
        for latency, ratio in zip(contender.latencies, contender.ratios, strict=True):
            yield (
                f"batch {latency.batch}: {contender.name} takes {ratio.median:.2f}x the time of "
                f"{OURS} ({ratio.low:.2f} to {ratio.high:.2f}, {latency.calls} paired calls)"
            )


def _accuracies(report: BenchReport) -> Iterator[Shown]:
    for contender in report.contenders:
        if contender.accuracy and contender.agreement:
            yield (
                f"{contender.name}: top-1 {contender.accuracy.top1:.2%}, top-5 "
                f"{contender.accuracy.top5:.2%} of {contender.accuracy.images} images, decoded in "
                f"full; same first class as {OURS} for {contender.agreement.same_top1}, largest "
                f"difference of a logit {contender.agreement.max_logit_difference:.1e}"
            )


def comparison_tables(comparison: Comparison) -> Iterator[Shown]:
    """What changed, what noise explains, and what else is not the same."""
    table = Table("contender", "figure", "before", "after", "after / before", "may be", "verdict")
    for change in comparison.changes:
        verdict = "within noise"
        if change.is_real:
            verdict = "SLOWER" if change.ratio > 1 else "FASTER"
        figures = (f"{change.before:.2f}", f"{change.after:.2f}", f"{change.ratio:.2f}x")
        interval = f"{change.low:.2f} to {change.high:.2f}"
        table.add_row(change.contender, change.figure, *figures, interval, verdict)
    yield table
    changed = sum(change.is_real for change in comparison.changes)
    yield f"{changed} of {len(comparison.changes)} figures changed beyond noise"
    if comparison.differences:
        other = Table("what else differs", "before", "after")
        for difference in comparison.differences:
            other.add_row(difference.what, difference.before, difference.after)
        yield other
    yield from (f"warning, {warning}" for warning in comparison.warnings)
