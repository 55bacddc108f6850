"""IVLP: text and visual prompts before each of the first layers, learned side by side.

Source: independent vision-language prompting in MaPLe (arXiv:2210.03117), section 3.2; defaults of
its official code.
"""

from dataclasses import dataclass
from typing import ClassVar

from vlp_train.methods.base import Task, Training
from vlp_train.methods.deep import WORDS, Independent, check_tokens, check_words, prompted_layers


@dataclass(frozen=True, kw_only=True)
class IvlpConfig:
    """How many tokens of each tower, in how many of its layers, and what the text starts from.

    A depth that is left out is 12, or all of a smaller tower's layers. `words` start the first text
    layer; with two tokens, "a photo of a" keeps "of a" as fixed text. Without words it starts at
    random.
    """

    usual_depth: ClassVar[int] = 12

    text_tokens: int = 2
    visual_tokens: int = 2
    text_depth: int | None = None
    visual_depth: int | None = None
    words: str = WORDS

    def __post_init__(self) -> None:
        check_tokens(
            text_tokens=self.text_tokens,
            visual_tokens=self.visual_tokens,
            text_depth=self.text_depth,
            visual_depth=self.visual_depth,
        )
        check_words(self.words, self.text_tokens)

    def training(self, shots: int | None) -> Training:
        """MaPLe's protocol: few epochs of small batches."""
        return Training(epochs=5, learning_rate=0.0035, batch_size=4)


class Ivlp(Independent):
    """Learned tokens of their own for each prompted layer of each tower."""

    def __init__(self, config: IvlpConfig, task: Task) -> None:
        """Raises TrainingError if a tower is too shallow, or the text tower too short."""
        towers, usual = task.clip.config, config.usual_depth
        text = prompted_layers(config.text_depth, usual=usual, towers={"text": towers.text.layers})
        visual = prompted_layers(
            config.visual_depth, usual=usual, towers={"image": towers.vision.layers}
        )
        super().__init__(
            task,
            words=config.words,
            text=(text, config.text_tokens),
            visual=(visual, config.visual_tokens),
        )
