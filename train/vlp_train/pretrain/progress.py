"""A bar on stderr that shows how far long work is; nothing where nobody would see it."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import track

Item = TypeVar("Item")


def bar(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """Yield the `total` items and move a bar labelled `what` as they are asked for."""
    console = Console(stderr=True)
    shown = console.is_terminal
    yield from track(items, what, total, console=console, transient=True, disable=not shown)
