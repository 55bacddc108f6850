"""PromptSRC: IVLP held to CLIP's own features and answers, its prompts averaged over the epochs.

Source: PromptSRC (arXiv:2307.06948), section 3.2, equations 3 to 7. The terms of the loss, their
weights and the schedule of the average are those of the official code; two things are our own. The
teacher's sentences: 60 published ones there, 32 written here, or any given by `--template`. And
only prompts are averaged, where the official code averages the frozen CLIP along with them.

Legend: B images, K classes, D joint width, N epochs.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from vlp_deploy.classes.prompts import text_rows
from vlp_deploy.classes.tokenizer import Tokenizer
from vlp_train.images import ImageSet
from vlp_train.methods.base import Inputs, Task, Training, check_templates
from vlp_train.methods.ivlp import Ivlp, IvlpConfig

SENTENCES = (
    "a photo of a {}.",
    "a picture of the {}.",
    "an image showing a {}.",
    "a close view of a {}.",
    "a {} seen from far away.",
    "a small {} in a large picture.",
    "a large {} that fills the picture.",
    "a photo of one single {}.",
    "a photo of several {}.",
    "part of a {}.",
    "a {} on its own.",
    "a {} among other things.",
    "a {} in front of a plain background.",
    "a dark photo of a {}.",
    "a bright photo of a {}.",
    "a blurred photo of a {}.",
    "a sharp photo of a {}.",
    "a grainy old photo of a {}.",
    "a black and white photo of a {}.",
    "a colourful picture of a {}.",
    "a snapshot of my {}.",
    "a photo of a typical {}.",
    "a photo of an unusual {}.",
    "a beautiful {}.",
    "a dirty {}.",
    "a drawing of a {}.",
    "a painting of a {}.",
    "a sketch of a {}.",
    "an icon of a {}.",
    "a cartoon of a {}.",
    "a rendering of a {}.",
    "a toy in the shape of a {}.",
)


@dataclass(frozen=True, kw_only=True)
class PromptSrcConfig(IvlpConfig):
    """IVLP's prompts, the weights of the three regularisers, and when the average is taken.

    `text_weight` and `image_weight` hold features to the zero-shot ones, `logit_weight` holds the
    answers. Epochs are averaged with the weights of a Gaussian around epoch `average_epoch` (1 is
    the first), `average_width` epochs wide; left out, they are 3/4 and 1/20 of the number of
    epochs, as in the official 15 and 1 of 20. A depth that is left out is 9, or all of a smaller
    tower's layers.
    """

    usual_depth: ClassVar[int] = 9

    text_tokens: int = 4
    visual_tokens: int = 4
    text_weight: float = 25.0
    image_weight: float = 10.0
    logit_weight: float = 1.0
    average_epoch: float | None = None
    average_width: float | None = None
    templates: tuple[str, ...] = SENTENCES

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("text_weight", "image_weight", "logit_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if self.average_width is not None and not self.average_width > 0:
            raise ValueError(f"average_width must be above 0, got {self.average_width}")
        check_templates(self.templates)

    def training(self, shots: int | None) -> Training:
        """The official protocol for base-to-new."""
        return Training(epochs=20, learning_rate=0.0025, batch_size=4)

    def epoch_weights(self, epochs: int) -> Tensor:
        """(N,), summing to 1: how much of each epoch's prompts is in the average."""
        mean = 0.75 * epochs if self.average_epoch is None else self.average_epoch
        width = 0.05 * epochs if self.average_width is None else self.average_width
        numbers = torch.arange(1, epochs + 1, dtype=torch.float64)
        return (-0.5 * ((numbers - mean) / width).square()).softmax(dim=0)  # never 0 everywhere


class PromptSrc(Ivlp):
    """Independent prompts, regularised by the frozen CLIP and by their own past."""

    text_average: Tensor  # of the epochs so far, (J_t, m_t, d_t)
    visual_average: Tensor  # (J_v, m_v, d_v)

    def __init__(self, config: PromptSrcConfig, task: Task) -> None:
        """Raises TrainingError if a tower is too shallow, or the text tower too short."""
        super().__init__(config, task)
        self.config, self.task = config, task
        self.register_buffer("text_average", torch.zeros_like(self.text))
        self.register_buffer("visual_average", torch.zeros_like(self.visual))
        self._epoch_weights = torch.zeros(0)

    def step(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Cross-entropy, and how far features and answers are from the frozen CLIP's."""
        images, classes = self.image_features(inputs.images), self.class_features()
        logits = self.logits(images, classes)
        with torch.no_grad():
            own_images = self.prompted.image_features(inputs.images, {})  # (B, D)
            own_logits = self.logits(own_images, self.zero_shot)  # (B, K)
        config = self.config
        loss = (
            F.cross_entropy(logits, inputs.labels)
            + config.text_weight * F.l1_loss(classes, self.zero_shot)
            + config.image_weight * F.l1_loss(images, own_images)
            + config.logit_weight * _divergence(logits, own_logits) / logits.numel()
        )
        return logits, loss

    @cached_property
    def zero_shot(self) -> Tensor:
        """The frozen CLIP's normalised class embeddings (K, D), computed when first needed."""
        return _mean_class_features(self.task, self.config.templates)

    def start(self, images: ImageSet, training: Training) -> None:
        """The average needs to know how many epochs there will be."""
        self._epoch_weights = self.config.epoch_weights(training.epochs)

    @torch.no_grad()
    def end_of_epoch(self, epoch: int) -> None:
        """Add the epoch's prompts to their average, which is saved with them."""
        weight = float(self._epoch_weights[epoch])
        self.text_average += weight * self.text
        self.visual_average += weight * self.visual

    @torch.no_grad()
    def finish(self, images: ImageSet) -> None:
        """The average becomes the result."""
        self.text.copy_(self.text_average)
        self.visual.copy_(self.visual_average)


def _divergence(logits: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher ‖ logits), summed over images and classes."""
    return F.kl_div(
        logits.log_softmax(dim=1), teacher.log_softmax(dim=1), reduction="sum", log_target=True
    )


@torch.no_grad()
def _mean_class_features(task: Task, templates: tuple[str, ...]) -> Tensor:
    """The mean of raw text features over all templates, then normalised, (K, D).

    CLIP's own recipe normalises before the mean, too; the official code of this method does not.
    """
    clip = task.clip
    device, length = clip.logit_scale.device, clip.config.text.context_length
    total = torch.zeros(len(task.class_names), clip.config.embed_dim, device=device)
    for template in templates:
        rows = text_rows(task.class_names, template, Tokenizer.default(), context_length=length)
        ids, eot = (torch.from_numpy(part).to(device) for part in (rows.ids, rows.eot))
        total += clip.encode_text_fast(ids, eot).float()
    return F.normalize(total, dim=-1)
