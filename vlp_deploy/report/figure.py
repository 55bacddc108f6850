"""What a page shows: a plot, how to read it, and its numbers as a table."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Table:
    """Columns and rows of text. All columns but the first are numbers."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One plot. `plot` is HTML; `legend` names its series; `reading` says what is good.

    `table` is what the plot shows, in numbers. `is_table` says that the plot is readable as it is:
    its bars stand in a table.
    """

    name: str
    title: str
    reading: str
    plot: str
    table: Table
    legend: tuple[str, ...] = ()
    is_table: bool = False
