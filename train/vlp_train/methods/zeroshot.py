"""Zero-shot CLIP: nothing is learned, the embeddings of several templates are averaged.

Source: CLIP (arXiv:2103.00020), section 3.1.4.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from vlp_deploy.formats.structures import Baked
from vlp_train.baked import structure_of
from vlp_train.methods.base import Method, Task, Training, check_templates
from vlp_train.prompted import Prompts

TEMPLATES = (
    "a photo of a {}.",
    "a drawing of a {}.",
    "an icon of a {}.",
    "art of the {}.",
)


@dataclass(frozen=True, kw_only=True)
class ZeroShotConfig:
    """The sentences to average over; `{}` stands for the class name."""

    templates: tuple[str, ...] = TEMPLATES

    def __post_init__(self) -> None:
        check_templates(self.templates)

    def training(self, shots: int | None) -> Training:
        """No epochs: there is nothing to learn."""
        return Training(epochs=0, learning_rate=0.0, batch_size=32)


class ZeroShot(Method):
    """The frozen CLIP as it is."""

    learns_text: ClassVar[bool] = False
    learns_image: ClassVar[bool] = False

    def __init__(self, config: ZeroShotConfig, task: Task) -> None:
        structure = structure_of(task.clip)
        super().__init__(task, templates=config.templates, structure=structure)

    def prompts(self) -> Prompts:
        """None; or the classes themselves, where nothing but this model's text tower makes them."""
        if not isinstance(self.prompted.structure, Baked):
            return {}
        with torch.no_grad():
            return {"class.embeddings": self.prompted.class_features({})}
