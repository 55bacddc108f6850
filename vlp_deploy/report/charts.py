"""From series of numbers to plots: lines, points with names, bars, and reliability."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from vlp_deploy.measuring.metrics import Bin, Interval
from vlp_deploy.report.axes import BOTTOM, LEFT, RIGHT, TOP, Axes, percent_text
from vlp_deploy.report.labels import ABOVE, Box, place_names
from vlp_deploy.report.scale import linear, logarithmic, number, percent
from vlp_deploy.report.svg import (
    SERIES,
    Point,
    box,
    dash,
    element,
    line,
    marker,
    polyline,
    text,
    words,
)

STRIP = 30.0  # height of the histogram above a reliability diagram
ROOM_FOR_NAMES = 0.4  # above the highest interval, of the range of accuracies
CAP = 4.0  # half of the width of an interval's ends


@dataclass(frozen=True, kw_only=True)
class Series:
    """A line of values (x, y); `names`, if any, stand beside its points."""

    name: str
    points: tuple[Point, ...]
    names: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Place:
    """A value with a name; `interval` is that of y."""

    name: str
    x: float
    interval: Interval


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A named value of at most `Bars.largest`, with its interval if it has one."""

    name: str
    value: float
    shown: str
    low: float | None = None
    high: float | None = None


def distributions(title: str, description: str, series: Sequence[Series]) -> str:
    """Share of calls (y) that took at most so many milliseconds (x, logarithmic)."""
    across = [x for each in series for x, _ in each.points]
    axes = Axes(
        x=logarithmic(across, start=LEFT, end=RIGHT),
        y=percent(start=BOTTOM, end=TOP),
        x_label="time of a call, ms",
        y_label="share of calls that took no longer",
        y_text=percent_text,
    )
    marks = [_line(index, each, axes) for index, each in enumerate(series)]
    return axes.draw(title, description, *reversed(marks))  # the first, the bundle's, on top


def rates(
    title: str,
    description: str,
    series: Sequence[Series],
    *,
    x_label: str = "time of a call, ms (median)",
) -> str:
    """Images a second (y) against the time of a call (x, logarithmic), points with names."""
    axes = Axes(
        x=logarithmic((x for each in series for x, _ in each.points), start=LEFT, end=RIGHT),
        y=linear((y for s in series for _, y in s.points), start=BOTTOM, end=TOP, zero=True),
        x_label=x_label,
        y_label="images a second",
    )
    marks = []
    for index, each in reversed(list(enumerate(series))):  # the first, the bundle's, on top
        marks.append(_line(index, each, axes))
        marks += [
            marker(index, axes.at(x, y), tip=f"{each.name}, {name}: {number(y)} in {number(x)} ms")
            for name, (x, y) in zip(each.names, each.points, strict=True)
        ]
    # with names at all points of all series nobody could read any
    first = series[0]
    places = [axes.at(*point) for point in first.points]
    return axes.draw(
        title, description, *marks, *place_names(list(zip(first.names, places, strict=True)))
    )


def trade(title: str, description: str, places: Sequence[Place]) -> str:
    """Top-1 (y, with intervals) against time (x): what nothing else beats at both is joined."""
    lowest = min(place.interval.low for place in places)
    highest = max(place.interval.high for place in places)
    room = ROOM_FOR_NAMES * (highest - lowest)
    y = linear((lowest, highest + room), start=BOTTOM, end=TOP)
    axes = Axes(
        x=logarithmic((place.x for place in places), start=LEFT, end=RIGHT),
        y=replace(y, ticks=tuple(tick for tick in y.ticks if tick <= 1)),
        x_label="time of a call, ms (median)",
        y_label="top-1 accuracy, with 95% interval",
        y_text=percent_text,
    )
    points = [(place.x, place.interval.value) for place in places]
    marks = [polyline(_steps([axes.at(*point) for point in frontier(points)]), "frontier")]
    for index, (place, point) in reversed(list(enumerate(zip(places, points, strict=True)))):
        marks.append(_whisker(axes, place.x, place.interval, f"whisker s{index % SERIES}"))
        tip = f"{place.name}: {place.interval.value:.1%} in {number(place.x)} ms"
        marks.append(marker(index, axes.at(*point), tip=tip))
    tops = [axes.at(place.x, place.interval.high) for place in places]
    names = [(place.name, top) for place, top in zip(places, tops, strict=True)]
    lines = [Box(x - CAP, y, x + CAP, BOTTOM) for x, y in tops]
    labels = place_names(names, places=ABOVE, obstacles=lines, series=True)
    return axes.draw(title, description, *marks, *labels)


def frontier(points: Sequence[Point]) -> list[Point]:
    """Of times and accuracies those that no other point beats at both, the fastest first."""
    best: list[Point] = []
    for x, y in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or y > best[-1][1]:
            best.append((x, y))
    return best


def reliability_diagram(title: str, description: str, bins: Sequence[Bin]) -> str:
    """Accuracy of each bin as a bar, its confidence as a dot, and above how many images it has."""
    top = TOP + STRIP + 8
    axes = Axes(
        x=percent(start=LEFT, end=RIGHT),
        y=percent(start=BOTTOM, end=top),
        x_label="probability of the answer",
        y_label="share of right answers; above: number of images",
        x_text=percent_text,
        y_text=percent_text,
    )
    width, most = (RIGHT - LEFT) / len(bins), max(each.images for each in bins)
    marks = []
    for index, each in enumerate(bins):
        if each.images:
            left = LEFT + index * width + 1
            high = axes.y(0) - axes.y(each.accuracy)
            marks.append(box((left, BOTTOM - high), (width - 2, high), "fill s0"))
            share = STRIP * each.images / most
            marks.append(box((left, TOP + STRIP - share), (width - 2, share), "count"))
    marks.append(line(axes.at(0, 0), axes.at(1, 1), "ideal"))
    marks += [
        marker(1, axes.at(b.confidence, b.accuracy), tip=f"{b.images} images: {b.accuracy:.1%}")
        for b in bins
        if b.images
    ]
    return axes.draw(title, description, *marks)


def acceptance(title: str, description: str, points: Sequence[Point]) -> str:
    """Share of known images (y) against unknown ones (x) that pass the same threshold."""
    axes = Axes(
        x=percent(start=LEFT, end=RIGHT),
        y=percent(start=BOTTOM, end=TOP),
        x_label="unknown images that get an answer",
        y_label="known images that get an answer",
        x_text=percent_text,
        y_text=percent_text,
    )
    chance = line(axes.at(0, 0), axes.at(1, 1), "ideal")
    passed = _line(0, Series(name="", points=tuple(points)), axes)
    known95 = line((LEFT, axes.y(0.95)), (RIGHT, axes.y(0.95)), "mean")
    said = words("95% of the known", (RIGHT - 4, axes.y(0.95) + 15), "name", anchor="end")
    return axes.draw(title, description, chance, known95, said, passed)


def bars(bars: Sequence[Bar], *, head: tuple[str, str], largest: float) -> str:
    """A table whose rows have a bar each, drawn to `largest`. It can be read as it stands."""
    columns = element("colgroup", {}, *(f'<col class="{c}">' for c in ("what", "room", "shown")))
    titles = element("th", {"scope": "col"}, head[0]) + element("th", {"colspan": 2}, head[1])
    rows = [
        element(
            "tr",
            {},
            element("th", {"scope": "row"}, text(bar.name)),
            element("td", {}, _bar(bar, largest)),
            element("td", {}, text(bar.shown)),
        )
        for bar in bars
    ]
    head_row = element("thead", {}, element("tr", {}, titles))
    return element("table", {"class": "bars"}, columns, head_row, element("tbody", {}, *rows))


def _bar(bar: Bar, largest: float) -> str:
    def across(value: float) -> float:
        return 200 * value / largest if largest else 0.0

    marks = [box((0, 2), (across(bar.value), 10), "fill s0")]
    if bar.low is not None and bar.high is not None:
        marks.append(line((across(bar.low), 7), (across(bar.high), 7), "span"))
    attributes = {"viewBox": "0 0 200 14", "preserveAspectRatio": "none", "aria-hidden": "true"}
    return element("svg", attributes, *marks)


def _line(index: int, series: Series, axes: Axes) -> str:
    places = [axes.at(*point) for point in series.points]
    return polyline(places, f"line s{index % SERIES}", dash=dash(index))


def _whisker(axes: Axes, x: float, interval: Interval, kind: str) -> str:
    across, low, high = axes.x(x), axes.y(interval.low), axes.y(interval.high)
    ends = [line((across - CAP, y), (across + CAP, y), kind) for y in (low, high)]
    return line((across, low), (across, high), kind) + "".join(ends)


def _steps(places: Sequence[Point]) -> list[Point]:
    """From place to place in level and upright lines."""
    corners = [(after[0], before[1]) for before, after in pairwise(places)]
    joined = [point for pair in zip(places[:-1], corners, strict=True) for point in pair]
    return [*joined, *places[-1:]]
