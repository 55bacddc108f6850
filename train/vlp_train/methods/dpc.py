"""DPC: beside a tuned prompt that stays as it is, a copy of it learns the base classes' pitfalls.

Source: DPC (arXiv:2503.13443), section 3; defaults of its official code. Its parallel prompt P' is
trained as it stands, where the official code trains the mixture and un-mixes it. Each step draws
images of the classes that the frozen stage 1 confuses with those of the batch (the dynamic hard
negative optimiser), and contrasts images and classes both ways.

Where the sources leave a choice:

- Negatives come from the training images alone, never from others of the data set.
- An image has at most `hard_negatives` - 1 of them, and at least 2 while there are unused classes;
  the official code lets one more through where the right class is not among the likely ones.
- A class that stands twice in a batch is one class with two right images. The official code
  contrasts it with itself.
- The mixing weight is the one of `WEIGHTS` with the best accuracy on validation images, of equals
  the smallest, which changes stage 1 least.

Legend: b images of a batch, m images with the negatives, K classes, D joint width, n images.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import msgspec
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from vlp_deploy.classes.dual import BACKBONE, PARALLEL, name_tokens
from vlp_deploy.errors import TrainingError
from vlp_deploy.formats.checkpoint import PromptCheckpoint
from vlp_deploy.formats.structures import Dual, Plain
from vlp_train.images import ImageSet
from vlp_train.methods.base import Inputs, Method, Task, Training
from vlp_train.prompted import Prompts

WEIGHTS = (0.1, 0.2, 0.3, 0.5, 1.0)
USUAL_WEIGHT = 0.2  # of the paper, where there are no images to choose by
LEAST_NEGATIVES = 2
BATCH = 64  # images where no gradient is needed
NEGATIVES_STREAM = 4  # of random numbers beside the seed
TEXT, VISUAL = "text.prompts", "visual.prompts"

Integers = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class DpcConfig:
    """How many classes an image is contrasted with, how fast P' learns, how it is mixed in.

    `hard_negatives` (K_hn) counts the likely classes of an image, its own among them.
    `mixing_weight` is chosen on validation images unless it is given. `lr_mult` multiplies the
    learning rate; `preset=official_converse` sets it to 1/w², which is what the official code's
    steps amount to. `base_offset` is added to the logits of base classes beside new ones.
    """

    hard_negatives: int = 8
    mixing_weight: float | None = None
    lr_mult: float = 1.0
    preset: Literal["direct", "official_converse"] = "direct"
    base_offset: float = 0.0

    def __post_init__(self) -> None:
        if self.hard_negatives < 2:
            raise ValueError(f"hard_negatives must be at least 2, got {self.hard_negatives}")
        if self.mixing_weight is not None and not 0 < self.mixing_weight <= 1:
            raise ValueError(f"mixing_weight must be above 0, at most 1, got {self.mixing_weight}")
        if not 0 < self.lr_mult < float("inf"):
            raise ValueError(f"lr_mult must be above 0, got {self.lr_mult}")
        if self.preset == "official_converse" and self.lr_mult != 1:
            raise ValueError("preset=official_converse sets lr_mult: give one of them")

    @property
    def wants_validation(self) -> bool:
        """Whether images are needed to choose the mixing weight by."""
        return self.mixing_weight is None

    @property
    def rate_factor(self) -> float:
        """Of P' over the learning rate."""
        if self.preset == "official_converse":
            return float((self.mixing_weight or USUAL_WEIGHT) ** -2)
        return self.lr_mult

    def training(self, shots: int | None) -> Training:
        """The official protocol on CoOp."""
        return Training(epochs=20, learning_rate=0.002, batch_size=4)


class Dpc(Method):
    """P as stage 1 left it, and P' that starts there."""

    data_parallel: ClassVar[bool] = False
    learns_text: ClassVar[bool] = True
    learns_image: ClassVar[bool] = False

    def __init__(self, config: DpcConfig, task: Task) -> None:
        """Raises TrainingError if there is no stage 1, or it does not fit the task."""
        stage1 = _checked(task)
        header = stage1.header
        super().__init__(
            task,
            templates=header.templates,
            text_layout=header.text_layout,
            visual_layout=header.visual_layout,
            structure=Dual(
                method=header.method,
                mixing_weight=config.mixing_weight or USUAL_WEIGHT,
                base_offset=config.base_offset,
            ),
            base_classes=task.class_names,
        )
        self.config, self.task = config, task
        self.backbone, self.parallel = nn.Module(), nn.ParameterDict()
        for name in (TEXT, VISUAL):
            if name in stage1.tensors:
                value = torch.from_numpy(stage1.tensors[name]).to(self.prompted.device)
                self.backbone.register_buffer(_attribute(name), value.clone())
                self.parallel[_attribute(name)] = nn.Parameter(value.clone())
        self.validated: dict[str, float] = {}  # accuracy by mixing weight
        self._epoch, self._step = -1, 0

    def prompts(self) -> Prompts:
        """P and P'."""
        parts = ((BACKBONE, self._backbone()), (PARALLEL, self._parallel()))
        return {prefix + name: value for prefix, part in parts for name, value in part.items()}

    def image_features(self, pixels: Tensor) -> Tensor:
        """Of P', which learns: uint8 (b, 3, S, S) → (b, D)."""
        return self.prompted.image_features(pixels, self._parallel())

    def class_features(self) -> Tensor:
        """Of P', (K, D)."""
        return self.prompted.class_features(self._parallel())

    def parameter_groups(self) -> list[dict[str, Any]]:
        """P' at a rate of its own."""
        return [{"params": list(self.parameters()), "rate_factor": self.config.rate_factor}]

    @torch.no_grad()
    def start(self, images: ImageSet, training: Training) -> None:
        """Which images there are of each class, and what stage 1 takes the classes for."""
        self._images = images
        self._of_class: list[list[int]] = [[] for _ in self.prompted.class_names]
        for index, sample in enumerate(images.samples):
            self._of_class[sample.label].append(index)
        self._stage1_classes = self.prompted.class_features(self._backbone())  # (K, D)
        self._cached: dict[int, Tensor] = {}  # (D,) by image

    def step(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Logits (b, K) of P', and the contrastive loss of the batch with its negatives."""
        random, images = self._random_numbers(inputs.epoch), inputs.images
        mined = self._mined(inputs, random)  # (m - b,)
        labels = torch.cat([inputs.labels, torch.from_numpy(mined).to(inputs.labels.device)])
        if len(mined):
            images = torch.cat([images, self._drawn(mined, random, inputs.epoch)])
        features = self.image_features(images) if self.learns_image else images  # (m, D)
        logits = self.logits(features, self.class_features())  # (m, K)
        return logits[: len(inputs.labels)], contrastive_loss(logits, labels)

    @torch.no_grad()
    def finish(self, images: ImageSet) -> None:
        """Choose the mixing weight by the validation images, if there are any."""
        if self.config.mixing_weight is None and self.task.validation:
            self.validated = dict(self._accuracies())
            best = max(
                self.validated, key=lambda weight: self.validated[weight]
            )  # the first of equals
            self._mix(float(best))

    def provenance(self) -> dict[str, Any]:
        """How the mixing weight came about."""
        if self.config.mixing_weight is not None:
            chosen = "as asked"
        elif self.validated:
            chosen = f"best of {len(WEIGHTS)} on {len(self.task.validation)} validation images"
        else:
            chosen = "the paper's: too few shots to hold some out"
        return {"mixing_weight": chosen, "validation_accuracy": self.validated}

    def _backbone(self) -> Prompts:
        """P, by the plain names."""
        return {_name(key): value for key, value in self.backbone.named_buffers()}

    def _parallel(self) -> Prompts:
        """P', by the plain names."""
        return {_name(key): value for key, value in self.parallel.items()}

    @torch.no_grad()
    def _mined(self, inputs: Inputs, random: np.random.Generator) -> Integers:
        """The negatives' classes."""
        images = inputs.images
        if self.learns_image:
            images = self.prompted.image_features(images, self._backbone())  # (b, D)
        logits = self.logits(images, self._stage1_classes)  # (b, K)
        negatives = hard_negatives(
            logits.cpu().numpy(),
            inputs.labels.tolist(),
            count=self.config.hard_negatives,
            usable=np.array([bool(images) for images in self._of_class]),
            random=random,
        )
        return np.array(negatives, np.int64)

    @torch.no_grad()
    def _drawn(self, classes: Integers, random: np.random.Generator, epoch: int) -> Tensor:
        """A training image of each class, as the method reads images."""
        indices = np.array([random.choice(self._of_class[label]) for label in classes])
        if self.learns_image or self._images.augment:
            (batch,) = self._images.batches([indices], epoch=epoch)
            return batch.pixels if self.learns_image else self.image_features(batch.pixels)
        missing = [index for index in dict.fromkeys(indices.tolist()) if index not in self._cached]
        if missing:
            (batch,) = self._images.batches([np.array(missing)])
            features = self.image_features(batch.pixels)
            self._cached.update(zip(missing, features, strict=True))
        return torch.stack([self._cached[index] for index in indices.tolist()])

    def _random_numbers(self, epoch: int) -> np.random.Generator:
        """A stream of its own for every step, whether the run was resumed before it or not."""
        self._step = self._step + 1 if epoch == self._epoch else 0
        self._epoch = epoch
        return np.random.default_rng((self.task.seed, NEGATIVES_STREAM, epoch, self._step))

    def _accuracies(self) -> Iterator[tuple[str, float]]:
        """Of each mixing weight, on the validation images."""
        images = ImageSet(self.task.validation, self.task.preprocessing)
        for weight in WEIGHTS:
            self._mix(weight)
            prompts = self.prompts()
            classes = self.prompted.classes(prompts)
            right = sum(
                int(
                    (
                        self.prompted.predict(b.pixels, prompts, classes).argmax(1).cpu()
                        == b.labels
                    ).sum()
                )
                for b in images.in_order(BATCH)
            )
            yield str(weight), right / len(images)

    def _mix(self, weight: float) -> None:
        structure = self.prompted.structure
        self.prompted.structure = msgspec.structs.replace(structure, mixing_weight=weight)


class VisualDpc(Dpc):
    """On a backbone that has visual prompts, too."""

    learns_image: ClassVar[bool] = True


def dpc(config: DpcConfig, task: Task) -> Dpc:
    """DPC on the backbone that stage 1 tuned. Raises TrainingError if there is none that fits."""
    visual = task.stage1 is not None and VISUAL in task.stage1.tensors
    return (VisualDpc if visual else Dpc)(config, task)


def hard_negatives(
    logits: NDArray[np.floating],
    labels: list[int],
    *,
    count: int,
    usable: NDArray[np.bool_],
    random: np.random.Generator,
) -> list[int]:
    """Classes that look like those of a batch: none of its own, none twice, image after image.

    `logits` (b, K) are stage 1's. Of an image's `count` likeliest classes (all if there are fewer)
    without its own, those that no image before it has, at most `count` - 1; where fewer than two
    are left, unused classes at random. `usable` (K,) marks classes that there are images of.
    """
    used, negatives = set(labels) | set(np.flatnonzero(~usable).tolist()), []
    for row, label in zip(logits, labels, strict=True):
        likely = [int(k) for k in np.argsort(-row, kind="stable")[:count] if k != label]
        mine = [k for k in likely[: count - 1] if k not in used]
        used.update(mine)
        unused = [k for k in range(len(row)) if k not in used]
        more = min(max(LEAST_NEGATIVES - len(mine), 0), len(unused))
        mine += random.choice(unused, size=more, replace=False).tolist() if more else []
        used.update(mine)
        negatives += mine
    return negatives


def contrastive_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Half the cross-entropy of images over the classes present, half that of classes over images.

    `logits` (m, K) over all classes, `labels` (m,). A class with several images has all of them for
    a target, in equal parts; with one each this is the paper's equation 6.
    """
    present, column = labels.unique(return_inverse=True)  # (P,), (m,)
    scores = logits[:, present]  # (m, P)
    own = F.one_hot(column, len(present)).to(scores.dtype)  # (m, P)
    of_images = F.cross_entropy(scores, column)
    of_classes = F.cross_entropy(scores.T, (own / own.sum(dim=0)).T)
    return (of_images + of_classes) / 2


def _checked(task: Task) -> PromptCheckpoint:
    """Stage 1, if it is a prompt that DPC can go on from. Raises TrainingError."""
    stage1 = task.stage1
    if stage1 is None:
        raise TrainingError(
            "method dpc goes on from a tuned prompt: give --stage1 RUN, the run of coop, ivlp, "
            "maple or promptsrc on the same classes"
        )
    header = stage1.header
    if not isinstance(header.structure, Plain) or TEXT not in stage1.tensors:
        raise TrainingError(
            f"--stage1 is a prompt of {header.method} "
            f"({', '.join(name for name in stage1.tensors if not name.startswith('reference.'))}), "
            "but dpc needs text prompts that all classes share, and nothing else beside visual "
            "ones: coop without class_specific, kgcoop, deep_language, ivlp, maple or promptsrc"
        )
    trained, given = (
        {name_tokens(name): name for name in names}
        for names in (header.class_names, task.class_names)
    )
    if different := trained.keys() ^ given.keys():
        example = min({**trained, **given}[tokens] for tokens in different)
        raise TrainingError(
            f"--stage1 was tuned on {len(trained)} classes and the data has {len(given)}, which "
            f"are others ({example!r} is in one of them only). Both stages learn the same base "
            "classes: give the data of stage 1"
        )
    return stage1


def _attribute(name: str) -> str:
    """`text.prompts` → `text_prompts`: dots are taken in names of parameters."""
    return name.replace(".", "_")


def _name(attribute: str) -> str:
    return attribute.replace("_", ".")
