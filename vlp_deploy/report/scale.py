"""From a quantity to a place on paper, with ticks that a person would have chosen.

A place is in SVG units. Ticks are 1, 2 or 5 times a power of ten, on logarithmic scales too.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

STEPS = (1, 2, 2.5, 5, 10)
LOGARITHMIC_TICKS = ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 5), (1, 3), (1,))  # in every decade
SAME = 1e-9  # of a value: what lies nearer is drawn at one place
PADDING = 0.06  # of the range, beyond the smallest and the largest value


@dataclass(frozen=True, kw_only=True)
class Scale:
    """`low` is drawn at `start` and `high` at `end`, the rest between, evenly or by its logarithm.

    >>> Scale(low=0, high=10, start=0, end=100)(5)
    50.0
    """

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False
    ticks: tuple[float, ...] = ()

    def __call__(self, value: float) -> float:
        """Where a value is drawn; beyond the ends, at the end."""
        low, high, value = (self._even(each) for each in (self.low, self.high, value))
        share = min(max((value - low) / (high - low), 0), 1)
        return self.start + share * (self.end - self.start)

    def _even(self, value: float) -> float:
        return math.log(value) if self.logarithmic else value


def linear(
    values: Iterable[float], *, start: float, end: float, zero: bool = False, most: int = 6
) -> Scale:
    """A scale for all values, and for 0 if `zero`, that begins and ends at a tick."""
    low, high = _ends(values)
    low = min(low, 0) if zero else low
    if high - low <= SAME * max(abs(low), abs(high)):
        low, high = (low, low + 1) if low == 0 else sorted((low - abs(low) / 2, low + abs(low) / 2))
    step = _step((high - low) / (most - 1))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(step * number for number in range(first, last + 1))
    return Scale(low=ticks[0], high=ticks[-1], start=start, end=end, ticks=ticks)


def logarithmic(values: Iterable[float], *, start: float, end: float, most: int = 6) -> Scale:
    """A scale for values above 0, a little wider than they reach."""
    low, high = _ends(values)
    margin = max((high / low) ** PADDING, 1.15)
    low, high = low / margin, high * margin
    return Scale(
        low=low,
        high=high,
        start=start,
        end=end,
        logarithmic=True,
        ticks=_log_ticks(low, high, most),
    )


def percent(*, start: float, end: float) -> Scale:
    """From 0 to 1."""
    return Scale(low=0, high=1, start=start, end=end, ticks=(0, 0.2, 0.4, 0.6, 0.8, 1))


def number(value: float) -> str:
    """As short as it can be read: three figures, thousands parted, no empty decimals.

    >>> number(0.12345), number(2.0), number(12345.6)
    ('0.123', '2', '12,346')
    """
    if value == 0:
        return "0"
    figures = 2 - math.floor(math.log10(abs(value)))
    if figures > 6:
        return f"{value:.1e}"
    text = f"{value:,.{max(figures, 0)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def tick_text(value: float) -> str:
    """A number that fits beside an axis.

    >>> tick_text(25000), tick_text(1000)
    ('25k', '1,000')
    """
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if abs(value) >= 10 * size:
            return number(value / size) + unit
    return number(value)


def _ends(values: Iterable[float]) -> tuple[float, float]:
    finite = [value for value in values if math.isfinite(value)]
    return (min(finite), max(finite)) if finite else (0.0, 1.0)


def _step(rough: float) -> float:
    """The smallest pleasant step that is not below `rough`."""
    decade = 10.0 ** math.floor(math.log10(rough))
    return next(step * decade for step in STEPS if step * decade >= rough * (1 - 1e-9))


def _log_ticks(low: float, high: float, most: int) -> tuple[float, ...]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for figures in LOGARITHMIC_TICKS:
        ticks = _within(
            [figure * 10.0**decade for decade in decades for figure in figures], low, high
        )
        if 2 <= len(ticks) <= most:
            return ticks
    # hundreds of decades, or a fraction of one
    return ticks[:: math.ceil(len(ticks) / most)] if len(ticks) > most else linear_ticks(low, high)


def linear_ticks(low: float, high: float) -> tuple[float, ...]:
    """Evenly spaced ticks strictly within a range."""
    return _within(linear((low, high), start=0, end=1).ticks, low, high)


def _within(ticks: Sequence[float], low: float, high: float) -> tuple[float, ...]:
    return tuple(tick for tick in ticks if low <= tick <= high)
