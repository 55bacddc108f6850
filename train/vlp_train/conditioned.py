"""CoCoOp's forward pass: every image shifts the prompts, so every image has class features.

Source: CoCoOp (arXiv:2203.05557), section 3.2. A small network, the meta-net, turns an image's
normalised feature into one vector that is added to all learned tokens; the text tower runs for
every image and class.

Legend: B images, K classes, m learned tokens, d width of the text tower, D joint width.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from vlp_train.chunks import encode_in_chunks, fitting_rows
from vlp_train.prompted import Classes, PromptedClip, Prompts

ClassesOf = Callable[[Tensor], Tensor]  # image features (B, D) → class features (B, K, D)


class ConditionedClip(PromptedClip):
    """A CLIP whose text prompts depend on the image."""

    def classes(self, prompts: Prompts, *, plain: bool = False) -> ClassesOf:
        """How class features follow from image features; names alone do not have any.

        `plain` takes one image after the other through all 77 positions, as the official code does.
        """
        return partial(self._one_by_one if plain else self._together, prompts)

    def predict(self, pixels: Tensor, prompts: Prompts, classes: Classes) -> Tensor:
        """Logits (B, K) of uint8 pixels (B, 3, S, S); no row depends on another."""
        images = self.image_features(pixels, prompts)
        return self.conditioned_logits(images, classes(images))

    def conditioned_logits(self, image_features: Tensor, class_features: Tensor) -> Tensor:
        """Scaled cosines (B, K) of (B, D) and each image's own (B, K, D), in float32."""
        with torch.autocast(self.device.type, enabled=False):
            cosines = class_features.float() @ image_features.float()[:, :, None]  # (B, K, 1)
            return self.clip.logit_scale.exp() * cosines.squeeze(2)

    def _together(self, prompts: Prompts, image_features: Tensor) -> Tensor:
        """All images at once, in chunks of classes: normalised class features (B, K, D)."""
        shifted = conditioned_prompts(prompts, image_features)  # (B, m, d)

        def encode(ids: Tensor, eot: Tensor, slots: Tensor | None, _: Tensor | None) -> Tensor:
            assert slots is not None  # those of `rows`
            features = self.clip.encode_text_each(ids, eot, slots, shifted)  # (B, n, D)
            return features.transpose(0, 1)

        rows = self._ids, self._eot, self._slots
        count = self.class_chunk
        if count is None:
            tower, sets = self.clip.config.text, len(shifted)
            count = fitting_rows(tower, *rows, None, plain=False, sets=sets)
        features = encode_in_chunks(encode, *rows, shifted, count=count)  # (K, B, D)
        return F.normalize(features.float(), dim=-1).transpose(0, 1)

    def _one_by_one(self, prompts: Prompts, image_features: Tensor) -> Tensor:
        """The same, image after image, every token of 77 positions through every layer."""
        shifted = conditioned_prompts(prompts, image_features)
        features = [
            self.clip.encode_text(self._ids, self._eot, self._slots, own[None]) for own in shifted
        ]
        return F.normalize(torch.stack(features).float(), dim=-1)


def conditioned_prompts(prompts: Prompts, image_features: Tensor) -> Tensor:
    """`ctx + π(x)`: the learned tokens (1, m, d) as images (B, D) shift them, (B, m, d)."""
    return prompts["text.prompts"] + meta_shift(prompts, image_features)[:, None]


def meta_shift(prompts: Prompts, image_features: Tensor) -> Tensor:
    """The meta-net's answer for normalised image features, (B, D) → (B, d)."""
    weight, bias = prompts["cocoop.linear1.weight"], prompts["cocoop.linear1.bias"]
    hidden = F.relu(F.linear(image_features, weight, bias))
    return F.linear(hidden, prompts["cocoop.linear2.weight"], prompts["cocoop.linear2.bias"])
