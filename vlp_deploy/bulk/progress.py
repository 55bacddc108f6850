"""A line on a terminal that shows how far a run is; nothing where nobody would see it."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

REFRESH_S = 0.1


@contextmanager
def class_bar() -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, moved by calling with the numbers of class texts done and of all."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console  # takes 50 ms, and only a terminal needs it
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = ("class texts", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("class texts", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def progress_bar(
    count: Callable[[], int | None], *, begun: int = 0, shown: bool = True
) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, moved by calling with the numbers of inputs done and failed.

    `count()` says how many there are in all, None if that cannot be known; it runs in a thread, and
    until it returns there is no estimate of the time left. `begun` were done before.
    """
    if not (shown and sys.stderr.isatty()):
        yield lambda done, failed: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    started, last = time.perf_counter(), 0.0
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("starting", total=None, completed=begun)

        def find_total() -> None:
            if (total := count()) is not None:
                progress.update(task, total=total)

        def show(done: int, failed: int) -> None:
            nonlocal last
            now = time.perf_counter()
            if now - last > REFRESH_S:
                last, rate = now, (done - begun) / (now - started)
                text = f"{done:,} images, {failed:,} failed, {rate:.1f} images/s"
                progress.update(task, completed=done, description=text)

        threading.Thread(target=find_total, daemon=True).start()
        yield show
