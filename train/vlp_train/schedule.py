"""From an epoch's number to its learning rate, in closed form."""

import math
from typing import Literal

WARMUP_RATE = 1e-5

Schedule = Literal["cosine", "constant"]


def learning_rate(
    epoch: int, *, epochs: int, peak: float, warmup_epochs: int = 1, schedule: Schedule = "cosine"
) -> float:
    """The rate of epoch 0 … `epochs` - 1: constant warm-up, then a cosine that never ends at zero.

    CoOp's schedule: `WARMUP_RATE` for e < W, then ½·peak·(1 + cos(π(e - W)/T)). The cosine is
    as long as all the epochs but starts W late, so the last epoch still learns. The schedule
    "constant" stays at the peak after the warm-up.
    """
    if epoch < warmup_epochs:
        return WARMUP_RATE
    if schedule == "constant":
        return peak
    return 0.5 * peak * (1 + math.cos(math.pi * (epoch - warmup_epochs) / epochs))
