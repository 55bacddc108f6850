"""From a call to what many callers get of it: rates and latencies of closed and open loops.

A closed loop has a fixed number of callers, each of whom waits for the answer before asking again:
it tells how much can be done at most. In an open loop requests come when they come. Their latency
counts from the moment they were due, so that a request which had to queue because the last one took
long is not forgotten ("coordinated omission"); a closed loop leaves exactly these out.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self

import msgspec
import numpy as np

from vlp_deploy.errors import DataError
from vlp_deploy.formats.bundle import Bundle
from vlp_deploy.measuring.contender import Contender, Progress
from vlp_deploy.measuring.records import ContenderResult, Loop
from vlp_deploy.measuring.timing import Doubles, spread

Call = Callable[[], object]
MOST_BACKLOG = 0.05  # of the requests, beside those in work, when the last should be answered
LEAST_REQUESTS = 10
LEAST_CALLS = 3  # of each caller


class Callers:
    """Threads that make `call` once each and then, all at the same moment, begin to `work`."""

    def __init__(self, call: Call, work: Callable[[], None], *, count: int) -> None:
        """Returns at that moment. Raises what the first call raised."""
        self._call, self._work = call, work
        self._ready = threading.Barrier(count + 1)
        self._errors: list[Exception] = []
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()
        try:
            self._ready.wait()
        except threading.BrokenBarrierError:
            self.join()

    def _run(self) -> None:
        try:
            self._call()
            self._ready.wait()
            self._work()
        except threading.BrokenBarrierError:  # another thread's first call failed
            return
        except Exception as error:  # whatever it is, `join` raises it
            self._errors.append(error)
            self._ready.abort()

    def wait_until(self, latest: float) -> None:
        """Wait for the threads to end, but no longer than that time of `time.perf_counter`."""
        for thread in self._threads:
            thread.join(max(0.0, latest - time.perf_counter()))

    def join(self) -> None:
        """Wait for the threads to end. Raises the first error of any of them."""
        for thread in self._threads:
            thread.join()
        if self._errors:
            raise self._errors[0]


def closed_loop(call: Call, *, concurrency: int, seconds: float, batch: int) -> Loop:
    """`concurrency` callers for about `seconds`, each calling again when it is answered."""
    answers: list[tuple[float, float]] = []  # when, and after how many milliseconds
    starts: list[float] = []

    def work() -> None:
        begin = end = time.perf_counter()
        own: list[tuple[float, float]] = []
        while end < begin + seconds or len(own) < LEAST_CALLS:
            start = time.perf_counter()
            call()
            end = time.perf_counter()
            own.append((end, 1000 * (end - start)))
        starts.append(begin)
        answers.extend(own)

    Callers(call, work, count=concurrency).join()
    answers.sort()
    rate = len(answers) / (answers[-1][0] - min(starts))
    return Loop(
        kind="closed",
        batch=batch,
        concurrency=concurrency,
        achieved_rate=rate,
        images_per_s=batch * rate,
        latency=spread(np.array([ms for _, ms in answers])),
    )


def open_loop(
    call: Call,
    *,
    rate: float,
    concurrency: int,
    seconds: float,
    batch: int,
    constant: bool = False,
) -> Loop:
    """Requests at `rate` a second for `seconds`, answered by `concurrency` threads.

    They arrive as a Poisson process, or evenly if `constant`. When as long again has passed after
    the last was due, those that are still unanswered are counted with their age.
    """
    due = arrivals(rate, seconds=seconds, constant=constant)
    waiting: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    answered = np.full(len(due), np.nan)
    give_up = threading.Event()

    def work() -> None:
        while (number := waiting.get()) is not None and not give_up.is_set():
            call()
            answered[number] = time.perf_counter()

    callers = Callers(call, work, count=concurrency)
    begin = time.perf_counter()
    for number, at in enumerate(due):
        time.sleep(max(0.0, begin + at - time.perf_counter()))
        waiting.put(number)
    for _ in range(concurrency):
        waiting.put(None)
    latest = begin + due[-1] + max(seconds, 1.0)
    callers.wait_until(latest)
    give_up.set()
    callers.join()
    return _open_result(
        due, answered - begin, rate=rate, concurrency=concurrency, batch=batch, until=latest - begin
    )


def arrivals(rate: float, *, seconds: float, constant: bool, seed: int = 0) -> Doubles:
    """When requests are due, in seconds from the start, at least LEAST_REQUESTS of them."""
    count = max(LEAST_REQUESTS, round(rate * seconds))
    if constant:
        due: Doubles = np.arange(count) / rate
        return due
    # of a Poisson process, once it is known how many came, each came at any time
    return np.sort(np.random.default_rng(seed).uniform(0, count / rate, count))


def _open_result(
    due: Doubles, answered: Doubles, *, rate: float, concurrency: int, batch: int, until: float
) -> Loop:
    """`answered` is NaN for a request that was not, in seconds from the start like `due`."""
    late = ~(answered <= until)  # NaN is late
    ages = np.where(late, until, answered) - due
    period = len(due) / rate
    backlog = len(due) - int((answered <= period).sum())
    achieved = int((~late).sum()) / max(period, float(answered[~late].max(initial=period)))
    return Loop(
        kind="open",
        batch=batch,
        concurrency=concurrency,
        rate=rate,
        achieved_rate=achieved,
        images_per_s=batch * achieved,
        unanswered=int(late.sum()),
        kept_up=backlog <= concurrency + MOST_BACKLOG * len(due),
        latency=spread(1000 * ages),
    )


@dataclass(frozen=True, kw_only=True)
class LoopPlan:
    """Which loops to run, each for `seconds`: closed ones by callers, open ones by rate.

    Open loops are answered by as many threads as the largest closed one has callers.
    """

    concurrencies: tuple[int, ...]
    rates: tuple[float, ...]
    constant: bool
    seconds: float

    @classmethod
    def read(cls, concurrencies: str, rates: str, *, constant: bool, seconds: float) -> Self:
        """From comma-separated lists. Raises DataError."""
        return cls(
            concurrencies=counts_in(concurrencies, option="--concurrency"),
            rates=numbers_in(rates, option="--rate"),
            constant=constant,
            seconds=seconds,
        )

    def __len__(self) -> int:
        return len(self.concurrencies) + len(self.rates)

    def run(self, call: Call, *, batch: int) -> Iterator[Loop]:
        """Each loop as it ends."""
        for count in self.concurrencies:
            yield closed_loop(call, concurrency=count, seconds=self.seconds, batch=batch)
        for rate in self.rates:
            yield open_loop(
                call,
                rate=rate,
                concurrency=max(self.concurrencies, default=1),
                seconds=self.seconds,
                batch=batch,
                constant=self.constant,
            )


def with_loops(
    results: Sequence[ContenderResult],
    contenders: Mapping[str, Contender],
    bundle: Bundle,
    *,
    plan: LoopPlan,
    progress: Progress,
) -> tuple[ContenderResult, ...]:
    """The results with the loops of every contender, at the smallest batch that was measured."""
    pixels = bundle.golden().pixels
    batch = min(latency.batch for latency in results[0].latencies)
    images = np.resize(pixels, (batch, *pixels.shape[1:]))  # (B, 3, S, S)
    found = []
    for result in results:
        contender, loops = contenders[result.name], []
        progress(f"callers at once: {result.name}", 0)
        for loop in plan.run(partial(contender.logits, images), batch=batch):
            loops.append(loop)
            progress(f"callers at once: {result.name}", 1)
        found.append(msgspec.structs.replace(result, loops=tuple(loops)))
    return tuple(found)


def numbers_in(text: str, *, option: str) -> tuple[float, ...]:
    """A comma-separated list of numbers above 0. Raises DataError that names the `option`."""
    try:
        numbers = tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        numbers = (0.0,)
    if not all(0 < number < np.inf for number in numbers):
        raise DataError(f"{option} is {text!r}; expected numbers above 0, such as 1,2,4")
    return numbers


def counts_in(text: str, *, option: str) -> tuple[int, ...]:
    """The same for whole numbers."""
    numbers = numbers_in(text, option=option)
    if not all(number.is_integer() for number in numbers):
        raise DataError(f"{option} is {text!r}; expected whole numbers, such as 1,2,4")
    return tuple(map(int, numbers))
