"""What a prompt-learning method is: learned tensors in a frozen CLIP, and the loss they minimise.

A method owns its learned parameters and nothing else. `prompts()` says what they amount to in a
prompt checkpoint's neutral tensors; the forward pass follows from those, here and when served.

Legend: B images, K classes, D joint width, S image size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlp_deploy.architecture import Preprocessing, TextLayout, VisualLayout
from vlp_train.clip import Clip
from vlp_train.prompted import PLAIN_IMAGE, PLAIN_TEXT, PromptedClip, Prompts

INIT_STD = 0.02  # of every prompt that starts at random, in the official code of all methods


@dataclass(frozen=True, kw_only=True)
class Training:
    """How long and how fast prompts are trained, unless the user says otherwise."""

    epochs: int
    learning_rate: float
    batch_size: int
    warmup_epochs: int = 1


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a method is set to work on."""

    clip: Clip
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    seed: int


class Method(nn.Module):
    """Base of all methods; a subclass sets the two flags and implements `prompts`."""

    learns_text: ClassVar[bool]
    learns_image: ClassVar[bool]
    prompted: PromptedClip

    def __init__(
        self,
        task: Task,
        *,
        templates: Sequence[str],
        text_layout: TextLayout = PLAIN_TEXT,
        visual_layout: VisualLayout = PLAIN_IMAGE,
    ) -> None:
        super().__init__()
        self.prompted = PromptedClip(
            task.clip,
            task.class_names,
            templates=templates,
            preprocessing=task.preprocessing,
            text_layout=text_layout,
            visual_layout=visual_layout,
        )

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

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """What training minimises, a scalar: the cross-entropy."""
        return F.cross_entropy(logits, labels)


def random_prompts(*shape: int, seed: int, device: torch.device) -> nn.Parameter:
    """N(0, 0.02²), from NumPy's generator: the same on every version and device of torch."""
    values = np.random.default_rng(seed).normal(0, INIT_STD, shape)
    return nn.Parameter(torch.tensor(values, dtype=torch.float32, device=device))
