"""MaPLe: text prompts are learned, visual prompts are linear functions of them, layer by layer.

Source: MaPLe (arXiv:2210.03117), section 3.2, equations 4 to 9; defaults of its official code.

Legend: J prompted layers, m tokens, d_t and d_v widths of the text and the image tower.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from vlp_deploy.formats.architecture import TextLayout
from vlp_train.methods.base import Method, Task, Training
from vlp_train.methods.coop import check_context
from vlp_train.methods.deep import (
    WORDS,
    check_tokens,
    check_words,
    deep_text_prompts,
    prompted_layers,
    sentence,
    visual_layout,
)
from vlp_train.prompted import Prompts

USUAL_DEPTH = 9
COUPLING_STREAM = 3  # of random numbers beside the seed


@dataclass(frozen=True, kw_only=True)
class MapleConfig:
    """How many tokens in both towers, in how many of their layers, and what the text starts from.

    A depth that is left out is 9, or all layers of the smaller tower. `words` start the first text
    layer; with two tokens, "a photo of a" keeps "of a" as fixed text. Without words it starts at
    random.
    """

    tokens: int = 2
    depth: int | None = None
    words: str = WORDS

    def __post_init__(self) -> None:
        check_tokens(tokens=self.tokens, depth=self.depth)
        check_words(self.words, self.tokens)

    def training(self, shots: int | None) -> Training:
        """The protocol of the official code for base-to-new: few epochs of small batches."""
        return Training(epochs=5, learning_rate=0.0035, batch_size=4)


class Maple(Method):
    """Text prompts, and for each layer a projection that makes visual prompts of them.

    The projections train, and are gone from the checkpoint: it holds the prompts they make.
    """

    learns_text: ClassVar[bool] = True
    learns_image: ClassVar[bool] = True

    def __init__(self, config: MapleConfig, task: Task) -> None:
        """Raises TrainingError if a tower is too shallow, or the text tower too short."""
        towers = task.clip.config
        layers = {"text": towers.text.layers, "image": towers.vision.layers}
        depth = prompted_layers(config.depth, usual=USUAL_DEPTH, towers=layers)
        check_context(config.tokens, towers.text.context_length)
        super().__init__(
            task,
            templates=(sentence(config.words, config.tokens),),
            text_layout=TextLayout(tokens=config.tokens),
            visual_layout=visual_layout(depth, config.tokens, towers.vision),
        )
        self.text = deep_text_prompts(config.words, depth, config.tokens, task)  # (J, m, d_t)
        weight, bias = _couplings(depth, task)
        self.weight = nn.Parameter(weight)  # (J, d_v, d_t)
        self.bias = nn.Parameter(bias)  # (J, d_v)

    def prompts(self) -> Prompts:
        """J layers of text prompts, and of the visual prompts that were made of them."""
        visual = self.text @ self.weight.transpose(1, 2) + self.bias[:, None]  # (J, m, d_v)
        return {"text.prompts": self.text, "visual.prompts": visual}


def _couplings(depth: int, task: Task) -> tuple[Tensor, Tensor]:
    """Weights (J, d_v, d_t) and biases (J, d_v) as torch starts a linear layer: U(-1/√d_t, 1/√d_t).

    The first layer has a start of its own, the others share one (the official code clones them).
    """
    towers, device = task.clip.config, task.clip.logit_scale.device
    bound = towers.text.width**-0.5
    draw = np.random.default_rng((task.seed, COUPLING_STREAM)).uniform
    starts = torch.tensor(
        draw(-bound, bound, (2, towers.vision.width, towers.text.width + 1)),
        dtype=torch.float32,
        device=device,
    )
    layers = starts[[0] + [1] * (depth - 1)]  # (J, d_v, d_t + 1)
    return layers[..., :-1].contiguous(), layers[..., -1].contiguous()
