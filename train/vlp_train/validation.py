"""From the shots that were drawn to those that are learned from and those that settings are chosen
by.

Where the data has a `val` split, it gives as many images a class as there are shots, at most four
(CoOp's protocol). Otherwise a quarter of each class's own shots is held out, at most four; nothing
is where a class has fewer than four to spare one of.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from vlp_deploy.data.dataset import Dataset, Sample

MOST = 4  # validation images a class
SHARE = 4  # one image in so many is held out
STREAM = 5  # of random numbers beside the seed

Samples = tuple[Sample, ...]


def hold_out(dataset: Dataset, drawn: Samples, *, seed: int) -> tuple[Samples, Samples]:
    """What to learn from, and what to choose by; the latter may be empty."""
    counts = Counter(sample.label for sample in drawn)
    fewest = min(counts.values(), default=0)
    if "val" in dataset.splits:
        return drawn, _some(
            dataset.splits["val"], {k: min(n, MOST) for k, n in counts.items()}, seed
        )
    if fewest < SHARE:
        return drawn, ()
    chosen = _some(drawn, {k: min(n // SHARE, MOST) for k, n in counts.items()}, seed)
    held_out = set(chosen)
    return tuple(sample for sample in drawn if sample not in held_out), chosen


def _some(samples: Sequence[Sample], wanted: dict[int, int], seed: int) -> Samples:
    """Up to `wanted` images of each class, at random."""
    left, chosen = Counter(wanted), []
    for index in np.random.default_rng((seed, STREAM)).permutation(len(samples)):
        if left[samples[index].label] > 0:
            left[samples[index].label] -= 1
            chosen.append(samples[index])
    return tuple(sorted(chosen, key=lambda sample: sample.label))
