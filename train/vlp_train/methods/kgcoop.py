"""KgCoOp: CoOp whose class embeddings are kept near those of a hand-written sentence.

Source: KgCoOp (arXiv:2303.13283), section 3.3. The loss is that of its official code: with unit
vectors half of the paper's squared distance.

Legend: B images, K classes, D joint width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vlp_train.methods.base import Inputs, Task, Training, check_templates
from vlp_train.methods.coop import CoOp, CoOpConfig
from vlp_train.methods.deep import WORDS
from vlp_train.prompted import PromptedClip


@dataclass(frozen=True, kw_only=True)
class KgCoOpConfig:
    """What the context starts from, and how strongly it is held to the classes of `templates`.

    The context has a token for each of `words`. Several templates are averaged.
    """

    words: str = WORDS
    weight: float = 8.0
    templates: tuple[str, ...] = ("a photo of a {}.",)

    def __post_init__(self) -> None:
        if not self.words.split():
            raise ValueError("words must hold at least one word for the context to start from")
        if not self.weight >= 0:
            raise ValueError(f"weight must be 0 or more, got {self.weight}")
        check_templates(self.templates)

    def training(self, shots: int | None) -> Training:
        """The official protocol: large batches."""
        return Training(epochs=100, learning_rate=0.002, batch_size=128)


class KgCoOp(CoOp):
    """A context shared by all classes, drawn back to what CLIP knew."""

    zero_shot: Tensor  # (K, D)

    def __init__(self, config: KgCoOpConfig, task: Task) -> None:
        """Raises TrainingError if the text tower reads too few tokens for the context."""
        super().__init__(CoOpConfig(words=config.words), task)
        self.weight = config.weight
        self.zero_shot = _class_features(config.templates, task)

    def step(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Cross-entropy + λ · (1 - mean cosine to the zero-shot classes)."""
        classes = self.class_features()
        logits = self.logits(inputs.images, classes)
        cosines = (classes * self.zero_shot).sum(dim=1)  # (K,)
        loss = F.cross_entropy(logits, inputs.labels) + self.weight * (1 - cosines.mean())
        return logits, loss


@torch.no_grad()
def _class_features(templates: tuple[str, ...], task: Task) -> Tensor:
    """(K, D)."""
    prompted = PromptedClip(
        task.clip, task.class_names, templates=templates, preprocessing=task.preprocessing
    )
    return prompted.class_features({})
