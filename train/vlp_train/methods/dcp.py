"""DCP: text and visual prompts, coupled by cross-attention in every block of the image tower.

Source: "Deeply Coupled Cross-Modal Prompt Learning" (arXiv:2305.17903); the defaults, and what is
updated, are those of its released code. After training, the mean over the images of a batch is
replaced by one over the training images, which leaves constant prompts: that is what is evaluated
and served.

Legend: n prompts, J coupled blocks, d_t and d_v the towers' widths, s sets of coupling weights.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import msgspec
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlp_deploy.formats.architecture import TextLayout, VisualLayout
from vlp_deploy.formats.structures import Coupled
from vlp_train.coupled import TEXT_HALF, VISUAL_HALF, CoupledClip, Fusing
from vlp_train.images import ImageSet
from vlp_train.methods.base import Inputs, Method, Task, Training, random_prompts, word_prompts
from vlp_train.methods.coop import check_context
from vlp_train.methods.deep import (
    TEXT_STREAM,
    VISUAL_STREAM,
    check_tokens,
    check_words,
    prompted_layers,
    sentence,
)
from vlp_train.prompted import Prompts

USUAL_DEPTH = 9
HALF_STREAMS = {VISUAL_HALF: 3, TEXT_HALF: 4}  # of random numbers beside the seed
MLP_WIDTHS = 4
BATCH = 32  # images at once where a context is frozen


@dataclass(frozen=True, kw_only=True)
class DcpConfig:
    """How many prompts, how deep they are coupled, and what a training step takes them from.

    `depth` blocks are coupled, from the second on; left out, 9 or all but the first of the smaller
    tower. `words` start the text prompts, one token each; the official code takes words for at most
    4. `fusing` makes one state of a batch's. `shared` couples all blocks by the same weights.
    `training_context=per_sample` trains every image by itself, as it is served without a frozen
    context; the official code trains with the batch's. `text_update` is the paper's reading: images
    change text prompts, too; it takes a batch's context, and is served with a frozen one only.
    """

    tokens: int = 16
    depth: int | None = None
    words: str = ""
    fusing: Fusing = "mean"
    shared: bool = True
    training_context: Literal["batch", "per_sample"] = "batch"
    text_update: bool = False

    def __post_init__(self) -> None:
        check_tokens(tokens=self.tokens, depth=self.depth)
        check_words(self.words, self.tokens)
        if self.text_update and self.training_context == "per_sample":
            raise ValueError(
                "text_update makes class embeddings of images, so with training_context=per_sample "
                "every image would need a text tower of its own: use training_context=batch"
            )

    def training(self, shots: int | None) -> Training:
        """The official few-shot recipe."""
        return Training(epochs=20, learning_rate=0.0035, batch_size=4)


class Dcp(Method):
    """Prompts of both towers, and the cross-attention between them."""

    learns_text: ClassVar[bool] = True
    learns_image: ClassVar[bool] = True
    data_parallel: ClassVar[bool] = False  # images of a batch are seen together
    prompted: CoupledClip

    def __init__(self, config: DcpConfig, task: Task) -> None:
        """Raises TrainingError if a tower is too shallow, or the text tower too short."""
        towers = task.clip.config
        coupled = {"text": towers.text.layers - 1, "image": towers.vision.layers - 1}
        depth = prompted_layers(config.depth, usual=USUAL_DEPTH, towers=coupled)
        check_context(config.tokens, towers.text.context_length)
        super().__init__(
            task,
            templates=(sentence(config.words, config.tokens),),
            text_layout=TextLayout(tokens=config.tokens),
            visual_layout=VisualLayout(tokens=config.tokens, pre_ln=True, survive_last=True),
            structure=Coupled(depth=depth, context=config.training_context, fusing=config.fusing),
        )
        self.config = config
        self.text = _text_prompts(config, task)  # (1, n, d_t)
        self.visual = random_prompts(
            config.tokens,
            towers.vision.width,
            seed=(task.seed, VISUAL_STREAM),
            device=self.prompted.device,
        )  # (n, d_v)
        sets = 1 if config.shared else depth
        shapes = _shapes("text_to_visual", towers.vision.width, towers.text.width)
        self.visual_half = _half(shapes, sets, VISUAL_HALF, task)
        if config.text_update:
            shapes = _shapes("visual_to_text", towers.text.width, towers.vision.width)
            self.text_half = _half(shapes, sets, TEXT_HALF, task)
        self._frozen: Prompts = {}

    def prompts(self) -> Prompts:
        """Prompts and the visual half of the coupling; after training the frozen context as well.

        Where images update text prompts, nothing but the frozen context is left after training.
        """
        if self._frozen and self.config.text_update:
            return self._frozen
        halves = _tensors(VISUAL_HALF, self.visual_half)
        if self.config.text_update:
            halves |= _tensors(TEXT_HALF, self.text_half)
        return {
            "text.prompts": self.text,
            "cmpa.visual_prompts": self.visual,
            **halves,
            **self._frozen,
        }

    def step(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Logits (B, K) in the context of the batch, or of each image; their cross-entropy."""
        prompts = self.prompts()
        images, texts = self.prompted.live(inputs.images, prompts)
        classes = self.prompted.class_features({"text.prompts": texts})
        logits = self.logits(images, classes)
        return logits, F.cross_entropy(logits, inputs.labels)

    def finish(self, images: ImageSet) -> None:
        """Freeze the context of the training images, as they are when served."""

        def batches() -> Iterator[Tensor]:
            return (batch.pixels for batch in images.in_order(BATCH))

        self._frozen = {}
        self._frozen = self.prompted.freeze(self.prompts(), batches)
        self.prompted.structure = msgspec.structs.replace(self.prompted.coupled, context="frozen")


def _text_prompts(config: DcpConfig, task: Task) -> nn.Parameter:
    if config.words:
        return nn.Parameter(word_prompts(config.words, config.tokens, task.clip)[None])
    return random_prompts(
        1,
        config.tokens,
        task.clip.config.text.width,
        seed=(task.seed, TEXT_STREAM),
        device=task.clip.logit_scale.device,
    )


def _shapes(projection: str, width: int, other: int) -> dict[str, tuple[int, ...]]:
    """The tensors of the half that belongs to a tower of `width`, by name."""
    hidden = MLP_WIDTHS * width
    return {
        f"{projection}.weight": (width, other),
        f"{projection}.bias": (width,),
        "attention.in_proj_weight": (3 * width, width),
        "attention.in_proj_bias": (3 * width,),
        "attention.out_proj_weight": (width, width),
        "attention.out_proj_bias": (width,),
        "norm_1.weight": (width,),
        "norm_1.bias": (width,),
        "norm_2.weight": (width,),
        "norm_2.bias": (width,),
        "mlp.c_fc_weight": (hidden, width),
        "mlp.c_fc_bias": (hidden,),
        "mlp.c_proj_weight": (width, hidden),
        "mlp.c_proj_bias": (width,),
    }


def _half(shapes: dict[str, tuple[int, ...]], sets: int, half: str, task: Task) -> nn.ParameterDict:
    """`sets` of a half's tensors, started as torch starts the same layers."""
    random = np.random.default_rng((task.seed, HALF_STREAMS[half]))
    device = task.clip.logit_scale.device
    tensors = {}
    for name, shape in shapes.items():
        bound = _bound(name, shapes)
        values = random.uniform(-bound, bound, (sets, *shape)) + name.endswith(
            ("norm_1.weight", "norm_2.weight")
        )
        tensor = torch.tensor(values, dtype=torch.float32, device=device)
        tensors[_attribute(name)] = nn.Parameter(tensor)
    return nn.ParameterDict(tensors)


def _bound(name: str, shapes: dict[str, tuple[int, ...]]) -> float:
    """How far from 0 a tensor starts: Xavier for the packed projection, else 1/√(inputs)."""
    if name.startswith("norm") or (name.startswith("attention") and name.endswith("bias")):
        return 0.0
    if name == "attention.in_proj_weight":
        return float((6 / sum(shapes[name])) ** 0.5)
    inputs = shapes[name.removesuffix("bias") + "weight" if name.endswith("bias") else name][1]
    return float(inputs**-0.5)


def _tensors(half: str, parameters: nn.ParameterDict) -> dict[str, Tensor]:
    """A half by the names in a checkpoint."""
    return {f"{half}.{_name(attribute)}": tensor for attribute, tensor in parameters.items()}


def _attribute(name: str) -> str:
    return name.replace(".", "/")  # no dots in the names of parameters


def _name(attribute: str) -> str:
    return attribute.replace("/", ".")
