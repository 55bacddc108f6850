"""From two scales to the paper a plot is drawn on: grid, ticks and what the axes mean."""

from collections.abc import Callable
from dataclasses import dataclass

from vlp_deploy.report.scale import Scale, number, tick_text
from vlp_deploy.report.svg import Point, drawing, line, words

WIDTH, HEIGHT = 440.0, 290.0
LEFT, RIGHT, TOP, BOTTOM = 50.0, 416.0, 28.0, 246.0  # of what is drawn within the axes
LETTER = 7.8  # width of a letter of a label, about
LINE = 14.0  # height of a label


@dataclass(frozen=True, kw_only=True)
class Axes:
    """What x and y mean and where their values lie."""

    x: Scale
    y: Scale
    x_label: str
    y_label: str
    x_text: Callable[[float], str] = tick_text
    y_text: Callable[[float], str] = tick_text

    def at(self, x: float, y: float) -> Point:
        """Where a value is drawn."""
        return self.x(x), self.y(y)

    def draw(self, title: str, description: str, *marks: str) -> str:
        """The whole plot: `marks` upon the grid."""
        return drawing((WIDTH, HEIGHT), title, description, *self._grid(), *marks)

    def _grid(self) -> list[str]:
        parts = []
        for tick in self.y.ticks:
            height = self.y(tick)
            parts.append(line((LEFT, height), (RIGHT, height), "grid"))
            parts.append(words(self.y_text(tick), (LEFT - 7, height + 4), "tick", anchor="end"))
        for tick in self.x.ticks:
            across = self.x(tick)
            parts.append(line((across, TOP), (across, BOTTOM), "grid"))
            parts.append(words(self.x_text(tick), (across, BOTTOM + 18), "tick", anchor="middle"))
        parts.append(line((LEFT, BOTTOM), (RIGHT, BOTTOM), "axis"))
        parts.append(words(self.x_label, (RIGHT, HEIGHT - 8), "label", anchor="end"))
        parts.append(words(self.y_label, (4, 14), "label"))
        return parts


def percent_text(share: float) -> str:
    """
    >>> percent_text(0.2)
    '20%'
    """
    return f"{number(round(100 * share, 6))}%"
