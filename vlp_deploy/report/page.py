"""A report becomes one HTML page that needs nothing else: no script, no font, no other file."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape

from vlp_deploy.measuring.accuracy import Mistake
from vlp_deploy.measuring.records import BenchReport
from vlp_deploy.report.figure import Figure, Table
from vlp_deploy.report.style import STYLE
from vlp_deploy.report.summary import (
    OTHERS,
    comparison_table,
    facts,
    machine_table,
    subtitle,
    title,
)
from vlp_deploy.report.svg import element, swatch, text

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(report: BenchReport, figures: Sequence[Figure], pictures: Mapping[str, str]) -> str:
    """The whole document; `pictures` are thumbnails by path."""
    return "\n".join(_parts(report, figures, pictures)) + "\n"


def _parts(
    report: BenchReport, figures: Sequence[Figure], pictures: Mapping[str, str]
) -> Iterator[str]:
    name = text(title(report))
    yield '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">'
    yield f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield '<meta name="generator" content="vlp bench">'
    yield f"<title>{name}: vlp bench</title>\n<style>{STYLE}</style>\n</head>\n<body>"
    yield f'<header>\n<p class="kind">vlp bench</p>\n<h1>{name}</h1>'
    yield element("p", {}, text(subtitle(report)))
    yield from (element("p", {"class": "warning"}, text(each)) for each in report.warnings)
    yield from (element("p", {}, text(f"Not measured: {each}.")) for each in report.left_out)
    yield "</header>\n<main>"
    yield from _facts(report)
    yield '<div class="figures">'
    yield from (_figure(figure) for figure in figures)
    yield "</div>"
    if report.findings and report.findings.mistakes:
        yield _mistakes(report.findings.mistakes, pictures)
    yield _machine(report)
    yield "</main>\n</body>\n</html>"


def _facts(report: BenchReport) -> Iterator[str]:
    tiles = (
        element(
            "div",
            {},
            element("dt", {}, text(fact.name)),
            element("dd", {"class": "value"}, text(fact.value)),
            element("dd", {}, text(fact.detail)),
        )
        for fact in facts(report)
    )
    yield element("dl", {"class": "facts"}, *tiles)
    if (others := comparison_table(report)).rows:
        yield element(
            "section",
            {"id": "others", "class": "figure"},
            element("h2", {}, "The bundle and the others"),
            element("p", {}, OTHERS),
            element("div", {"class": "wide"}, _table(others)),
        )


def _figure(figure: Figure) -> str:
    parts = [element("h2", {}, text(figure.title)), element("p", {}, text(figure.reading))]
    if len(figure.legend) > 1:
        parts.append(_legend(figure.legend))
    parts += [figure.plot, _numbers(figure.table, "More numbers" if figure.is_table else "Numbers")]
    return element("section", {"id": figure.name, "class": "figure"}, *parts)


def _legend(names: Iterable[str]) -> str:
    keys = (element("li", {}, swatch(n), text(name)) for n, name in enumerate(names))
    return element("ul", {"class": "legend"}, *keys)


def _numbers(table: Table, name: str) -> str:
    summary = element("summary", {}, name)
    return element("details", {}, summary, element("div", {"class": "wide"}, _table(table)))


def _table(table: Table) -> str:
    head = (element("th", {"scope": "col"}, text(cell) or " ") for cell in table.header)
    rows = (
        element(
            "tr",
            {},
            element("th", {"scope": "row"}, text(row[0]) or " "),
            *(element("td", {}, text(cell) or " ") for cell in row[1:]),
        )
        for row in table.rows
    )
    return element(
        "table",
        {},
        element("thead", {}, element("tr", {}, *head)),
        element("tbody", {}, *rows),
    )


def _mistakes(mistakes: Sequence[Mistake], pictures: Mapping[str, str]) -> str:
    rows = (
        element(
            "li",
            {},
            _picture(mistake.truth, mistake.truth_example, pictures),
            element("span", {"class": "arrow", "aria-label": "taken for"}, "→"),
            _picture(mistake.answer, mistake.answer_example, pictures),
            element("b", {}, f"{mistake.images}×"),
        )
        for mistake in mistakes
    )
    return element(
        "section",
        {"id": "mistakes", "class": "figure"},
        element("h2", {}, "What is taken for what"),
        element(
            "p",
            {},
            "Left an image that was taken for the class on the right, with an image of that class "
            "if there is one in the data; and how often that happened.",
        ),
        element("ul", {"class": "mistakes"}, *rows),
    )


def _picture(name: str, path: str, pictures: Mapping[str, str]) -> str:
    picture = '<span class="none"></span>'
    if source := pictures.get(path):
        picture = f'<img alt="" title="{text(path)}" src="{escape(source)}">'
    return element("figure", {}, picture, element("figcaption", {}, text(name)))


def _machine(report: BenchReport) -> str:
    return element(
        "section",
        {"id": "machine", "class": "figure"},
        element("h2", {}, "Where this was measured"),
        element("div", {"class": "wide machine"}, _table(machine_table(report))),
    )
