"""From shapes and words to SVG, as text. What is drawn is coloured by the page's style sheet.

A mark of series n has the class `s{n}`: the page gives it colour, and each series has a marker and
a dash of its own, so that colour is never all that tells two apart. Lengths are in SVG units.
"""

import os
from collections.abc import Mapping, Sequence
from html import escape

Point = tuple[float, float]
Attributes = Mapping[str, object]

MARKER = 4.5  # half of a marker's width
# around (0, 0), half a unit wide
MARKERS = (
    "M-1 0a1 1 0 1 0 2 0a1 1 0 1 0-2 0z",  # circle
    "M-.9-.9h1.8v1.8h-1.8z",  # square
    "M0-1.15L1.1.85H-1.1z",  # triangle
    "M0-1.3L1.3 0L0 1.3L-1.3 0z",  # diamond
    "M0 1.15L1.1-.85H-1.1z",  # triangle, point down
    "M-.4-1.2h.8v.8h.8v.8h-.8v.8h-.8v-.8h-.8v-.8h.8z",  # plus
    "M-1.2-.45h2.4v.9h-2.4z",  # bar
)
DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2", "12 4", "1 2")
SERIES = len(MARKERS)


def text(content: str) -> str:
    """As HTML; what cannot be shown is replaced."""
    content = os.fsencode(content).decode("utf-8", "replace")
    return escape("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in content))


def element(name: str, attributes: Attributes, *children: str) -> str:
    """`<name attribute="…">children</name>`; floats are written to a tenth, "" is left out.

    >>> element("circle", {"r": 2.0, "class": "s0"})
    '<circle r="2" class="s0"/>'
    """
    words = "".join(f' {key}="{_value(value)}"' for key, value in attributes.items() if value != "")
    return f"<{name}{words}>{''.join(children)}</{name}>" if children else f"<{name}{words}/>"


def drawing(size: tuple[float, float], title: str, description: str, *parts: str) -> str:
    """An `<svg>` that says in words what it shows; its width follows the page."""
    width, height = size
    said = element("title", {}, text(title)) + element("desc", {}, text(description))
    box = {"viewBox": f"0 0 {width:g} {height:g}", "role": "img"}
    return element("svg", {**box, "aria-label": f"{title}. {description}"}, said, *parts)


def line(start: Point, end: Point, kind: str) -> str:
    """A straight line of the style class `kind`."""
    (x1, y1), (x2, y2) = start, end
    return element("line", {"x1": x1, "y1": y1, "x2": x2, "y2": y2, "class": kind})


def polyline(points: Sequence[Point], kind: str, *, dash: str = "") -> str:
    """Straight lines from point to point."""
    places = " ".join(f"{_value(x)},{_value(y)}" for x, y in points)
    return element("polyline", {"points": places, "class": kind, "stroke-dasharray": dash})


def box(corner: Point, size: tuple[float, float], kind: str) -> str:
    """A rectangle from its upper left corner."""
    (x, y), (width, height) = corner, size
    return element("rect", {"x": x, "y": y, "width": width, "height": height, "class": kind})


def words(content: str, at: Point, kind: str, *, anchor: str = "start") -> str:
    """A line of text; `anchor` is start, middle or end."""
    attributes = {"x": at[0], "y": at[1], "text-anchor": anchor, "class": kind}
    return element("text", attributes, text(content))


def marker(series: int, at: Point, *, tip: str = "") -> str:
    """The mark of a series; `tip` is shown where a pointer rests on it."""
    x, y = at
    place = f"translate({_value(x)} {_value(y)}) scale({MARKER})"
    attributes = {
        "d": MARKERS[series % SERIES],
        "transform": place,
        "class": f"mark s{series % SERIES}",
    }
    return element("path", attributes, *([element("title", {}, text(tip))] if tip else []))


def dash(series: int) -> str:
    """How the lines of a series are dashed."""
    return DASHES[series % SERIES]


def swatch(series: int) -> str:
    """Line and marker of a series, for a legend."""
    middle = 6.0
    stroke = polyline([(0, middle), (26, middle)], f"line s{series % SERIES}", dash=dash(series))
    box = {"viewBox": "0 0 26 12", "class": "swatch", "aria-hidden": "true"}
    return element("svg", box, stroke, marker(series, (13, middle)))


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.1f}".removesuffix(".0")
    return text(str(value))
