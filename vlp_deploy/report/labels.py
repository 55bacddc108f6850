"""From names beside points to places where no two of them overlap."""

from collections.abc import Sequence
from dataclasses import dataclass

from vlp_deploy.report.axes import BOTTOM, LEFT, LETTER, LINE, RIGHT, TOP
from vlp_deploy.report.svg import SERIES, Point, words

GAP = 8.0  # between a point and its name
# direction from the point and the text's anchor, the most pleasant first
Places = tuple[tuple[float, float, str], ...]
ANYWHERE: Places = (
    (-1, -1, "end"),
    (1, 1, "start"),
    (1, 0, "start"),
    (-1, 0, "end"),
    (0, -1.6, "middle"),
    (0, 1.7, "middle"),
    (1, -1.4, "start"),
    (-1, 1.4, "end"),
)
ABOVE: Places = tuple(
    (0, -1.2 - 1.9 * row, anchor) for row in range(4) for anchor in ("middle", "start", "end")
)


@dataclass(frozen=True)
class Box:
    """A rectangle on the paper."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: "Box") -> bool:
        """Whether the two share a place."""
        across = self.left < other.right and other.left < self.right
        return across and self.top < other.bottom and other.top < self.bottom

    def is_inside(self, other: "Box") -> bool:
        """Whether all of it lies in `other`."""
        across = other.left <= self.left and self.right <= other.right
        return across and other.top <= self.top and self.bottom <= other.bottom

    def grown(self, by: float) -> "Box":
        """The same place and so much more on every side."""
        return Box(self.left - by, self.top - by, self.right + by, self.bottom + by)


PAPER = Box(LEFT, TOP - 4, RIGHT + 20, BOTTOM)


def place_names(
    names: Sequence[tuple[str, Point]],
    *,
    places: Places = ANYWHERE,
    obstacles: Sequence[Box] = (),
    series: bool = False,
) -> list[str]:
    """A label for each name and its point, but for those that fit nowhere.

    None covers a point, another label or one of `obstacles`. If each is a `series` of its own, it
    has the series's colour.
    """
    taken = [Box(x - 6, y - 6, x + 6, y + 6) for _, (x, y) in names]
    drawn = []
    for number, (name, point) in enumerate(names):
        others = [*taken[:number], *taken[number + 1 :], *obstacles]
        for right, down, anchor in places:
            at = (point[0] + right * GAP, point[1] + down * GAP + 4)
            box = text_box(name, at, anchor)
            if box.is_inside(PAPER) and not any(box.overlaps(other) for other in others):
                taken.append(box)
                kind = f"name s{number % SERIES}" if series else "name"
                drawn.append(words(name, at, kind, anchor=anchor))
                break
    return drawn


def text_box(name: str, at: Point, anchor: str) -> Box:
    """The place that a name takes, about."""
    width = LETTER * len(name)
    left = at[0] - {"start": 0, "middle": width / 2, "end": width}[anchor]
    return Box(left, at[1] - LINE + 3, left + width, at[1] + 3)
