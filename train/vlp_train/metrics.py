"""A trained prompt's accuracies by name: its own test images, new classes, other data sets.

    test          the data's own test images; base or new if trained on that half of the classes
    new           classes that a run on the base classes never saw
    A SENTENCE    zero-shot: each template alone; under `ensemble` all of them together
    NAME          data given to --evaluate, by the name of its folder or file

The harmonic mean of base and new is computed from them, and stands beside them in a checkpoint.
"""

from collections.abc import Collection, Mapping
from pathlib import Path

from vlp_deploy.data.dataset import Subset
from vlp_train.evaluate import Accuracy

HARMONIC_MEAN = "harmonic_mean"
COOP_PREFIX = "split_zhou_"  # of every list file of CoOp's


def own_metric(subset: Subset) -> str:
    """What the accuracy on the data's own test images is called."""
    return "test" if subset == "all" else subset


def harmonic_mean(metrics: Mapping[str, Accuracy]) -> float | None:
    """Of base and new accuracy, the figure of base-to-new tables; None if one is missing."""
    if not {"base", "new"} <= metrics.keys():
        return None
    base, new = metrics["base"].top1, metrics["new"].top1
    return 2 * base * new / (base + new) if base + new else 0.0


def metric_name(source: Path, taken: Collection[str]) -> str:
    """A data set's name: its folder's, or its list's without suffix and CoOp's prefix.

    Where that is taken, with the folder it lies in: caltech101/test.
    """
    name = source.name if source.is_dir() else source.stem.removeprefix(COOP_PREFIX)
    return f"{source.parent.name}/{name}" if name in taken else name
