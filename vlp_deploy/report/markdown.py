"""A report becomes Markdown: the facts and every table, for reviews and release notes."""

from collections.abc import Iterator, Sequence

from vlp_deploy.measuring.records import BenchReport
from vlp_deploy.report.figure import Figure, Table
from vlp_deploy.report.summary import (
    OTHERS,
    comparison_table,
    facts,
    machine_table,
    subtitle,
    title,
)

SPECIAL = r"\`*_[]<>|#"
LONGEST = 40  # rows of a table


def markdown(report: BenchReport, figures: Sequence[Figure]) -> str:
    """The whole document."""
    return "\n".join(_lines(report, figures)) + "\n"


def _lines(report: BenchReport, figures: Sequence[Figure]) -> Iterator[str]:
    yield f"# {plain(title(report))}"
    yield f"\n{plain(subtitle(report))}.\n"
    yield from (f"> **Warning:** {plain(warning)}.\n" for warning in report.warnings)
    yield from (f"Not measured: {plain(what)}.\n" for what in report.left_out)
    yield from (
        f"- **{plain(fact.value)}** {plain(fact.name)} ({plain(fact.detail)})"
        for fact in facts(report)
    )
    if (others := comparison_table(report)).rows:
        yield f"\n## The bundle and the others\n\n{plain(OTHERS)}\n"
        yield from _table(others)
    for figure in figures:
        yield f"\n## {plain(figure.title)}\n\n{plain(figure.reading)}\n"
        yield from _table(figure.table)
    if report.findings and report.findings.mistakes:
        yield "\n## What is taken for what\n"
        rows = tuple((m.truth, m.answer, str(m.images)) for m in report.findings.mistakes)
        yield from _table(Table(header=("class", "taken for", "images"), rows=rows))
    yield "\n## Machine\n"
    yield from _table(machine_table(report))


def _table(table: Table) -> Iterator[str]:
    yield _row(table.header)
    yield _row(["---", *["---:"] * (len(table.header) - 1)], escape=False)
    yield from (_row(row) for row in table.rows[:LONGEST])
    if len(table.rows) > LONGEST:
        yield f"\n{len(table.rows) - LONGEST} more rows stand in the other files."


def _row(cells: Sequence[str], *, escape: bool = True) -> str:
    return f"| {' | '.join(plain(cell) if escape else cell for cell in cells)} |"


def plain(content: str) -> str:
    """Text that Markdown takes for nothing else."""
    content = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in content)
    return "".join(f"\\{c}" if c in SPECIAL else c for c in content)
