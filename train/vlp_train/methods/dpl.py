"""DPL, our reconstruction: prompts that both towers read beside their tokens, gated by head.

After "Decoupled Prompt Learning for Vision-Language Models" (arXiv:2308.10061): no code of it is
published, and what its abstract leaves open is chosen here (`vlp_train.decoupled` has the
mathematics). Its results are no results of the paper. Numbers of prompts, depth and schedule are
those of ProMP's published configuration, by the same first author.

Legend: n prompts, J prompted layers, h heads, d_t and d_v the towers' widths, r rank.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn

from vlp_deploy.formats.architecture import VisionTower
from vlp_deploy.formats.structures import Decoupled
from vlp_train.methods.base import Method, Task, Training, check_templates, random_prompts
from vlp_train.methods.deep import (
    VISUAL_STREAM,
    WORDS,
    check_tokens,
    check_words,
    deep_text_prompts,
    prompted_layers,
)
from vlp_train.prompted import Prompts

USUAL_DEPTH = 9
CONDITION_STREAM = 5  # of random numbers beside the seed
VISUAL_RATE, TEXT_RATE = 0.1, 0.002
FIXED_START = -4.0  # a share of 1.8 %: with 0 prompts would have half of all attention at once


@dataclass(frozen=True, kw_only=True)
class DplConfig:
    """How many prompts, how deep, and how much they are listened to.

    `mode` is what gates do: nothing (`exact`), shift how much prompts count (`bias`), or be the
    share of attention they have (`fixed`). `gate` is what all gates start from: 0, or in mode
    `fixed` the log odds of a small share. `condition_rank` above 0 makes the text prompts of a
    sentence depend on it. A `depth` that is left out is 9, or all layers of the smaller tower.
    `words` start the first layer's text prompts; none start it at random.
    """

    text_tokens: int = 2
    visual_tokens: int = 8
    depth: int | None = None
    mode: Literal["bias", "exact", "fixed"] = "bias"
    gate: float | None = None
    condition_rank: int = 0
    words: str = WORDS
    templates: tuple[str, ...] = ("a photo of a {}.",)

    def __post_init__(self) -> None:
        check_tokens(
            text_tokens=self.text_tokens, visual_tokens=self.visual_tokens, depth=self.depth
        )
        check_words(self.words, self.text_tokens)
        check_templates(self.templates)
        if self.condition_rank < 0:
            raise ValueError(f"condition_rank must be 0 or more, got {self.condition_rank}")
        if self.mode == "exact" and self.gate is not None:
            raise ValueError("mode=exact has no gates: leave gate out")

    @property
    def start(self) -> float:
        """What gates start from."""
        if self.gate is not None:
            return self.gate
        return FIXED_START if self.mode == "fixed" else 0.0

    def training(self, shots: int | None) -> Training:
        """ProMP's schedule; the rate is that of the image tower's prompts."""
        return Training(epochs=10, learning_rate=VISUAL_RATE, batch_size=4)


class Dpl(Method):
    """Prompts and gates of both towers; on request, text prompts that depend on the sentence."""

    learns_text: ClassVar[bool] = True
    learns_image: ClassVar[bool] = True

    def __init__(self, config: DplConfig, task: Task) -> None:
        """Raises TrainingError if a tower has fewer layers than are to be prompted."""
        towers = task.clip.config
        layers = {"text": towers.text.layers, "image": towers.vision.layers}
        depth = prompted_layers(config.depth, usual=USUAL_DEPTH, towers=layers)
        super().__init__(task, templates=config.templates, structure=Decoupled(mode=config.mode))
        self.text = deep_text_prompts(config.words, depth, config.text_tokens, task)
        self.visual = _visual_prompts(depth, config.visual_tokens, task)  # (J, n_v, d_v)
        self.gated = config.mode != "exact"
        if self.gated:
            self.text_gates = _gates(depth, towers.text.heads, config.start, task)
            self.visual_gates = _gates(depth, towers.vision.heads, config.start, task)
        self.conditioned = config.condition_rank > 0
        if self.conditioned:
            rank, width = config.condition_rank, towers.text.width
            device = task.clip.logit_scale.device
            self.down = random_prompts(
                depth, rank, width, seed=(task.seed, CONDITION_STREAM), device=device
            )
            self.up = nn.Parameter(torch.zeros(depth, width, rank, device=device))

    def prompts(self) -> Prompts:
        """All that was learned, in the tensors of its own structure."""
        prompts = {"dpl.text_prompts": self.text, "dpl.visual_prompts": self.visual}
        if self.gated:
            prompts |= {
                "dpl.text_gates": self.text_gates,
                "dpl.visual_gates": self.visual_gates,
            }
        if self.conditioned:
            prompts |= {"dpl.condition.down": self.down, "dpl.condition.up": self.up}
        return prompts

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Everything but the image tower's prompts learns at a fiftieth of their rate."""
        others = [each for each in self.parameters() if each is not self.visual]
        return [
            {"params": [self.visual]},
            {"params": others, "rate_factor": TEXT_RATE / VISUAL_RATE},
        ]


def _gates(depth: int, heads: int, start: float, task: Task) -> nn.Parameter:
    device = task.clip.logit_scale.device
    return nn.Parameter(torch.full((depth, heads), start, device=device))


def _visual_prompts(depth: int, tokens: int, task: Task) -> nn.Parameter:
    """Uniform within ±√(6 / (3 p² + d)), p the patch size: ProVP's start."""
    tower: VisionTower = task.clip.config.vision
    bound = (6 / (3 * tower.patch_size**2 + tower.width)) ** 0.5
    random = np.random.default_rng((task.seed, VISUAL_STREAM))
    values = random.uniform(-bound, bound, (depth, tokens, tower.width))
    device = task.clip.logit_scale.device
    return nn.Parameter(torch.tensor(values, dtype=torch.float32, device=device))
