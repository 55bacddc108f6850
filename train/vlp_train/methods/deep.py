"""Deep prompts: tokens of their own for each of a tower's first layers, with or without a start.

What deep language prompting, IVLP, MaPLe and PromptSRC share: how many layers are prompted, which
words the first text prompts start from, and the method that learns both towers' tokens apart.

Legend: J prompted layers, m prompt tokens, d width of a tower.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import nn

from vlp_deploy.classes.tokenizer import Tokenizer
from vlp_deploy.errors import TrainingError
from vlp_deploy.formats.architecture import TextLayout, TextTower, VisionTower, VisualLayout
from vlp_train.methods.base import Method, Task, random_prompts, word_prompts
from vlp_train.methods.coop import PLACEHOLDER, check_context
from vlp_train.prompted import PLAIN_IMAGE, Prompts

WORDS = "a photo of a"  # what the first layer's text prompts start from in MaPLe's code
TEXT_STREAM, VISUAL_STREAM = 1, 2  # of random numbers beside the seed, so that towers differ


def check_tokens(**counts: int | None) -> None:
    """Raise ValueError for a count below 1; None is left to the method."""
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")


def check_words(words: str, tokens: int) -> None:
    """Raise ValueError if a phrase has fewer tokens than are learned; no phrase fits any number."""
    found = len(Tokenizer.default().encode(words))
    if words and tokens > found:
        raise ValueError(
            f"{tokens} text tokens are more than the {found} of words={words!r}, which they "
            "start from: give at most as many, or words= (nothing) to start at random"
        )


def sentence(words: str, tokens: int) -> str:
    """The template whose first m tokens are learned; words beyond them stay as fixed text."""
    return f"{' '.join(words.split()) or ' '.join([PLACEHOLDER] * tokens)} {{}}."


def prompted_layers(asked: int | None, *, usual: int, towers: Mapping[str, int]) -> int:
    """How many layers are prompted: as asked, else the method's usual, as far as all towers reach.

    `towers` maps the name of each tower concerned to its layers. Raises TrainingError if one has
    fewer than asked.
    """
    name, layers = min(towers.items(), key=lambda tower: tower[1])
    if asked is None:
        return min(usual, layers)
    if asked > layers:
        raise TrainingError(
            f"a depth of {asked} asks for more prompted layers than the {name} tower's {layers}. "
            f"Give 1 to {layers}, or leave it out for {min(usual, layers)}"
        )
    return asked


def visual_layout(depth: int, tokens: int, tower: VisionTower) -> VisualLayout:
    """Through `ln_pre`, and onwards as tokens behind the last prompted layer (MaPLe's code)."""
    return VisualLayout(tokens=tokens, pre_ln=True, survive_last=depth < tower.layers)


def deep_text_prompts(words: str, depth: int, tokens: int, task: Task) -> nn.Parameter:
    """(J, m, d): the first layer's from words, if there are any, the others at random."""
    prompts = _random(depth, tokens, task.clip.config.text, task, TEXT_STREAM)
    if words:
        with torch.no_grad():
            prompts[0] = word_prompts(words, tokens, task.clip)
    return prompts


class Independent(Method):
    """Tokens of both towers, or of the text tower alone, that know nothing of each other."""

    learns_text: ClassVar[bool] = True
    learns_image: ClassVar[bool] = True

    def __init__(
        self, task: Task, *, words: str, text: tuple[int, int], visual: tuple[int, int] = (0, 0)
    ) -> None:
        """`text` and `visual` are layers and tokens, (J, m). Raises TrainingError."""
        towers = task.clip.config
        check_context(text[1], towers.text.context_length)
        super().__init__(
            task,
            templates=(sentence(words, text[1]),),
            text_layout=TextLayout(tokens=text[1]),
            visual_layout=visual_layout(*visual, towers.vision) if visual[0] else PLAIN_IMAGE,
        )
        self.text = deep_text_prompts(words, *text, task)  # (J_t, m_t, d_t)
        if visual[0]:  # otherwise there is no such attribute
            self.visual = _random(*visual, towers.vision, task, VISUAL_STREAM)  # (J_v, m_v, d_v)

    def prompts(self) -> Prompts:
        """J_t layers of text prompts, J_v layers of visual ones."""
        prompts = {"text.prompts": self.text}
        if self.prompted.visual_layout.tokens:
            prompts["visual.prompts"] = self.visual
        return prompts


def _random(
    depth: int, tokens: int, tower: TextTower | VisionTower, task: Task, stream: int
) -> nn.Parameter:
    return random_prompts(
        depth,
        tokens,
        tower.width,
        seed=(task.seed, stream),
        device=task.clip.logit_scale.device,
    )
