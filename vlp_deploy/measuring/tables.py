"""From a report of `vlp bench`, or a comparison of two, to what is shown in a terminal."""

from collections.abc import Iterable, Iterator

import numpy as np
from rich.table import Column, Table

from vlp_deploy.measuring.accuracy import Accuracy, Agreement, Findings
from vlp_deploy.measuring.compare import Comparison
from vlp_deploy.measuring.gemm import gemm_share
from vlp_deploy.measuring.records import OURS, BenchReport
from vlp_deploy.measuring.timing import PERCENTILES, QUICK, Spread

Shown = str | Table
SLOW_FIRST_MS = 2000  # a first call that is worth telling: something was compiled
MISTAKES = 5  # pairs of classes; a report has more


def report_tables(report: BenchReport) -> Iterator[Shown]:
    """The whole report, in the order in which it is read."""
    machine = report.machine
    yield (
        f"{report.method}, {report.classes} classes, {report.engine} {report.precision}, "
        f"{report.gflops_per_image:.3g} GFLOP an image, {_counted(report.threads, 'thread')}\n"
        f"{machine.cpu}, load {machine.load_average}"
    )
    yield from (f"warning: {warning}" for warning in report.warnings)
    yield from (f"not measured: {what}" for what in report.left_out)
    cached = all(contender.text_embeddings_cached for contender in report.contenders)
    yield "text embeddings: " + ("computed beforehand" if cached else "computed for every image")
    yield _latencies(report)
    yield from _ratios(report)
    yield from _first_calls(report)
    yield from _gemm_shares(report)
    yield from _loops(report)
    yield from _stages(report)
    yield from _accuracies(report)
    if report.cold_start:
        later = np.median(report.cold_start.later_s)
        yield (
            f"process start to first answer: {report.cold_start.first_s:.2f} s the first time, "
            f"{later:.2f} s after that; peak memory {report.cold_start.peak_memory_mb:.0f} MB"
        )


def _table(*header: str) -> Table:
    """Names too long for a column go on in the next line: cut short they might look alike."""
    first, *others = (Column(name, overflow="fold") for name in header)
    first.min_width = len(OURS)
    return Table(first, *others, show_edge=False, pad_edge=False)


def _latencies(report: BenchReport) -> Table:
    table = _table("contender", "batch", *(f"p{p} ms" for p in PERCENTILES), "calls", "images/s")
    for contender in report.contenders:
        for latency in contender.latencies:
            calls, rate = str(latency.calls), f"{latency.images_per_s:.1f}"
            table.add_row(contender.name, str(latency.batch), *_cells(latency), calls, rate)
    return table


def _cells(spread: Spread) -> list[str]:
    times = (spread.p50_ms, spread.p90_ms, spread.p95_ms, spread.p99_ms)
    return [f"{value:.2f}" for value in times]


def _ratios(report: BenchReport) -> Iterator[Shown]:
    others = report.contenders[1:]
    if not others:
        return
    table = _table("contender", "batch", f"time of {OURS} = 1", "95 % interval")
    for contender in others:
        for latency, ratio in zip(contender.latencies, contender.ratios, strict=True):
            interval = f"{ratio.low:.2f} to {ratio.high:.2f}"
            table.add_row(contender.name, str(latency.batch), f"{ratio.median:.2f}", interval)
    yield table


def _first_calls(report: BenchReport) -> Iterator[Shown]:
    for contender in report.contenders:
        for latency in contender.latencies:
            if latency.first_ms > SLOW_FIRST_MS:
                yield (
                    f"batch {latency.batch}: the first call of {contender.name} took "
                    f"{latency.first_ms / 1000:.1f} s"
                )


def _gemm_shares(report: BenchReport) -> Iterator[Shown]:
    rates = {rate.batch: rate for rate in report.gemm}
    for latency in report.contenders[0].latencies:
        share, rate = gemm_share(report, latency), rates.get(latency.batch)
        if share is not None and rate is not None:
            yield (
                f"batch {latency.batch}: {share:.0%} of the best rate of a matrix product, "
                f"{rate.gflops_per_s:.0f} GFLOP/s ({rate.rows} x {rate.inner} x {rate.columns}, "
                f"{_counted(rate.threads, 'thread')}, {rate.library})"
            )


def _loops(report: BenchReport) -> Iterator[Shown]:
    loops = [(contender.name, loop) for contender in report.contenders for loop in contender.loops]
    if not loops:
        return
    table = _table("contender", "loop", "images/s", *(f"p{p} ms" for p in PERCENTILES), "calls")
    for name, loop in loops:
        kind = _counted(loop.concurrency, "caller")
        if loop.rate is not None:
            kind = f"{loop.rate:g}/s" + ("" if loop.kept_up else ": too many")
        calls = str(loop.latency.calls)
        table.add_row(name, kind, f"{loop.images_per_s:.1f}", *_cells(loop.latency), calls)
    yield table


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _stages(report: BenchReport) -> Iterator[Shown]:
    if report.stages:
        table = _table("one image", *(f"p{p} ms" for p in PERCENTILES), "calls")
        for name, spread in report.stages.spreads.items():
            table.add_row(name, *_cells(spread), str(spread.calls))
        yield table
        yield f"of {report.stages.images} images: {report.stages.source}"


def _accuracies(report: BenchReport) -> Iterator[Shown]:
    measured = [(c.name, c.accuracy) for c in report.contenders if c.accuracy]
    if measured:
        yield f"accuracy of {measured[0][1].images} images, decoded in full:"
        yield _accuracy_table(measured)
    others = [(c.name, c.agreement) for c in report.contenders[1:] if c.agreement]
    if others:
        yield _agreement_table(others)
    if report.findings:
        yield from _findings(report.findings)


def _accuracy_table(measured: Iterable[tuple[str, Accuracy]]) -> Table:
    """NLL is the negative log-likelihood in nats, ECE the expected calibration error."""
    table = _table("contender", "top-1", "95 % interval", "top-5", "NLL", "ECE")
    for name, found in measured:
        table.add_row(
            name,
            f"{found.top1.value:.2%}",
            f"{found.top1.low:.1%} to {found.top1.high:.1%}",
            f"{found.top5.value:.2%}",
            f"{found.nll:.3f}",
            f"{found.ece:.1%}",
        )
    return table


def _agreement_table(others: Iterable[tuple[str, Agreement]]) -> Table:
    table = _table(
        *(f"beside {OURS}", "same first class", "logits differ by"),
        *("its top-1 minus this", "95 % interval"),
    )
    for name, found in others:
        points = ("", "")
        if apart := found.top1_difference:
            points = (
                f"{100 * apart.value:+.2f}",
                f"{100 * apart.low:+.2f} to {100 * apart.high:+.2f}",
            )
        same = f"{found.same_top1} of {found.images}"
        table.add_row(name, same, f"{found.max_logit_difference:.1e}", *points)
    return table


def _findings(found: Findings) -> Iterator[Shown]:
    named = [("domain", found.domains), ("other data", found.transfer)]
    if both := found.base_to_new:
        named.append((f"harmonic mean {both.harmonic_mean:.2%}", (both.base, both.new)))
    for title, shares in named:
        if shares:
            table = _table(title, "images", "classes", "top-1", "95 % interval")
            for share in shares:
                top1 = share.top1
                counts = (str(share.images), str(share.classes))
                interval = f"{top1.low:.1%} to {top1.high:.1%}"
                table.add_row(share.name, *counts, f"{top1.value:.2%}", interval)
            yield table
    if found.mistakes:
        table = _table("class", "taken for", "images")
        for mistake in found.mistakes[:MISTAKES]:
            table.add_row(mistake.truth, mistake.answer, str(mistake.images))
        yield table
    if found.unknown:
        yield (
            f"known against {found.unknown.images} unknown images: AUROC {found.unknown.auroc:.3f},"
            f" FPR95 {found.unknown.fpr95:.1%}"
        )


def comparison_tables(comparison: Comparison) -> Iterator[Shown]:
    """What changed, what noise explains, and what else is not the same."""
    table = _table("contender", "figure", "before", "after", "quick calls", "may be", "verdict")
    for change in comparison.changes:
        verdict = "within noise"
        if change.is_real:
            verdict = "SLOWER" if change.ratio > 1 else "FASTER"
        figures = (f"{change.before:.2f}", f"{change.after:.2f}", f"{change.ratio:.2f}x")
        interval = f"{change.low:.2f} to {change.high:.2f}"
        table.add_row(change.contender, change.figure, *figures, interval, verdict)
    yield table
    changed = sum(change.is_real for change in comparison.changes)
    yield (
        f"{changed} of {len(comparison.changes)} figures changed beyond noise. Quick calls: the "
        f"{QUICK}th percentile after over before, and what it may be without the machine's part"
    )
    if comparison.differences:
        other = _table("what else differs", "before", "after")
        for difference in comparison.differences:
            other.add_row(difference.what, difference.before, difference.after)
        yield other
    yield from (f"warning, {warning}" for warning in comparison.warnings)
