"""What a prompt-learning method is: learned tensors in a frozen CLIP, and the loss they minimise.

A method owns its learned parameters and nothing else. `prompts()` says what they amount to in a
prompt checkpoint's neutral tensors; the forward pass follows from those, here and when served.

Legend: B images, K classes, D joint width, S image size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlp_deploy.classes.tokenizer import Tokenizer
from vlp_deploy.data.dataset import Sample
from vlp_deploy.formats.architecture import Preprocessing, TextLayout, VisualLayout
from vlp_deploy.formats.checkpoint import PromptCheckpoint
from vlp_deploy.formats.structures import Structure
from vlp_train.clip import Clip
from vlp_train.forward import FORWARDS
from vlp_train.images import ImageSet
from vlp_train.prompted import PLAIN, PLAIN_IMAGE, PLAIN_TEXT, PromptedClip, Prompts
from vlp_train.schedule import Schedule

INIT_STD = 0.02  # of every prompt that starts at random, in the official code of all methods


@dataclass(frozen=True, kw_only=True)
class Training:
    """How long and how fast prompts are trained, unless the user says otherwise."""

    epochs: int
    learning_rate: float
    batch_size: int  # images a forward pass; a step takes `accumulate` times as many
    warmup_epochs: int = 1
    schedule: Schedule = "cosine"
    momentum: float = 0.9
    weight_decay: float = 5e-4  # on prompts too, as in the official code
    accumulate: int = 1


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a method is set to work on."""

    clip: Clip
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    seed: int
    class_chunk: int | None = None  # text rows at once; 0 = all, None = what fits
    stage1: PromptCheckpoint | None = None  # a tuned prompt of the same CLIP to go on from
    validation: tuple[Sample, ...] = ()  # images to choose settings by, not trained on


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What one training step works on. What training cannot change is computed before."""

    images: Tensor  # features (B, D); uint8 pixels (B, 3, S, S) if the method learns image prompts
    class_features: Tensor | None  # (K, D); None if the method learns text prompts
    labels: Tensor  # (B,)
    epoch: int  # 0 is the first


class Method(nn.Module):
    """Base of all methods; a subclass sets the two flags and implements `prompts`.

    Parameters and buffers are what a run saves. A method that minimises more than the cross-entropy
    of its logits overrides `step`. `finish` may change `prompted.structure`.
    """

    learns_text: ClassVar[bool]
    learns_image: ClassVar[bool]
    data_parallel: ClassVar[bool] = True  # False if the loss is no mean over the batch's images
    prompted: PromptedClip

    def __init__(
        self,
        task: Task,
        *,
        templates: Sequence[str],
        text_layout: TextLayout = PLAIN_TEXT,
        visual_layout: VisualLayout = PLAIN_IMAGE,
        structure: Structure = PLAIN,
        base_classes: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.prompted = FORWARDS[type(structure)](
            task.clip,
            task.class_names,
            templates=templates,
            preprocessing=task.preprocessing,
            text_layout=text_layout,
            visual_layout=visual_layout,
            structure=structure,
            base_classes=base_classes,
        )
        self.prompted.class_chunk = task.class_chunk

    def prompts(self) -> Prompts:
        """The learned prompts as neutral tensors, with gradients."""
        raise NotImplementedError

    def image_features(self, pixels: Tensor) -> Tensor:
        """uint8 (B, 3, S, S) → normalised (B, D)."""
        return self.prompted.image_features(pixels, self.prompts())

    def class_features(self) -> Tensor:
        """Normalised (K, D)."""
        return self.prompted.class_features(self.prompts())

    def logits(self, image_features: Tensor, class_features: Tensor) -> Tensor:
        """(B, D), (K, D) → (B, K)."""
        return self.prompted.logits(image_features, class_features)

    def step(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Logits (B, K), and the scalar that training minimises: their cross-entropy."""
        images, classes = inputs.images, inputs.class_features
        logits = self.logits(
            self.image_features(images) if self.learns_image else images,
            self.class_features() if classes is None else classes,
        )
        return logits, F.cross_entropy(logits, inputs.labels)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The optimiser's groups.

        One may set a `weight_decay`, a `rate_factor` on all its rates, or fewer `warmup_epochs`.
        """
        return [{"params": list(self.parameters())}]

    def start(self, images: ImageSet, training: Training) -> None:
        """Called before the first step, of a resumed run too, with what it will learn from."""

    def end_of_epoch(self, epoch: int) -> None:
        """Called after the last step of an epoch (0 is the first), before it is saved."""

    def finish(self, images: ImageSet) -> None:
        """Called once, after the last epoch, with the images that were trained on.

        What it changes is in the checkpoint only: when a run is resumed that had finished its
        epochs, it is called again.
        """

    def provenance(self) -> dict[str, Any]:
        """What the checkpoint should tell of how it was made, after `finish`, as JSON values."""
        return {}


def check_templates(templates: Sequence[str]) -> None:
    """Raise ValueError unless there are sentences, each with one place for the class name."""
    if not templates:
        raise ValueError("templates must hold at least one sentence with {} in it")
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(f"template {template!r} must hold {{}} exactly once, for the name")


def random_prompts(*shape: int, seed: int | tuple[int, ...], device: torch.device) -> nn.Parameter:
    """N(0, 0.02²), from NumPy's generator: the same on every version and device of torch."""
    values = np.random.default_rng(seed).normal(0, INIT_STD, shape)
    return nn.Parameter(torch.tensor(values, dtype=torch.float32, device=device))


def word_prompts(words: str, tokens: int, clip: Clip) -> Tensor:
    """The embeddings of a phrase's first tokens, (m, d): where learned text prompts start from."""
    ids = torch.tensor(Tokenizer.default().encode(words)[:tokens])
    table = clip.token_embedding.weight
    return table[ids.to(table.device)].detach().clone()
