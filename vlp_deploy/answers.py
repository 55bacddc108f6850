"""What comes back for an image: a prediction, or why there is none."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Candidate(NamedTuple):
    """A class and its probability among the classes that were offered."""

    label: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The answer for one image: its label, or None if it was rejected, as of none of the classes.

    `probability` and `logit`, before temperature, are those of the label; of the most probable
    class where there is none.
    """

    path: str | None  # as it was given; None for an image that came without one
    label: str | None
    probability: float
    logit: float
    top: tuple[Candidate, ...]  # best first
    labels: tuple[str, ...] | None = None  # where several may be: all of them, best first
    embedding: NDArray[np.float32] | None = field(default=None, compare=False, repr=False)  # (D,)


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An input that could not be classified, and why."""

    path: str | None
    error: str


Answer = Prediction | Failure
