"""Timing that can be quoted: contenders take turns in one run, and a ratio comes with its interval.

All times are wall-clock milliseconds of `time.perf_counter`.
"""

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

import numpy as np
from numpy.typing import NDArray

from vlp_deploy.architecture import Record
from vlp_deploy.processor import processor_name

Doubles = NDArray[np.float64]
PERCENTILES = (50, 90, 95, 99)


class Latency(Record, frozen=True, kw_only=True):
    """How long one call took, over `calls` calls of `batch` images each."""

    batch: int
    calls: int
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    images_per_s: float

    @classmethod
    def of(cls, times_ms: Doubles, *, batch: int) -> "Latency":
        """Percentiles and throughput of measured times."""
        p50, p90, p95, p99 = (float(p) for p in np.percentile(times_ms, PERCENTILES))
        return cls(
            batch=batch,
            calls=len(times_ms),
            p50_ms=p50,
            p90_ms=p90,
            p95_ms=p95,
            p99_ms=p99,
            images_per_s=float(1000 * batch * len(times_ms) / times_ms.sum()),
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


def paired_ratio(first_ms: Doubles, second_ms: Doubles, *, resamples: int = 2000) -> Ratio:
    """`first / second`, round by round: a machine that slows down slows both."""
    ratios = first_ms / second_ms
    draws = np.random.default_rng(0).integers(0, len(ratios), (resamples, len(ratios)))
    low, high = np.percentile(np.median(ratios[draws], axis=1), [2.5, 97.5])
    return Ratio(median=float(np.median(ratios)), low=float(low), high=float(high))


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
