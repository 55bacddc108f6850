"""Closed and open loops around calls whose length is known."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from vlp_deploy.errors import DataError, EngineError
from vlp_deploy.formats.bundle import Bundle
from vlp_deploy.measuring.loops import LoopPlan, arrivals, closed_loop, open_loop, with_loops
from vlp_deploy.measuring.records import ContenderResult
from vlp_deploy.measuring.timing import latency


class OneAtATime:
    """A call of known length that only one caller gets at a time, like an engine that is full."""

    def __init__(self, milliseconds: float) -> None:
        self.seconds = milliseconds / 1000
        self.lock = threading.Lock()
        self.threads: set[int] = set()

    def __call__(self) -> None:
        with self.lock:
            self.threads.add(threading.get_ident())
            time.sleep(self.seconds)


def test_closed_loop_has_as_many_callers_as_it_says() -> None:
    call = OneAtATime(1)

    loop = closed_loop(call, concurrency=3, seconds=0, batch=4)

    assert len(call.threads) == 3
    assert (loop.kind, loop.concurrency, loop.batch) == ("closed", 3, 4)
    assert loop.latency.calls >= 9  # three of each
    assert loop.images_per_s == pytest.approx(4 * loop.achieved_rate)


def test_callers_of_a_full_engine_wait_for_each_other() -> None:
    loop = closed_loop(OneAtATime(2), concurrency=4, seconds=0.1, batch=1)

    assert loop.achieved_rate < 500  # one every 2 ms at most
    assert loop.latency.p90_ms > 4  # behind at least one other


def test_open_loop_counts_the_time_that_requests_wait() -> None:
    """20 requests come within 20 ms; the last is answered after 20 times 4 ms."""
    loop = open_loop(OneAtATime(4), rate=1000, concurrency=1, seconds=0.02, batch=1, constant=True)

    assert loop.latency.calls == 20
    assert loop.latency.p99_ms > 50  # each call took 4: what is measured is the queue
    assert loop.achieved_rate < 250
    assert not loop.kept_up


def test_open_loop_that_keeps_up_says_so() -> None:
    loop = open_loop(lambda: None, rate=50, concurrency=2, seconds=0.3, batch=2)

    assert loop.kept_up
    assert loop.unanswered == 0
    assert loop.latency.calls == 15
    assert loop.achieved_rate == pytest.approx(50, rel=0.5)
    assert loop.images_per_s == pytest.approx(2 * loop.achieved_rate)


def test_requests_that_nobody_answers_in_time_count_with_their_age() -> None:
    loop = open_loop(
        OneAtATime(300), rate=1000, concurrency=1, seconds=0.01, batch=1, constant=True
    )

    assert loop.unanswered >= 5  # of ten, three or four are answered in the second that is allowed
    assert loop.latency.calls == 10
    assert loop.latency.p99_ms > 900


@pytest.mark.parametrize("constant", [True, False])
def test_arrivals_have_the_rate_that_was_asked_for(constant: bool) -> None:
    due = arrivals(20, seconds=10, constant=constant)

    assert len(due) == 200
    assert 9 < due[-1] <= 10
    assert (np.diff(due) >= 0).all()
    assert (np.ptp(np.diff(due)) < 1e-9) == constant


@pytest.mark.parametrize("loop", ["closed", "open"])
def test_an_error_of_a_caller_is_not_lost(loop: str) -> None:
    calls = iter(range(100))

    def fails() -> None:
        if next(calls) > 3:
            raise EngineError("out of order")

    with pytest.raises(EngineError, match="out of order"):
        if loop == "closed":
            closed_loop(fails, concurrency=3, seconds=0, batch=1)
        else:
            open_loop(fails, rate=1000, concurrency=2, seconds=0.02, batch=1)


def test_an_error_before_the_loop_keeps_nobody_waiting() -> None:
    def fails() -> None:
        raise EngineError("out of order")

    with pytest.raises(EngineError, match="out of order"):
        closed_loop(fails, concurrency=3, seconds=0, batch=1)


def test_plan_runs_every_loop_of_every_contender(fake_bundle: Path) -> None:
    class Counting:
        def __init__(self) -> None:
            self.batches: set[int] = set()

        def logits(self, pixels: np.ndarray) -> np.ndarray:
            self.batches.add(len(pixels))
            return np.zeros((len(pixels), 2), np.float32)

    measured = [latency([np.ones(4)], [np.ones(4)], batch=n, first_ms=1.0) for n in (8, 2)]
    result = ContenderResult(name="a", latencies=tuple(measured))
    plan = LoopPlan.read("1, 2", "500", constant=False, seconds=0)
    contender, steps = Counting(), []

    (found,) = with_loops(
        [result],
        {"a": contender},
        Bundle(fake_bundle),
        plan=plan,
        progress=lambda text, n: steps.append(n),
    )

    assert [(loop.kind, loop.concurrency) for loop in found.loops] == [
        ("closed", 1),
        ("closed", 2),
        ("open", 2),
    ]
    assert contender.batches == {2}
    assert sum(steps) == len(plan) == 3


@pytest.mark.parametrize(
    ("concurrencies", "rates", "reason"),
    [
        ("1,x", "", "--concurrency is '1,x'; expected numbers above 0"),
        ("0", "", "--concurrency is '0'; expected numbers above 0"),
        ("1.5", "", "--concurrency is '1.5'; expected whole numbers"),
        ("", "-3", "--rate is '-3'; expected numbers above 0"),
        ("", "nan", "--rate is 'nan'; expected numbers above 0"),
    ],
)
def test_numbers_that_are_none_are_refused(concurrencies: str, rates: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        LoopPlan.read(concurrencies, rates, constant=False, seconds=1)
