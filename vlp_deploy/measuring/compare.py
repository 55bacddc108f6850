"""From two reports of `vlp bench` to what changed between them beyond noise.

Times are compared over those of the reference work, which was measured by turns with everything
else in both runs: a machine that is slower today is slower at both. A change counts if its 99 %
bootstrap interval, over blocks of each run, leaves out a twentieth either way.
"""

from dataclasses import dataclass

import numpy as np

from vlp_deploy.errors import DataError
from vlp_deploy.measuring.records import BenchReport, ContenderResult
from vlp_deploy.measuring.timing import Latency, resampled_medians

LEVEL = (0.5, 99.5)
SMALLEST = 0.05  # a change that runs on the same machine do not agree about


@dataclass(frozen=True, kw_only=True)
class Change:
    """One figure in both reports. `ratio` is after over before, with its interval."""

    contender: str
    figure: str
    before: float
    after: float
    ratio: float
    low: float
    high: float

    @property
    def is_real(self) -> bool:
        """Whether noise is no explanation."""
        return self.low > 1 + SMALLEST or self.high < 1 - SMALLEST


def compare(before: BenchReport, after: BenchReport) -> tuple[Change, ...]:
    """Every latency that both reports have. Raises DataError if they have none in common."""
    others = {contender.name: contender for contender in after.contenders}
    changes = [
        change
        for contender in before.contenders
        if contender.name in others
        for change in _latencies(contender, others[contender.name])
    ]
    if not changes:
        raise DataError(
            f"the reports have no contender and batch size in common: {_measured(before)} against "
            f"{_measured(after)}. Measure the same ones in both runs"
        )
    return tuple(changes)


def differences(before: BenchReport, after: BenchReport) -> tuple[str, ...]:
    """What else is not the same, and may be why: bundle, engine, threads, machine, versions."""
    pairs: dict[str, tuple[object, object]] = {
        name: (getattr(before, name), getattr(after, name))
        for name in ("bundle", "engine", "precision", "classes", "threads", "data")
    }
    for name in ("cpu", "cores", "python"):
        pairs[name] = (getattr(before.machine, name), getattr(after.machine, name))
    for package in sorted({*before.machine.packages, *after.machine.packages}):
        versions = (report.machine.packages.get(package) for report in (before, after))
        pairs[package] = (next(versions), next(versions))
    return tuple(f"{name}: {old} → {new}" for name, (old, new) in pairs.items() if old != new)


def _latencies(before: ContenderResult, after: ContenderResult) -> list[Change]:
    others = {latency.batch: latency for latency in after.latencies}
    return [
        _change(before.name, latency, others[latency.batch])
        for latency in before.latencies
        if latency.batch in others
    ]


def _change(contender: str, before: Latency, after: Latency) -> Change:
    old, new = (np.array(latency.relative) for latency in (before, after))
    # seeds of their own, so that a report compared with itself has an interval too
    ratios = resampled_medians(new, seed=1) / resampled_medians(old, seed=2)
    low, high = np.percentile(ratios, LEVEL)
    return Change(
        contender=contender,
        figure=f"p50 at batch {before.batch}, ms",
        before=before.p50_ms,
        after=after.p50_ms,
        ratio=float(np.median(new) / np.median(old)),
        low=float(low),
        high=float(high),
    )


def _measured(report: BenchReport) -> str:
    return ", ".join(
        f"{contender.name} at {latency.batch}"
        for contender in report.contenders
        for latency in contender.latencies
    )
