"""DPT's forward pass: the prompts of the last layers are made of an image's likely classes.

Source: DPT with CAVPT (arXiv:2208.08340), sections 3.2 and 3.3, as its official code computes it.
There the class token is among the keys, the queries are un-normalised text features, and layers
with class-aware prompts have no others.

Legend: B images, K classes, c classes selected for an image, n class-aware layers, L image tokens
(class token and patches), r learned keys beside them, q width of their attention, d width of the
image tower, D joint width, S image size.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from vlp_deploy.formats.structures import ClassAware
from vlp_train.clip import append_tokens
from vlp_train.prompted import PromptedClip, Prompts

CAVPT = "cavpt."  # in front of the names of class-aware tensors


@dataclass(frozen=True, kw_only=True)
class ClassFeatures:
    """What the image side is told about the classes."""

    raw: Tensor  # (K, D) of the learned sentences, as the text tower gives them
    selector: Tensor  # (K, D) of the plain sentence, L2-normalised, without gradient

    @property
    def embeddings(self) -> Tensor:
        """(K, D), L2-normalised."""
        return F.normalize(self.raw, dim=-1)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which classes an image may show, by the un-prompted CLIP."""

    image_features: Tensor  # (B, D), L2-normalised
    logits: Tensor  # (B, K)
    classes: Tensor  # (B, c), best first


@dataclass(frozen=True, kw_only=True)
class Seen:
    """An image as the prompted tower sees it."""

    image_features: Tensor  # (B, D), L2-normalised
    attended: tuple[Tensor, ...]  # n times (B, c, d): what each selected class found in the image
    prompts: tuple[Tensor, ...]  # n times (B, c, d): the class-aware prompts made of it


class ClassAwareClip(PromptedClip):
    """CLIP with text prompts, visual ones in the first layers and class-aware ones in the last."""

    def to(self, device: str | torch.device) -> None:
        """As PromptedClip."""
        super().to(device)
        self._selector.to(device)
        self.__dict__.pop("_quick_zero_shot", None)  # lies on the device before

    def classes(self, prompts: Prompts, *, plain: bool = False) -> ClassFeatures:
        """Features of the classes in the learned sentence and in the selector's."""
        raw = self.text_features(prompts, plain=plain)
        return ClassFeatures(raw=raw, selector=self._zero_shot(plain=plain))

    def predict(self, pixels: Tensor, prompts: Prompts, classes: ClassFeatures) -> Tensor:
        """Logits (B, K) of uint8 pixels (B, 3, S, S)."""
        selection = self.select(pixels, classes)
        seen = self.see(pixels, prompts, classes, selection.classes)
        return self.logits(seen.image_features, classes.embeddings)

    def references(self, prompts: Prompts, pixels: Tensor) -> dict[str, Tensor]:
        """`reference.logits` (8, K), and `reference.selector_logits` (8, K) that classes chose."""
        classes = self.classes(prompts, plain=True)
        return {
            "reference.logits": self.predict(pixels, prompts, classes),
            "reference.selector_logits": self.select(pixels, classes).logits,
        }

    @torch.no_grad()
    def select(self, pixels: Tensor, classes: ClassFeatures) -> Selection:
        """The c = min(selected, K) most likely classes by the un-prompted tower."""
        assert isinstance(self.structure, ClassAware)
        features, logits = self._selector_logits(pixels, classes.selector)
        count = min(self.structure.selected, logits.shape[1])
        return Selection(
            image_features=features, logits=logits, classes=logits.topk(count, dim=1).indices
        )

    @torch.no_grad()
    def selection_gaps(self, pixels: Tensor) -> Tensor:
        """How far the last selected class lies before the first rejected one, in logits, (B,).

        Infinite if all classes are selected.
        """
        assert isinstance(self.structure, ClassAware)
        count = self.structure.selected
        if len(self.class_names) <= count:
            return torch.full((len(pixels),), torch.inf)
        best = self._selector_logits(pixels, self._zero_shot(plain=False))[1].topk(count + 1).values
        return best[:, -2] - best[:, -1]

    def see(
        self, pixels: Tensor, prompts: Prompts, classes: ClassFeatures, selected: Tensor
    ) -> Seen:
        """The prompted tower's view of uint8 pixels (B, 3, S, S), given classes (B, c)."""
        tower = self.clip.visual
        x = tower.ln_pre(tower.embed(self.normalised(pixels)))  # (B, L, d)
        generators = class_aware_layers(prompts)
        plain_layers = len(tower.transformer.blocks) - len(generators)
        attended, made = [], []
        # A product with one-hot rows: the gradient of an indexed read adds up in varying order.
        one_hot = F.one_hot(selected, len(classes.raw)).to(classes.raw.dtype)  # (B, c, K)
        queries = one_hot @ classes.raw  # (B, c, D)
        for index, block in enumerate(tower.transformer.blocks):
            if index < plain_layers:
                join = prompts["visual.prompts"][index]  # (m, d)
            else:
                found, join = generators[index - plain_layers](x, queries)  # (B, c, d) each
                attended.append(found)
                made.append(join)
            x = block(append_tokens(x, join), causal=False)[:, : x.shape[1]]
        features = F.normalize(tower.project(x).float(), dim=-1)
        return Seen(image_features=features, attended=tuple(attended), prompts=tuple(made))

    def _selector_logits(self, pixels: Tensor, zero_shot: Tensor) -> tuple[Tensor, Tensor]:
        """The un-prompted tower's embeddings (B, D) and logits (B, K)."""
        features = F.normalize(self.clip.encode_image(self.normalised(pixels)).float(), dim=-1)
        return features, self.logits(features, zero_shot)

    def _zero_shot(self, *, plain: bool) -> Tensor:
        """(K, D). Training does not change it, so the quick way is taken only once."""
        if not plain:
            return self._quick_zero_shot
        with torch.no_grad():
            return self._selector.class_features({}, plain=True)

    @cached_property
    def _quick_zero_shot(self) -> Tensor:
        with torch.no_grad():
            return self._selector.class_features({})

    @cached_property
    def _selector(self) -> PromptedClip:
        """The un-prompted CLIP and the sentence that classes are selected by."""
        assert isinstance(self.structure, ClassAware)
        return PromptedClip(
            self.clip,
            self.class_names,
            templates=(self.structure.selector_template,),
            preprocessing=self.preprocessing,
        )


@dataclass(frozen=True, kw_only=True)
class Generator:
    """Makes a layer's prompts: classes attend to the image, with one head."""

    meta_weight: Tensor  # (d, D)
    meta_bias: Tensor  # (d,)
    query_weight: Tensor  # (q, d)
    key_weight: Tensor  # (q, d)
    value_weight: Tensor  # (d, d)
    context: Tensor  # (r, d)
    norm_weight: Tensor  # (d,)
    norm_bias: Tensor  # (d,)

    def __call__(self, x: Tensor, class_features: Tensor) -> tuple[Tensor, Tensor]:
        """Image tokens (B, L, d) and raw class features (B, c, D) → what was found, and prompts.

        Both are (B, c, d). The image tokens get no gradient from here.
        """
        classes = F.linear(class_features, self.meta_weight, self.meta_bias)  # (B, c, d)
        context = self.context.expand(x.shape[0], -1, -1)
        tokens = torch.cat([x.detach(), context.to(x.dtype)], dim=1)  # (B, L + r, d)
        query, keys = F.linear(classes, self.query_weight), F.linear(tokens, self.key_weight)
        scores = query @ keys.transpose(1, 2) * self.key_weight.shape[0] ** -0.5  # (B, c, L + r)
        found = F.linear(scores.softmax(dim=-1) @ tokens, self.value_weight)  # (B, c, d)
        width = (self.norm_weight.shape[0],)
        return found, F.layer_norm(found + classes, width, self.norm_weight, self.norm_bias)


def class_aware_layers(prompts: Mapping[str, Tensor]) -> list[Generator]:
    """The n generators of a checkpoint's tensors, the first class-aware layer's first."""
    names = {field: f"{CAVPT}{field.replace('_', '.')}" for field in Generator.__dataclass_fields__}
    layers = len(prompts[f"{CAVPT}context"])
    return [
        Generator(**{field: prompts[name][layer] for field, name in names.items()})
        for layer in range(layers)
    ]
