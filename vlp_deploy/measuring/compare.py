"""From two reports of `vlp bench` to what changed between them beyond noise.

Compared are the quick calls of each pass, the tenth percentile: other programs only ever add time,
so these say most about the engine. What is noise is found in three ways, and a change has to be
larger than all of them:

1. A run measures everything in passes that lie apart in time. How the passes of a run differ gives
   the 99.9 % interval of its mean (Student's t, on logarithms; a report has many figures).
2. Other programs slow everything down, but not everything alike. The reference work, timed by turns
   with everything else, tells by what factor s the machine was slower at fixed work; the engine may
   have been slowed by anything from 1 to s². The interval covers that whole range.
3. On the same machine the same engine may differ by 5 % from one process to the next, by where its
   memory lies and which cores it gets. What is within that is not called a change.
"""

from pathlib import Path

import msgspec
import numpy as np

from vlp_deploy.errors import DataError
from vlp_deploy.formats.architecture import Record
from vlp_deploy.measuring.records import SCHEMA_VERSION, BenchReport, ContenderResult
from vlp_deploy.measuring.timing import PASSES, Doubles, Latency

STUDENT_T = 4.14  # 99.9 %, two-sided, 2 · PASSES - 2 = 14 degrees of freedom
SLOWED = (0, 1, 2)  # by which powers of the reference work's factor an engine may be slowed
SMALLEST = 0.05  # 3. above


class Change(Record, frozen=True, kw_only=True):
    """One figure in both reports.

    `ratio` is after over before, of quick calls and as the clock had it. Without all that may have
    been noise it lies from `low` to `high`.
    """

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
        return self.low > 1 + SMALLEST or self.high < 1 / (1 + SMALLEST)


class Difference(Record, frozen=True, kw_only=True):
    """A condition that is not the same in both reports."""

    what: str
    before: str
    after: str


class Comparison(Record, frozen=True, kw_only=True):
    """All that two reports have in common, and where their conditions differ."""

    changes: tuple[Change, ...]
    differences: tuple[Difference, ...]
    warnings: tuple[str, ...]


def load_report(path: Path) -> BenchReport:
    """Read a report. Raises DataError if it is none, or one of another schema version."""
    try:
        content = path.read_bytes()
        version = msgspec.json.decode(content, type=dict)["schema_version"]
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}. Expected a report of `vlp bench`") from error
    except (msgspec.MsgspecError, KeyError) as error:
        raise DataError(f"{path} is no report of `vlp bench`: {error}") from error
    if version != SCHEMA_VERSION:
        raise DataError(
            f"{path} has schema version {version}; this version of vlp-deploy reads "
            f"{SCHEMA_VERSION}. Measure again"
        )
    try:
        return msgspec.json.decode(content, type=BenchReport)
    except msgspec.MsgspecError as error:
        raise DataError(f"{path} is damaged: {error}. Measure again") from error


def compare(before: BenchReport, after: BenchReport) -> Comparison:
    """Every latency that both reports have, what else differs, and what both warn of.

    Raises DataError if they have no latency in common.
    """
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
    reports = {"before": before, "after": after}
    return Comparison(
        changes=tuple(changes),
        differences=differences(before, after),
        warnings=tuple(
            f"{name}: {warning}" for name, report in reports.items() for warning in report.warnings
        ),
    )


def differences(before: BenchReport, after: BenchReport) -> tuple[Difference, ...]:
    """What else is not the same, and may be why: bundle, engines, threads, machine, versions."""
    old, new = _conditions(before), _conditions(after)
    return tuple(
        Difference(what=what, before=old.get(what, "none"), after=new.get(what, "none"))
        for what in {**old, **new}
        if old.get(what) != new.get(what)
    )


def _conditions(report: BenchReport) -> dict[str, str]:
    names = ("bundle", "method", "engine", "precision", "device", "classes", "threads", "data")
    return {
        **{name: str(getattr(report, name)) for name in names},
        **{name: str(getattr(report.machine, name)) for name in ("cpu", "cores", "python")},
        "load average": f"{report.machine.load_average:.0f}",
        **report.machine.packages,
        **{f"{c.name} runs in": f"{c.engine} {c.precision}" for c in report.contenders[1:]},
    }


def _latencies(before: ContenderResult, after: ContenderResult) -> list[Change]:
    others = {latency.batch: latency for latency in after.latencies}
    return [
        _change(before.name, latency, others[latency.batch])
        for latency in before.latencies
        if latency.batch in others
    ]


def _change(contender: str, before: Latency, after: Latency) -> Change:
    intervals = [_interval(before, after, power) for power in SLOWED]
    return Change(
        contender=contender,
        figure=f"p50 at batch {before.batch}, ms",
        before=before.p50_ms,
        after=after.p50_ms,
        ratio=float(np.exp(np.log(after.passes_ms).mean() - np.log(before.passes_ms).mean())),
        low=min(low for low, _ in intervals),
        high=max(high for _, high in intervals),
    )


def _interval(before: Latency, after: Latency, power: int) -> tuple[float, float]:
    """Of after / before, if the engine is slowed by the reference work's factor to this power."""
    old, new = (_free_of_machine(latency, power) for latency in (before, after))
    difference = new.mean() - old.mean()
    error = STUDENT_T * np.sqrt((old.var(ddof=1) + new.var(ddof=1)) / PASSES)
    low, high = np.exp([difference - error, difference + error])
    return float(low), float(high)


def _free_of_machine(latency: Latency, power: int) -> Doubles:
    """Logarithms (PASSES,) of times over those of the reference work to a power."""
    logs: Doubles = np.log(latency.passes_ms) - power * np.log(latency.reference_passes_ms)
    return logs


def _measured(report: BenchReport) -> str:
    return ", ".join(
        f"{contender.name} at {latency.batch}"
        for contender in report.contenders
        for latency in contender.latencies
    )
