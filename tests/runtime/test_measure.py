"""Timing statistics on times whose answer is known."""

import threading
import time

import numpy as np
import pytest

from vlp_deploy.measuring.timing import (
    all_turns,
    describe_machine,
    latency,
    median_interval,
    medians,
    paired_ratio,
    reference_work,
    take_turns,
)


def test_latency_percentiles_of_known_times() -> None:
    times = np.arange(1.0, 102.0)  # 1 … 101 ms
    found = latency([times[:50], times[50:]], [times / 2] * 2, batch=4, first_ms=7.0)

    assert (found.p50_ms, found.p90_ms, found.p99_ms) == (51, 91, 100)
    assert 1 <= found.p50_low_ms < 51 < found.p50_high_ms <= 101
    assert found.passes_ms == pytest.approx((5.9, 56))  # their tenth percentiles
    assert found.reference_passes_ms == pytest.approx((5.5, 5.5))
    assert (found.quantiles_ms[0], found.quantiles_ms[-1]) == (1, 101)
    assert found.images_per_s == 1000 * 4 / 51
    assert found.calls == 101


def test_reference_work_runs_on_all_threads_and_ends_them() -> None:
    before = threading.active_count()

    with reference_work(3) as work:
        work()
        during = threading.active_count()

    assert before < during <= before + 3  # a thread that is free is used again
    assert threading.active_count() == before


def test_paired_ratio_is_not_fooled_by_a_drifting_machine() -> None:
    drift = np.linspace(1, 10, 50)

    ratio = paired_ratio(3 * drift, 2 * drift)

    assert np.isclose([ratio.low, ratio.median, ratio.high], 1.5).all()


def test_paired_ratio_interval_contains_the_median_of_noisy_pairs() -> None:
    noise = np.random.default_rng(1)

    ratio = paired_ratio(noise.uniform(1, 3, 200), noise.uniform(1, 3, 200))

    assert ratio.low < ratio.median < ratio.high
    assert ratio.high - ratio.low < 0.5


def test_interval_of_a_few_turns_holds_their_median_although_some_are_slow() -> None:
    noise = np.random.default_rng(3)
    disturbed = noise.random((200, 40)) < 0.25
    values = noise.normal(1, 0.02, (200, 40)) * np.where(disturbed, 1.5, 1)

    intervals = np.array([median_interval(each) for each in values])
    medians = np.median(values, axis=1)

    assert ((intervals[:, 0] <= medians) & (medians <= intervals[:, 1])).all()


def test_take_turns_finds_the_slower_contender() -> None:
    times = take_turns({"fast": lambda: None, "slow": lambda: time.sleep(0.003)}, seconds=0)

    assert {name: len(values) for name, values in times.items()} == {"fast": 10, "slow": 10}
    assert np.median(times["slow"]) >= 3


def test_take_turns_rotates_who_goes_first() -> None:
    order: list[str] = []
    take_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, seconds=0)

    assert order[6:10] == ["a", "b", "b", "a"]  # after 3 warm-up calls of each


def test_a_turn_is_a_row_of_calls_whose_first_is_not_counted() -> None:
    quick: list[None] = []
    contenders = {"quick": lambda: quick.append(None), "slow": lambda: time.sleep(0.02)}

    turns = all_turns(contenders, seconds=0.04, warm_up=0, least=2)

    assert [len(turn) for turn in turns["slow"]] == [1, 1]  # one is longer than a turn
    assert len(turns["quick"]) == 2
    assert sum(map(len, turns["quick"])) == len(quick) - 2
    assert medians(turns["slow"]).tolist() == [turn[0] for turn in turns["slow"]]


def test_machine_names_installed_packages_only() -> None:
    machine = describe_machine(["numpy", "no-such-package"])

    assert machine.packages == {"numpy": np.__version__}
    assert machine.cores >= 1
