"""Timing that can be quoted: contenders take turns in one run, and a ratio comes with its interval.

All times are wall-clock milliseconds of `time.perf_counter`. A fixed piece of work takes its turns
too: how its time changes tells what the machine did to everything else.

Legend: n calls, b blocks of consecutive calls. A turn is a row of calls that nothing interrupts. A
pass is a row of turns; the PASSES of one thing lie apart in time, other things between them, so
that a load which comes and goes is seen as that.
"""

import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlp_deploy.formats.architecture import Record
from vlp_deploy.processor import processor_name

Doubles = NDArray[np.float64]
PERCENTILES = (50, 90, 95, 99)
QUANTILES = 200
PASSES = 8
TURN_SECONDS = 0.1
QUICK = 10  # percentile: what other programs disturb least, as they only ever add time
BLOCKS = 20  # at least
RESAMPLES = 2000
LEVEL = (2.5, 97.5)  # percentiles of a 95 % interval
REFERENCE_SIZE = 1 << 14  # numbers a thread works on: they stay in its nearest cache
REFERENCE_REPEATS = 64  # about a millisecond on an idle core


class Spread(Record, frozen=True, kw_only=True):
    """Percentiles of the times of `calls` calls, with the 95 % bootstrap interval of the median."""

    calls: int
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    p50_low_ms: float
    p50_high_ms: float


class Latency(Spread, frozen=True, kw_only=True):
    """How long one call took that was given `batch` images, one after the other.

    `first_ms` is the very first call, which allocates and may compile. `quantiles_ms` draw the
    distribution: QUANTILES of them, evenly spaced from the fastest call to the slowest. `passes_ms`
    and `reference_passes_ms` are the quick calls of each pass (percentile QUICK), of these calls
    and of the reference work.
    """

    batch: int
    images_per_s: float
    first_ms: float
    quantiles_ms: tuple[float, ...]
    passes_ms: tuple[float, ...]
    reference_passes_ms: tuple[float, ...]


class Ratio(Record, frozen=True, kw_only=True):
    """Median of paired time ratios with its 95 % bootstrap interval."""

    median: float
    low: float
    high: float


class Machine(Record, frozen=True, kw_only=True):
    """Where a figure was measured."""

    cpu: str
    cores: int
    load_average: float
    python: str
    packages: dict[str, str]


def take_turns(
    contenders: Mapping[str, Callable[[], object]],
    *,
    seconds: float,
    warm_up: int = 3,
    least: int = 10,
) -> dict[str, Doubles]:
    """Give every contender its turn in each round, in rotating order, for about `seconds` and at
    least `least` rounds.

    Returns the median of each contender's turns in milliseconds, round by round, so that they can
    be paired.
    """
    turns = all_turns(contenders, seconds=seconds, warm_up=warm_up, least=least)
    return {name: medians(own) for name, own in turns.items()}


def all_turns(
    contenders: Mapping[str, Callable[[], object]], *, seconds: float, warm_up: int, least: int
) -> dict[str, list[Doubles]]:
    """The same with the times of all calls of each turn, in milliseconds.

    A turn is a row of calls that lasts up to TURN_SECONDS, because a call alone, between others, is
    slower than the same in a row: its weights have left the caches and its threads fell asleep. For
    the same reason the first call of a row is left out.
    """
    names = list(contenders)
    for name in names * warm_up:
        contenders[name]()
    turns: dict[str, list[Doubles]] = {name: [] for name in names}
    longest = min(TURN_SECONDS, seconds / (least * len(names)))
    deadline, rounds = time.perf_counter() + seconds, 0
    while rounds < least or time.perf_counter() < deadline:
        for name in names[rounds % len(names) :] + names[: rounds % len(names)]:
            turns[name].append(_turn(contenders[name], longest))
        rounds += 1
    return turns


def _turn(call: Callable[[], object], seconds: float) -> Doubles:
    """Milliseconds of the calls of a turn."""
    deadline, times = time.perf_counter() + seconds, [milliseconds(call)]
    while time.perf_counter() < deadline:
        times.append(milliseconds(call))
    return np.array(times[1:] or times)


def medians(turns: Sequence[Doubles]) -> Doubles:
    """The median call of each turn."""
    return np.array([np.median(turn) for turn in turns])


def milliseconds(call: Callable[[], object]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - start)


def spread(times_ms: Doubles) -> Spread:
    """Percentiles of times (n,) in the order in which they were measured."""
    return Spread(**_percentiles(times_ms))


def latency(
    passes_ms: Sequence[Doubles], reference_ms: Sequence[Doubles], *, batch: int, first_ms: float
) -> Latency:
    """From the times of each pass, (n,) and by turns with the reference work, to their summary."""
    times_ms = np.concatenate(passes_ms)
    return Latency(
        **_percentiles(times_ms),
        batch=batch,
        images_per_s=float(1000 * batch * len(times_ms) / times_ms.sum()),
        first_ms=first_ms,
        quantiles_ms=tuple(np.quantile(times_ms, np.linspace(0, 1, QUANTILES)).tolist()),
        passes_ms=tuple(float(np.percentile(times, QUICK)) for times in passes_ms),
        reference_passes_ms=tuple(float(np.percentile(times, QUICK)) for times in reference_ms),
    )


def _percentiles(times_ms: Doubles) -> dict[str, Any]:
    low, high = median_interval(times_ms)
    named = {f"p{p}_ms": float(np.percentile(times_ms, p)) for p in PERCENTILES}
    return {"calls": len(times_ms), **named, "p50_low_ms": low, "p50_high_ms": high}


def paired_ratio(first_ms: Doubles, second_ms: Doubles) -> Ratio:
    """`first / second`, round by round: a machine that slows down slows both."""
    ratios = first_ms / second_ms
    low, high = median_interval(ratios)
    return Ratio(median=float(np.median(ratios)), low=low, high=high)


@contextmanager
def reference_work(threads: int = 1) -> Iterator[Callable[[], object]]:
    """A piece of arithmetic that is the same in every run, on every thread that the engine has.

    Like an engine it waits for its slowest thread, so that other programs slow it down alike. A
    matrix product would not do: its threads go on spinning for milliseconds, in the time of whoever
    is next.
    """
    values = np.random.default_rng(0).standard_normal(REFERENCE_SIZE, np.float32)
    results = [np.empty_like(values) for _ in range(threads)]

    def work(result: NDArray[np.float32]) -> None:
        for _ in range(REFERENCE_REPEATS):
            np.tanh(values, out=result)

    with ThreadPoolExecutor(threads) as pool:
        yield lambda: list(pool.map(work, results))


def median_interval(values: Doubles) -> tuple[float, float]:
    """The ends of the 95 % bootstrap interval of the median of (n,), in the order of measuring.

    Whole blocks are drawn, because neighbours in time are not independent, of an odd size, because
    the median of two or four is a mean, which rare slow ones pull up.
    """
    size = max(1, len(values) // BLOCKS)
    size -= 1 - size % 2
    blocks = np.array_split(values, -(-len(values) // size))
    medians = np.array([np.median(block) for block in blocks])  # (b,)
    draws = np.random.default_rng(0).integers(0, len(medians), (RESAMPLES, len(medians)))
    low, high = np.percentile(np.median(medians[draws], axis=1), LEVEL)
    return float(low), float(high)


def describe_machine(packages: Sequence[str]) -> Machine:
    """The processor, its load just now, and the versions of those `packages` that are installed."""
    versions = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return Machine(
        cpu=processor_name(),
        cores=len(os.sched_getaffinity(0)),
        load_average=round(os.getloadavg()[0], 2),
        python=platform.python_version(),
        packages=versions,
    )
