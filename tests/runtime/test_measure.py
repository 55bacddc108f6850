"""Timing statistics on times whose answer is known."""

import time

import numpy as np

from vlp_deploy.measuring.timing import Latency, describe_machine, paired_ratio, take_turns


def test_latency_percentiles_of_known_times() -> None:
    times = np.arange(1.0, 102.0)  # 1 … 101 ms
    latency = Latency.of(times, times / 2, batch=4)

    assert (latency.p50_ms, latency.p90_ms, latency.p99_ms) == (51, 91, 100)
    assert 1 <= latency.p50_low_ms < 51 < latency.p50_high_ms <= 101
    assert latency.relative == (2.0,) * 20
    assert latency.images_per_s == 1000 * 4 / 51
    assert latency.calls == 101


def test_paired_ratio_is_not_fooled_by_a_drifting_machine() -> None:
    drift = np.linspace(1, 10, 50)

    ratio = paired_ratio(3 * drift, 2 * drift)

    assert np.isclose([ratio.low, ratio.median, ratio.high], 1.5).all()


def test_paired_ratio_interval_contains_the_median_of_noisy_pairs() -> None:
    noise = np.random.default_rng(1)

    ratio = paired_ratio(noise.uniform(1, 3, 200), noise.uniform(1, 3, 200))

    assert ratio.low < ratio.median < ratio.high
    assert ratio.high - ratio.low < 0.5


def test_take_turns_finds_the_slower_contender() -> None:
    times = take_turns({"fast": lambda: None, "slow": lambda: time.sleep(0.003)}, seconds=0)

    assert {name: len(values) for name, values in times.items()} == {"fast": 10, "slow": 10}
    assert np.median(times["slow"]) >= 3


def test_take_turns_rotates_who_goes_first() -> None:
    order: list[str] = []
    take_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, seconds=0)

    assert order[6:10] == ["a", "b", "b", "a"]  # after 3 warm-up calls of each


def test_machine_names_installed_packages_only() -> None:
    machine = describe_machine(["numpy", "no-such-package"])

    assert machine.packages == {"numpy": np.__version__}
    assert machine.cores >= 1
