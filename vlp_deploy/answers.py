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
    """The answer for one image. `logit` is that of the label, before temperature."""

    path: str | None  # as it was given; None for an image that came without one
    label: str
    probability: float
    logit: float
    top: tuple[Candidate, ...]  # best first
    embedding: NDArray[np.float32] | None = field(default=None, compare=False, repr=False)  # (D,)


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An input that could not be classified, and why."""

    path: str | None
    error: str


Answer = Prediction | Failure
