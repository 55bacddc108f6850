"""Timing that can be quoted: contenders take turns in one run, and a ratio comes with its interval.

All times are wall-clock milliseconds of `time.perf_counter`. A fixed piece of work takes its turns
too: time over its time is what two runs on a machine that drifts can be compared by.

Legend: n calls, b blocks of consecutive calls.
"""

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

import numpy as np
from numpy.typing import NDArray

from vlp_deploy.formats.architecture import Record
from vlp_deploy.processor import processor_name

Doubles = NDArray[np.float64]
PERCENTILES = (50, 90, 95, 99)
QUANTILES = 200
BLOCKS = 20  # a run's calls are summed up in as many consecutive blocks
RESAMPLES = 2000
LEVEL = (2.5, 97.5)  # percentiles of a 95 % interval
REFERENCE_SIZE = 1 << 20  # numbers to work on: about a millisecond


class Latency(Record, frozen=True, kw_only=True):
    """How long one call took, over `calls` calls of `batch` images each.

    `p50_low` and `p50_high` are the 95 % bootstrap interval of the median. `relative` has the
    median of time over that of the reference work for each block of the run. `quantiles_ms` draw
    the distribution: QUANTILES of them, evenly spaced from the fastest call to the slowest.
    """

    batch: int
    calls: int
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    p50_low_ms: float
    p50_high_ms: float
    images_per_s: float
    relative: tuple[float, ...]
    quantiles_ms: tuple[float, ...] = ()

    @classmethod
    def of(cls, times_ms: Doubles, reference_ms: Doubles, *, batch: int) -> "Latency":
        """Percentiles and throughput of times (n,), measured by turns with the reference work."""
        p50, p90, p95, p99 = (float(p) for p in np.percentile(times_ms, PERCENTILES))
        low, high = median_interval(block_medians(times_ms))
        return cls(
            batch=batch,
            calls=len(times_ms),
            p50_ms=p50,
            p90_ms=p90,
            p95_ms=p95,
            p99_ms=p99,
            p50_low_ms=low,
            p50_high_ms=high,
            images_per_s=float(1000 * batch * len(times_ms) / times_ms.sum()),
            relative=tuple(map(float, block_medians(times_ms / reference_ms))),
            quantiles_ms=tuple(map(float, np.quantile(times_ms, np.linspace(0, 1, QUANTILES)))),
        )


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
    contenders: Mapping[str, Callable[[], object]], *, seconds: float, warm_up: int = 3
) -> dict[str, Doubles]:
    """Call every contender once a round, in rotating order, for about `seconds` and at least 10
    rounds.

    Returns each contender's times in milliseconds, round by round, so that they can be paired.
    """
    names = list(contenders)
    for name in names * warm_up:
        contenders[name]()
    times: dict[str, list[float]] = {name: [] for name in names}
    deadline, rounds = time.perf_counter() + seconds, 0
    while rounds < 10 or time.perf_counter() < deadline:
        for name in names[rounds % len(names) :] + names[: rounds % len(names)]:
            start = time.perf_counter()
            contenders[name]()
            times[name].append(1000 * (time.perf_counter() - start))
        rounds += 1
    return {name: np.array(values) for name, values in times.items()}


def paired_ratio(first_ms: Doubles, second_ms: Doubles) -> Ratio:
    """`first / second`, round by round: a machine that slows down slows both."""
    ratios = first_ms / second_ms
    low, high = median_interval(ratios)
    return Ratio(median=float(np.median(ratios)), low=low, high=high)


def reference_work() -> Callable[[], object]:
    """A piece of arithmetic that is the same in every run: what a core can do just now.

    It uses one thread: those of a matrix library go on spinning for milliseconds after a product,
    in the time of whoever is next.
    """
    values = np.random.default_rng(0).standard_normal(REFERENCE_SIZE, np.float32)
    return lambda: np.tanh(values).sum()


def block_medians(values: Doubles) -> Doubles:
    """Medians (b,) of consecutive blocks of (n,): neighbours in time are not independent."""
    blocks = np.array_split(values, min(BLOCKS, len(values)))
    return np.array([np.median(block) for block in blocks])


def median_interval(values: Doubles) -> tuple[float, float]:
    """The ends of the 95 % bootstrap interval of the median of (n,)."""
    low, high = np.percentile(resampled_medians(values), LEVEL)
    return float(low), float(high)


def resampled_medians(values: Doubles, *, seed: int = 0) -> Doubles:
    """Medians (RESAMPLES,) of bootstrap resamples of (n,)."""
    draws = np.random.default_rng(seed).integers(0, len(values), (RESAMPLES, len(values)))
    medians: Doubles = np.median(values[draws], axis=1)
    return medians


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
