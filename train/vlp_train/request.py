"""Everything that can be asked of a training run, checked as far as it can be without data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlp_deploy.data.dataset import Subset
from vlp_deploy.errors import TrainingError
from vlp_train.devices import Precision
from vlp_train.schedule import Schedule

LEAST = {
    "shots": 1,
    "seed": 0,
    "epochs": 1,
    "batch_size": 1,
    "accumulate": 1,
    "warmup_epochs": 0,
    "views": 1,
    "class_chunk": 0,
}


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a user asks for; what is left None the method decides."""

    data: Path
    output: Path
    method: str
    method_options: Mapping[str, Any] = field(default_factory=dict)
    model: str = "vlp-tiny"
    pretrained: str | None = None
    image_root: Path | None = None
    classnames: Path | None = None
    stage1: Path | None = None  # the run or checkpoint that a second stage goes on from
    subset: Subset = "all"  # of the classes, to train on
    shots: int | None = None  # images a class; None = all
    seed: int = 1
    epochs: int | None = None
    learning_rate: float | None = None
    schedule: Schedule | None = None
    warmup_epochs: int | None = None
    momentum: float | None = None
    weight_decay: float | None = None
    batch_size: int | None = None
    accumulate: int | None = None  # batches a step
    augment: bool = True
    flip: bool = True
    cache_features: bool = False  # compute image features once, before training
    views: int | None = None  # random views of each image to cache; None = the image as served
    class_chunk: int | None = None  # text rows at once; 0 = all, None = what fits
    device: str = "auto"
    precision: Precision | None = None
    evaluate: tuple[Path, ...] = ()
    resume: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise TrainingError(f"{name} must be at least {least}, got {value}")
        if self.learning_rate is not None and not 0 < self.learning_rate < float("inf"):
            raise TrainingError(f"the learning rate must be above 0, got {self.learning_rate}")
        if self.momentum is not None and not 0 <= self.momentum < 1:
            raise TrainingError(f"the momentum must be from 0 to below 1, got {self.momentum}")
        if self.weight_decay is not None and not 0 <= self.weight_decay < float("inf"):
            raise TrainingError(f"the weight decay must be 0 or more, got {self.weight_decay}")
        if self.resume and self.force:
            raise TrainingError(
                "--resume goes on with a run and --force deletes it: give one of them"
            )
        self._check_views()

    def _check_views(self) -> None:
        if self.views is not None and not self.cache_features:
            raise TrainingError("--views says what --cache-features computes: give both, or none")
        if self.views is not None and not self.augment:
            raise TrainingError("--views caches random crops and --no-augment takes none: drop one")

    @property
    def random_views(self) -> bool:
        """Whether images are cropped at random: a cache holds them as served unless told else."""
        return self.augment and (not self.cache_features or self.views is not None)
