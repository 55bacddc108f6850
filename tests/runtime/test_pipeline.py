"""Order, bounds and errors of the reading threads."""

import threading
import time

import pytest

from vlp_deploy.bulk.pipeline import Bounds, batched, ordered_map
from vlp_deploy.errors import DataError


def test_results_come_in_the_order_of_their_items() -> None:
    def slow_when_even(number: int, _) -> int:
        time.sleep(0.002 * (number % 2 == 0))
        return number * number

    results = list(ordered_map(slow_when_even, range(50), Bounds(workers=4, ahead=9)))

    assert results == [number * number for number in range(50)]


def test_no_more_than_ahead_items_are_taken() -> None:
    taken: list[int] = []
    source = (taken.append(number) or number for number in range(1000))

    results = ordered_map(lambda number, _: number, source, Bounds(workers=3, ahead=5))
    for _ in range(10):
        next(results)

    assert len(taken) == 15


def test_work_runs_in_threads_side_by_side() -> None:
    meeting = threading.Barrier(3, timeout=10)

    results = list(ordered_map(lambda *_: meeting.wait(), range(3), Bounds(workers=3, ahead=3)))

    assert sorted(results) == [0, 1, 2]  # all three were in the function at once


def test_an_error_reaches_the_reader_in_its_place() -> None:
    results = ordered_map(lambda number, _: 1 // number, [1, 1, 0, 1], Bounds(workers=2, ahead=4))

    assert [next(results), next(results)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_closing_drops_what_has_not_begun() -> None:
    begun: list[int] = []

    def work(number: int, _) -> int:
        begun.append(number)
        time.sleep(0.01)
        return number

    results = ordered_map(work, range(1000), Bounds(workers=1, ahead=500))
    next(results)
    results.close()

    assert len(begun) < 20


def test_no_more_weight_than_allowed_is_taken() -> None:
    taken: list[int] = []
    source = (taken.append(size) or size for size in [40, 70, 1, 1, 1, 200, 1, 1])
    bounds = Bounds(workers=2, ahead=6, weigh=lambda size: size, max_weight=100)

    results = ordered_map(lambda size, _: size, source, bounds)

    assert next(results) == 40
    assert taken == [40, 70, 1, 1, 1, 200]  # 110 was too much for more; 70 left room
    assert list(results) == [70, 1, 1, 1, 200, 1, 1]


def test_late_item_is_given_up_and_the_others_go_on() -> None:
    hang = threading.Event()

    def work(number: int, _) -> int:
        if number == 3:
            hang.wait(10)
        return number

    bounds = Bounds(workers=1, ahead=4, seconds=0.2, late=lambda number: -number)
    results = list(ordered_map(work, range(8), bounds))

    hang.set()
    assert results == [0, 1, 2, -3, 4, 5, 6, 7]


def test_item_that_ended_late_is_late_whoever_waited() -> None:
    bounds = Bounds(workers=1, ahead=4, seconds=0.05, late=lambda number: "late")

    results = ordered_map(lambda seconds, _: time.sleep(seconds) or "done", [0.1, 0], bounds)
    time.sleep(0.2)  # nobody waits while it runs

    assert list(results) == ["late", "done"]


def test_clock_stands_still_while_paused() -> None:
    def work(seconds: float, deadline) -> str:
        with deadline.paused():
            time.sleep(seconds)
        return "done"

    bounds = Bounds(workers=1, ahead=1, seconds=0.05, late=lambda seconds: "late")

    assert list(ordered_map(work, [0.3], bounds)) == ["done"]


def test_too_many_that_hang_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlp_deploy.bulk.pipeline.MAX_ABANDONED", 3)
    monkeypatch.setattr("vlp_deploy.bulk.pipeline.JOIN_S", 0.1)
    hang = threading.Event()
    bounds = Bounds(workers=2, ahead=9, seconds=0.02, late=lambda number: number)

    with pytest.raises(DataError, match="3 files took more than"):
        list(ordered_map(lambda *_: hang.wait(10), range(9), bounds))

    hang.set()


@pytest.mark.parametrize(
    ("count", "sizes"), [(0, []), (1, [1]), (4, [4]), (5, [4, 1]), (9, [4, 4, 1])]
)
def test_batches_hold_all_items_once(count: int, sizes: list[int]) -> None:
    batches = list(batched(range(count), 4))

    assert [len(batch) for batch in batches] == sizes
    assert [item for batch in batches for item in batch] == list(range(count))
