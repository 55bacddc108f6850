"""Where answers go, one after another; some may be there already, from a run that was broken off.

Before the first `write`, the outputs of a run agree on how many rows all of them have whole: `rows`
and `floor` ask, `keep` cuts.
"""

from abc import ABC, abstractmethod

from vlp_deploy.answers import Answer
from vlp_deploy.bulk.items import Input
from vlp_deploy.bulk.results import Row


class Output(ABC):
    """One destination. Row number n belongs to input number n."""

    def rows(self) -> int:
        """How many whole rows are there."""
        return 0

    def floor(self, rows: int) -> int:
        """The largest number of rows, at most `rows`, that can be kept."""
        return rows

    def keep(self, rows: int) -> None:
        """Cut to the first `rows` rows; writing goes on behind them."""
        return

    @abstractmethod
    def write(self, answer: Answer) -> None:
        """Add one row."""

    def finish(self) -> None:
        """Make what was written last: no more rows will come."""
        return

    def close(self) -> None:
        """Let go of files, finished or not; closing twice is allowed."""
        return


class Companion(ABC):
    """What is made of the images themselves once their answers are known.

    It sees every row of a run in order, those of the runs before it was broken off included, and
    each before it is written: what it did for them, it finds and leaves.
    """

    @abstractmethod
    def take(self, row: Row, image: Input) -> None:
        """See one row and its image."""

    def finish(self) -> None:
        """Every row has been seen."""
        return


def common_rows(outputs: list[Output], *, step: int) -> int:
    """The most rows, a multiple of `step`, that every output can keep."""
    rows = min(output.rows() for output in outputs)
    while (lower := min(output.floor(rows - rows % step) for output in outputs)) < rows:
        rows = lower
    return rows
