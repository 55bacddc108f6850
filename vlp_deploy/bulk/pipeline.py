"""A stream through a function in threads, and a stream in batches: bounded, and in order."""

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import islice
from queue import SimpleQueue
from typing import Generic, TypeVar

from vlp_deploy.errors import DataError
from vlp_deploy.images.limits import Deadline

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_ABANDONED = 64
POLL_S = 0.1
JOIN_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Bounds(Generic[Item, Result]):
    """How far `ordered_map` goes: at once, ahead, and with one item.

    At most `ahead` items are taken and not given back, and none is taken while those weigh
    `max_weight` or more. An item that takes more than `seconds` has `late(item)` for its result.
    """

    workers: int
    ahead: int
    weigh: Callable[[Item], int] = lambda item: 0
    max_weight: int = 1
    seconds: float | None = None
    late: Callable[[Item], Result] | None = None


@dataclass
class _Task(Generic[Item, Result]):
    item: Item
    weight: int
    future: Future[Result] = field(default_factory=Future)
    deadline: Deadline | None = None  # None until a worker has begun
    abandoned: bool = False


def ordered_map(
    function: Callable[[Item, Deadline], Result],
    items: Iterable[Item],
    bounds: Bounds[Item, Result],
) -> Generator[Result]:
    """`function(item, deadline)` for every item, in order, computed by threads.

    A slow reader stops the threads; closing the iterator drops what has not begun. No thread can be
    killed: one that is late is left to end by itself, and another takes its place. Raises DataError
    when MAX_ABANDONED have been left so, since then more than a file must be at fault.
    """
    crew = _Crew(function, bounds)
    source = iter(items)
    pending: deque[_Task[Item, Result]] = deque()
    weight = 0

    def take() -> None:
        nonlocal weight
        while len(pending) < bounds.ahead and weight < bounds.max_weight:
            if not (taken := list(islice(source, 1))):
                return
            pending.append(crew.submit(taken[0]))
            weight += pending[-1].weight

    try:
        take()
        while pending:
            task = pending.popleft()
            result = crew.result(task)
            weight -= task.weight
            take()
            yield result
    finally:
        crew.dismiss()


class _Crew(Generic[Item, Result]):
    """Threads that work off a queue."""

    def __init__(
        self, function: Callable[[Item, Deadline], Result], bounds: Bounds[Item, Result]
    ) -> None:
        self._function = function
        self._bounds = bounds
        self._queue: SimpleQueue[_Task[Item, Result] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._dismissed = False
        self._abandoned = 0
        for _ in range(bounds.workers):
            self._hire()

    def submit(self, item: Item) -> _Task[Item, Result]:
        task: _Task[Item, Result] = _Task(item, self._bounds.weigh(item))
        self._queue.put(task)
        return task

    def result(self, task: _Task[Item, Result]) -> Result:
        """What the function returned or raised, or `late` when its time is over."""
        if self._bounds.late is None:
            return task.future.result()
        while True:
            try:
                return task.future.result(POLL_S)
            except TimeoutError:
                if task.future.done():
                    return task.future.result()
                if task.deadline is not None and task.deadline.is_over:
                    self._abandon(task)
                    return self._bounds.late(task.item)

    def dismiss(self) -> None:
        """Let the threads end with what they are doing."""
        self._dismissed = True
        for _ in self._threads:
            self._queue.put(None)
        ends = time.monotonic() + JOIN_S
        for thread in self._threads:  # one that hangs is a daemon and dies with the process
            thread.join(max(0.0, ends - time.monotonic()))

    def _hire(self) -> None:
        thread = threading.Thread(target=self._work, name="vlp-read", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _abandon(self, task: _Task[Item, Result]) -> None:
        task.abandoned = True
        self._abandoned += 1
        if self._abandoned == MAX_ABANDONED:
            raise DataError(
                f"{MAX_ABANDONED} files took more than {self._bounds.seconds:g} s each and still "
                "have not been read; the disk they are on may hang. Mend that, or allow more time"
            )
        self._hire()

    def _work(self) -> None:
        while (task := self._queue.get()) is not None:
            if self._dismissed:
                return
            task.deadline = Deadline(self._bounds.seconds)
            try:
                result = self._function(task.item, task.deadline)
                if self._bounds.late is not None and task.deadline.is_over:
                    result = self._bounds.late(task.item)
                task.future.set_result(result)
            except BaseException as error:  # it is the reader's, in its place
                task.future.set_exception(error)
            if task.abandoned:
                return
            del task


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` items; the last one may be shorter."""
    source = iter(items)
    while batch := list(islice(source, size)):
        yield batch
