"""CoOp: the words around the class name are learned, shared by all classes or one set a class.

Source: CoOp (arXiv:2109.01134), section 3; defaults of its official code.

Legend: K classes, m context tokens, d width of the text tower.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from vlp_deploy.errors import TrainingError
from vlp_deploy.formats.architecture import Position, TextLayout
from vlp_deploy.formats.structures import Structure
from vlp_train.methods.base import Method, Task, Training, random_prompts, word_prompts
from vlp_train.prompted import PLAIN, Prompts

PLACEHOLDER = "X"
OTHER_TOKENS = 4  # of a prompt: start, end, full stop and at least one of the class name


@dataclass(frozen=True, kw_only=True)
class CoOpConfig:
    """How many context tokens, where they stand, what they start from.

    `words` start the context from the embeddings of a phrase such as "a photo of a", one token a
    word; without them it starts at random. `class_specific` learns a context for every class:
    such prompts serve the training classes only.
    """

    context_tokens: int | None = None  # 16, or as many as there are words
    words: str = ""
    position: Position = "end"
    class_specific: bool = False

    def __post_init__(self) -> None:
        words = len(self.words.split())
        if words and self.context_tokens not in (None, words):
            raise ValueError(
                f"context_tokens={self.context_tokens} does not fit words={self.words!r}, which "
                f"are {words}: leave context_tokens out, or change the words"
            )
        if words and self.class_specific:
            raise ValueError("class_specific contexts start at random: leave words out")
        if self.tokens < 1:
            raise ValueError(f"context_tokens must be at least 1, got {self.tokens}")

    @property
    def tokens(self) -> int:
        """m."""
        if self.context_tokens is not None:
            return self.context_tokens
        return len(self.words.split()) or 16

    @property
    def template(self) -> str:
        """The sentence whose first m tokens are learned."""
        words = " ".join(self.words.split()) or " ".join([PLACEHOLDER] * self.tokens)
        return f"{words} {{}}."

    def training(self, shots: int | None) -> Training:
        """50 epochs for 1 shot (and for full data sets, as on ImageNet), 100 up to 4, else 200."""
        by_shots = {None: 50, 1: 50, 2: 100, 3: 100, 4: 100}
        epochs = by_shots.get(shots, 200)
        return Training(epochs=epochs, learning_rate=0.002, batch_size=32)


class CoOp(Method):
    """Learned context tokens in front of, behind or around every class name."""

    learns_text: ClassVar[bool] = True
    learns_image: ClassVar[bool] = False

    def __init__(self, config: CoOpConfig, task: Task, *, structure: Structure = PLAIN) -> None:
        """Raises TrainingError if the text tower reads too few tokens for the context."""
        check_context(config.tokens, task.clip.config.text.context_length)
        layout = TextLayout(tokens=config.tokens, position=config.position)
        super().__init__(
            task, templates=(config.template,), text_layout=layout, structure=structure
        )
        self.class_specific = config.class_specific
        if config.words:
            words = word_prompts(config.words, config.tokens, task.clip)
            self.context = nn.Parameter(words[None])  # (1, m, d)
        else:
            sets = len(task.class_names) if config.class_specific else 1
            self.context = random_prompts(
                sets,
                config.tokens,
                task.clip.config.text.width,
                seed=task.seed,
                device=task.clip.logit_scale.device,
            )  # (1 or K, m, d)

    def prompts(self) -> Prompts:
        """One layer of text prompts, or one context a class."""
        name = "text.class_prompts" if self.class_specific else "text.prompts"
        return {name: self.context}


def check_context(tokens: int, length: int) -> None:
    """Raise TrainingError if no class name has room beside the learned tokens."""
    if tokens > length - OTHER_TOKENS:
        raise TrainingError(
            f"{tokens} learned text tokens are too many: the text tower reads {length} tokens, and "
            f"start, end, full stop and a token of the class name need {OTHER_TOKENS}. Give at "
            f"most {length - OTHER_TOKENS}"
        )
