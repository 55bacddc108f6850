"""Deep language prompting: text prompts before each of the first layers; images stay as they are.

Source: the ablation "deep language" of MaPLe (arXiv:2210.03117), section 3.2; defaults of its
official code.
"""

from dataclasses import dataclass
from typing import ClassVar

from vlp_train.methods.base import Task, Training
from vlp_train.methods.deep import WORDS, Independent, check_tokens, check_words, prompted_layers

USUAL_DEPTH = 12


@dataclass(frozen=True, kw_only=True)
class DeepLanguageConfig:
    """How many text tokens, in how many layers (12, or all of a smaller tower), started from what.

    `words` start the first layer, one token each; without them it starts at random.
    """

    text_tokens: int = 4
    depth: int | None = None
    words: str = WORDS

    def __post_init__(self) -> None:
        check_tokens(text_tokens=self.text_tokens, depth=self.depth)
        check_words(self.words, self.text_tokens)

    def training(self, shots: int | None) -> Training:
        """MaPLe's protocol: few epochs of small batches."""
        return Training(epochs=5, learning_rate=0.0025, batch_size=4)


class DeepLanguage(Independent):
    """Learned text tokens of their own for each prompted layer."""

    learns_image: ClassVar[bool] = False

    def __init__(self, config: DeepLanguageConfig, task: Task) -> None:
        """Raises TrainingError if the text tower is too shallow or too short."""
        layers = task.clip.config.text.layers
        depth = prompted_layers(config.depth, usual=USUAL_DEPTH, towers={"text": layers})
        super().__init__(task, words=config.words, text=(depth, config.text_tokens))
