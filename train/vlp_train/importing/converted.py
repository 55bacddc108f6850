"""What becomes of an official checkpoint: neutral tensors and where they stand."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vlp_deploy.formats.architecture import Position, VisualLayout
from vlp_deploy.formats.structures import Plain, Structure
from vlp_deploy.formats.weights import Floats

PLAIN_IMAGE = VisualLayout()


@dataclass(frozen=True, kw_only=True)
class Converted:
    """A method's tensors and layouts; what is the same for all methods is added later.

    `template` is the sentence to tokenize where no text token is learned; otherwise what the user
    said of the words that were replaced. `keeps_words`: see `classes.sentence_of`.
    """

    method: str
    tensors: Mapping[str, Floats]
    text_tokens: int = 0
    position: Position = "end"
    visual: VisualLayout = PLAIN_IMAGE
    structure: Structure = field(default_factory=Plain)
    template: str = ""
    keeps_words: bool = False
    class_specific: bool = False
    hyper_parameters: Mapping[str, Any]
