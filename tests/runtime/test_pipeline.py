"""Order, bounds and errors of the reading threads."""

import threading
import time

import pytest

from vlp_deploy.pipeline import batched, ordered_map


def test_results_come_in_the_order_of_their_items() -> None:
    def slow_when_even(number: int) -> int:
        time.sleep(0.002 * (number % 2 == 0))
        return number * number

    results = list(ordered_map(slow_when_even, range(50), workers=4, ahead=9))

    assert results == [number * number for number in range(50)]


def test_no_more_than_ahead_items_are_taken() -> None:
    taken: list[int] = []
    source = (taken.append(number) or number for number in range(1000))

    results = ordered_map(lambda number: number, source, workers=3, ahead=5)
    for _ in range(10):
        next(results)

    assert len(taken) == 15


def test_work_runs_in_threads_side_by_side() -> None:
    meeting = threading.Barrier(3, timeout=10)

    results = list(ordered_map(lambda _: meeting.wait(), range(3), workers=3, ahead=3))

    assert sorted(results) == [0, 1, 2]  # all three were in the function at once


def test_an_error_reaches_the_reader_in_its_place() -> None:
    results = ordered_map(lambda number: 1 // number, [1, 1, 0, 1], workers=2, ahead=4)

    assert [next(results), next(results)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_closing_drops_what_has_not_begun() -> None:
    begun: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        time.sleep(0.01)
        return number

    results = ordered_map(work, range(1000), workers=1, ahead=500)
    next(results)
    results.close()

    assert len(begun) < 20


@pytest.mark.parametrize(
    ("count", "sizes"), [(0, []), (1, [1]), (4, [4]), (5, [4, 1]), (9, [4, 4, 1])]
)
def test_batches_hold_all_items_once(count: int, sizes: list[int]) -> None:
    batches = list(batched(range(count), 4))

    assert [len(batch) for batch in batches] == sizes
    assert [item for batch in batches for item in batch] == list(range(count))
