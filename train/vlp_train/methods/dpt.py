"""DPT: text and visual prompts, and class-aware visual prompts (CAVPT) in the last layers.

Source: DPT (arXiv:2208.08340), section 3; losses, starts and defaults are those of its official
code. For the first epochs the answers are learned against CLIP's own class embeddings and image
features ("general knowledge guidance"), so that neither prompt adapts to an untrained other one.

Legend: B images, K classes, c classes selected for an image, n class-aware layers, m prompt tokens,
r learned keys, D joint width, d_t and d_v the towers' widths.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlp_deploy.errors import TrainingError
from vlp_deploy.formats.architecture import TextLayout, VisualLayout
from vlp_deploy.formats.structures import ClassAware
from vlp_train.class_aware import CAVPT, ClassAwareClip
from vlp_train.images import ImageSet
from vlp_train.methods.base import (
    Inputs,
    Method,
    Task,
    Training,
    check_templates,
    random_prompts,
    word_prompts,
)
from vlp_train.methods.coop import check_context
from vlp_train.methods.deep import TEXT_STREAM, VISUAL_STREAM, check_tokens, check_words, sentence
from vlp_train.prompted import Prompts

LINEAR_STREAM, KEY_STREAM, CLASSIFIER_STREAM = 5, 6, 7  # of random numbers beside the seed
QUERY_WIDTH = 32
TEXT_RATE = 0.2  # of the others': 0.002 to 0.01
GUIDED_FUSION = 0.1  # weight of the answer of both prompts together while they are guided


@dataclass(frozen=True, kw_only=True)
class DptConfig:
    """How many tokens of each kind, which classes an image looks for, and how the loss is made up.

    The last `class_aware_layers` of the image tower have prompts made of the `selected`
    that are most likely by the un-prompted CLIP and `selector_template`; the layers before them
    have `visual_tokens` each. `learned_keys` are seen beside the image when prompts are made.
    `guidance_epochs` is 30 if left out, and at most half of all epochs. `alpha` weighs the loss
    that makes the prompt of the true class tell its class. `words` start the text context, one
    token each; `class_specific` learns a context for every class.
    """

    text_tokens: int = 16
    visual_tokens: int = 10
    class_aware_layers: int = 1
    selected: int = 10
    learned_keys: int = 10
    selector_template: str = "a photo of a {}."
    guidance_epochs: int | None = None
    alpha: float = 0.3
    words: str = ""
    class_specific: bool = False

    def __post_init__(self) -> None:
        check_tokens(
            text_tokens=self.text_tokens,
            visual_tokens=self.visual_tokens,
            class_aware_layers=self.class_aware_layers,
            selected=self.selected,
            learned_keys=self.learned_keys,
        )
        check_words(self.words, self.text_tokens)
        check_templates((self.selector_template,))
        if self.words and self.class_specific:
            raise ValueError("class_specific contexts start at random: leave words out")
        if self.guidance_epochs is not None and self.guidance_epochs < 0:
            raise ValueError(f"guidance_epochs must be 0 or more, got {self.guidance_epochs}")
        if not self.alpha >= 0:
            raise ValueError(f"alpha must be 0 or more, got {self.alpha}")

    def training(self, shots: int | None) -> Training:
        """The official protocol: 60 epochs for 1 shot, else 100, the first 10 as a warm-up."""
        epochs = 60 if shots == 1 else 100
        return Training(epochs=epochs, learning_rate=0.01, batch_size=32, warmup_epochs=10)

    def guided(self, epochs: int) -> int:
        """How many epochs are guided: 30 of the official 60 and 100, half of fewer."""
        return min(30, epochs // 2) if self.guidance_epochs is None else self.guidance_epochs


class Dpt(Method):
    """Learned tokens of both towers, and what makes an image's own tokens of its likely classes."""

    learns_text: ClassVar[bool] = True
    learns_image: ClassVar[bool] = True
    data_parallel: ClassVar[bool] = False  # `auxiliary_loss` is a mean over some images only
    prompted: ClassAwareClip

    def __init__(self, config: DptConfig, task: Task) -> None:
        """Raises TrainingError if a tower is too shallow, or the text tower too short."""
        towers = task.clip.config
        depth = _plain_layers(config, towers.vision.layers)
        check_context(config.text_tokens, towers.text.context_length)
        super().__init__(
            task,
            templates=(sentence(config.words, config.text_tokens),),
            text_layout=TextLayout(tokens=config.text_tokens),
            visual_layout=VisualLayout(tokens=config.visual_tokens if depth else 0, pre_ln=False),
            structure=ClassAware(
                selected=config.selected, selector_template=config.selector_template
            ),
        )
        self.config, self._guided = config, config.guided(0)
        self.text = _text_context(config, task)  # (1 or K, m, d_t)
        if depth:  # otherwise there is no such attribute
            self.visual = random_prompts(
                depth,
                config.visual_tokens,
                towers.vision.width,
                seed=(task.seed, VISUAL_STREAM),
                device=task.clip.logit_scale.device,
            )  # (J, m, d_v)
        self.cavpt = nn.ParameterDict(_generators(config, task))
        self.auxiliary = nn.ParameterDict(_classifiers(config, task))

    def prompts(self) -> Prompts:
        """All that images are answered with; the auxiliary classifiers are not among it."""
        text = "text.class_prompts" if self.config.class_specific else "text.prompts"
        cavpt = {CAVPT + name.replace("_", "."): value for name, value in self.cavpt.items()}
        visual = {"visual.prompts": self.visual} if hasattr(self, "visual") else {}
        return {text: self.text, **visual, **cavpt}

    def step(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Cross-entropies of up to three answers + α · that of the true class's own prompt."""
        labels, prompts = inputs.labels, self.prompts()
        classes = self.prompted.classes(prompts)
        selection = self.prompted.select(inputs.images, classes)
        seen = self.prompted.see(inputs.images, prompts, classes, selection.classes)
        logits = self.logits(seen.image_features, classes.embeddings)  # (B, K)
        loss = F.cross_entropy(logits, labels)
        if inputs.epoch < self._guided:
            by_text = self.logits(selection.image_features, classes.embeddings)
            by_image = self.logits(seen.image_features, classes.selector)
            alone = F.cross_entropy(by_text, labels) + F.cross_entropy(by_image, labels)
            loss = alone + GUIDED_FUSION * loss
        auxiliary = self.auxiliary_loss(seen.attended, selection.classes, labels)
        return logits, loss + self.config.alpha * auxiliary

    def auxiliary_loss(
        self, attended: Sequence[Tensor], selected: Tensor, labels: Tensor
    ) -> Tensor:
        """How well what the true class found in an image, n times (B, c, d_v), tells that class.

        A mean over the images whose class is among the selected (B, c); without any of them 0,
        where the official code's loss is no number.
        """
        own = selected == labels[:, None]  # (B, c)
        weight = own.any(dim=1).float()  # (B,)
        total = attended[0].new_zeros(())
        for layer, found in enumerate(attended):
            of_true = (found.float() * own[..., None]).sum(dim=1)  # (B, d_v)
            scale, shift = (self.auxiliary[f"norm_{part}"][layer] for part in ("weight", "bias"))
            normed = F.layer_norm(of_true, of_true.shape[-1:], scale, shift)
            scores = F.linear(normed, self.auxiliary["classifier_weight"][layer])  # (B, K)
            total = total + (weight * F.cross_entropy(scores, labels, reduction="none")).sum()
        return total / (weight.sum() * len(attended)).clamp(min=1)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The text context learns more slowly and warms up for one epoch only."""
        others = [p for name, p in self.named_parameters() if name != "text"]
        return [
            {"params": [self.text], "rate_factor": TEXT_RATE, "warmup_epochs": 1},
            {"params": others},
        ]

    def start(self, images: ImageSet, training: Training) -> None:
        """The number of epochs says how many of them are guided."""
        self._guided = self.config.guided(training.epochs)


def _plain_layers(config: DptConfig, layers: int) -> int:
    """How many layers lie before the class-aware ones."""
    if config.class_aware_layers > layers:
        raise TrainingError(
            f"class_aware_layers={config.class_aware_layers} are more than the image tower's "
            f"{layers} layers. Give 1 to {layers}"
        )
    return layers - config.class_aware_layers


def _text_context(config: DptConfig, task: Task) -> nn.Parameter:
    """(1, m, d_t), from words or at random; (K, m, d_t) if every class has its own."""
    if config.words:
        return nn.Parameter(word_prompts(config.words, config.text_tokens, task.clip)[None])
    return random_prompts(
        len(task.class_names) if config.class_specific else 1,
        config.text_tokens,
        task.clip.config.text.width,
        seed=(task.seed, TEXT_STREAM),
        device=task.clip.logit_scale.device,
    )


def _generators(config: DptConfig, task: Task) -> dict[str, nn.Parameter]:
    """What `vlp_train.class_aware.Generator` is made of, for n layers."""
    clip, layers = task.clip.config, config.class_aware_layers
    width, joint = clip.vision.width, clip.embed_dim
    device = task.clip.logit_scale.device
    draw = np.random.default_rng((task.seed, LINEAR_STREAM))
    shapes = {
        "meta_weight": (joint, (layers, width, joint)),
        "meta_bias": (joint, (layers, width)),
        "query_weight": (width, (layers, QUERY_WIDTH, width)),
        "key_weight": (width, (layers, QUERY_WIDTH, width)),
        "value_weight": (width, (layers, width, width)),
    }
    linear = {name: _linear(*shape, draw, device) for name, shape in shapes.items()}
    keys = random_prompts(
        layers, config.learned_keys, width, seed=(task.seed, KEY_STREAM), device=device
    )
    return {**linear, "context": keys, **_norms(layers, width, device)}


def _classifiers(config: DptConfig, task: Task) -> dict[str, nn.Parameter]:
    """U_i and its LayerNorm, for n layers."""
    width, layers = task.clip.config.vision.width, config.class_aware_layers
    device = task.clip.logit_scale.device
    draw = np.random.default_rng((task.seed, CLASSIFIER_STREAM))
    weight = _linear(width, (layers, len(task.class_names), width), draw, device)
    return {"classifier_weight": weight, **_norms(layers, width, device)}


def _linear(
    inputs: int, shape: tuple[int, ...], draw: np.random.Generator, device: torch.device
) -> nn.Parameter:
    """As torch starts a linear layer of so many inputs: U(-1/√d, 1/√d)."""
    values = draw.uniform(-(inputs**-0.5), inputs**-0.5, shape)
    return nn.Parameter(torch.tensor(values, dtype=torch.float32, device=device))


def _norms(layers: int, width: int, device: torch.device) -> dict[str, nn.Parameter]:
    return {
        "norm_weight": nn.Parameter(torch.ones(layers, width, device=device)),
        "norm_bias": nn.Parameter(torch.zeros(layers, width, device=device)),
    }
