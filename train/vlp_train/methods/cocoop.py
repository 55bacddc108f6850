"""CoCoOp: CoOp's words, moved by a small network that looks at the image.

Source: CoCoOp (arXiv:2203.05557), section 3.2; defaults of its official code.

Legend: B images, m context tokens, h hidden width, d width of the text tower, D joint width.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlp_deploy.formats.structures import Conditioned
from vlp_train.conditioned import ConditionedClip
from vlp_train.methods.base import Inputs, Task, Training
from vlp_train.methods.coop import CoOp, CoOpConfig
from vlp_train.methods.deep import WORDS
from vlp_train.prompted import Prompts

HIDDEN_SHARE = 16  # the hidden layer has D / 16 units


@dataclass(frozen=True, kw_only=True)
class CoCoOpConfig:
    """What the context starts from, and how wide the network that shifts it is.

    `words` and `context_tokens` are CoOp's; `hidden` units, by default a sixteenth of the joint
    width.
    """

    words: str = WORDS
    context_tokens: int | None = None
    hidden: int | None = None

    def __post_init__(self) -> None:
        _ = self.context  # which checks itself
        if self.hidden is not None and self.hidden < 1:
            raise ValueError(f"hidden must be at least 1, got {self.hidden}")

    @property
    def context(self) -> CoOpConfig:
        """The words as CoOp knows them."""
        return CoOpConfig(words=self.words, context_tokens=self.context_tokens)

    def training(self, shots: int | None) -> Training:
        """The official protocol: few epochs of single images."""
        return Training(epochs=10, learning_rate=0.002, batch_size=1)


class CoCoOp(CoOp):
    """A context shared by all classes, and the meta-net that shifts it for each image."""

    prompted: ConditionedClip

    def __init__(self, config: CoCoOpConfig, task: Task) -> None:
        """Raises TrainingError if the text tower reads too few tokens for the context."""
        super().__init__(config.context, task, structure=Conditioned())
        clip = task.clip.config
        hidden = config.hidden or max(1, clip.embed_dim // HIDDEN_SHARE)
        random, device = np.random.default_rng((task.seed, 1)), task.clip.logit_scale.device
        self.linear1 = _linear(clip.embed_dim, hidden, random, device)
        self.linear2 = _linear(hidden, clip.text.width, random, device)

    def prompts(self) -> Prompts:
        """The context (1, m, d) and the meta-net's weights."""
        layers = {"linear1": self.linear1, "linear2": self.linear2}
        return {
            **super().prompts(),
            **{f"cocoop.{name}.weight": layer.weight for name, layer in layers.items()},
            **{f"cocoop.{name}.bias": layer.bias for name, layer in layers.items()},
        }

    def step(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Cross-entropy of the logits (B, K), each image with class features of its own."""
        classes = self.prompted.classes(self.prompts())(inputs.images)  # (B, K, D)
        logits = self.prompted.conditioned_logits(inputs.images, classes)
        return logits, F.cross_entropy(logits, inputs.labels)


def _linear(
    inputs: int, outputs: int, random: np.random.Generator, device: torch.device
) -> nn.Linear:
    """PyTorch's own start, uniform in ±1/√inputs, but from NumPy's generator."""
    layer = nn.Linear(inputs, outputs, device=device)
    bound = inputs**-0.5
    with torch.no_grad():
        for parameter in (layer.weight, layer.bias):
            values = random.uniform(-bound, bound, tuple(parameter.shape))
            parameter.copy_(torch.from_numpy(values))
    return layer
