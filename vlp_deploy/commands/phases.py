"""Bars on stderr, one for each phase of a command that measures; none where nobody would see them.

They are redrawn once a second, because drawing takes time from what is measured.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

REDRAWS = 1  # a second
Advance = Callable[[str, int], None]  # what is being done, and how many steps of it just were
Begin = Callable[[str, int | None], Advance]  # name of a phase, and its steps if they are known


@contextmanager
def phases() -> Iterator[Begin]:
    """Yields what begins a phase, which ends the one before."""
    if not sys.stderr.isatty():
        yield lambda name, total: lambda text, steps: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    with Progress(
        *columns, TimeElapsedColumn(), console=console, transient=True, refresh_per_second=REDRAWS
    ) as bars:
        yield _beginning(bars)


def _beginning(bars: Progress) -> Begin:
    names: dict[TaskID, str] = {}

    def begin(name: str, total: int | None) -> Advance:
        for number in names:
            bars.stop_task(number)
            bars.update(number, description=names[number])
        task = bars.add_task(name, total=total)
        names[task] = name
        return lambda text, steps: bars.update(task, advance=steps, description=text)

    return begin
