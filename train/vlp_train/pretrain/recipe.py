"""What the trainings of both towers are decided by, and how their learning rates go."""

import math
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a tower's weights.

    `start` is the fingerprint of the weights to start from, "" for none; `data` that of the
    drawings and targets. Learning rates are those of `optimise`'s Muon and of AdamW; `rate_share`
    scales both, which warm up for `warmup_steps` and fall to zero over `decay_share` of all steps.

    Raises:
        ValueError: nothing can be trained so.
    """

    what: ClassVar[str] = "samples"

    samples: int
    batch: int
    start: str = ""
    data: str = ""
    seed: int = 0
    muon_rate: float
    adam_rate: float
    rate_share: float = 1.0
    warmup_steps: int
    decay_share: float
    checkpoint_steps: int

    def __post_init__(self) -> None:
        if self.samples < self.batch:
            raise ValueError(
                f"{self.what} are {self.samples}; expected at least one batch, {self.batch}"
            )
        if not 0 < self.rate_share < math.inf:  # false for NaN, too
            raise ValueError(f"rate is {self.rate_share}; expected a number above 0")
        if not 0 < self.decay_share <= 1:
            raise ValueError(f"decay is {self.decay_share}; expected a share above 0, at most 1")

    @property
    def steps(self) -> int:
        """Optimiser steps in all."""
        return self.samples // self.batch

    def rate(self, step: int) -> float:
        """Share of the full learning rates: linear warm-up, constant, linear decay to zero."""
        decay_steps = max(1, round(self.decay_share * self.steps))
        warm = min(1.0, (step + 1) / self.warmup_steps)
        return self.rate_share * warm * min(1.0, (self.steps - step) / decay_steps)
