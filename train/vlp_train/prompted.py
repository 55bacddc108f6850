"""A frozen CLIP with prompts in it: from class names and uint8 pixels to logits, nothing folded.

What a prompt checkpoint means is defined here, by its neutral tensors and layouts alone: training,
evaluation and the reference logits that exports are proven against all go through this module.
Structures that are more than plain tokens have subclasses (`vlp_train.forward` has the table).

Legend: B images, K classes, T templates, D joint width, S image size; J layers, m tokens and d
width of a tower's prompts.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vlp_deploy.classes.prompts import TextRows, text_rows
from vlp_deploy.classes.tokenizer import Tokenizer
from vlp_deploy.formats.architecture import Preprocessing, TextLayout, VisualLayout
from vlp_deploy.formats.structures import Plain, Structure
from vlp_train.chunks import encode_in_chunks, fitting_rows
from vlp_train.clip import Clip

PLAIN_TEXT, PLAIN_IMAGE, PLAIN = TextLayout(), VisualLayout(), Plain()

Prompts = Mapping[str, Tensor]  # by their names in a checkpoint, such as "text.prompts"
Classes = Any  # whatever a forward pass computes from the class names alone


class PromptedClip:
    """One CLIP, one list of classes, and where learned prompts stand. It owns no prompts."""

    def __init__(
        self,
        clip: Clip,
        class_names: Sequence[str],
        *,
        templates: Sequence[str],
        preprocessing: Preprocessing,
        text_layout: TextLayout = PLAIN_TEXT,
        visual_layout: VisualLayout = PLAIN_IMAGE,
        structure: Structure = PLAIN,
        base_classes: Sequence[str] = (),
    ) -> None:
        """Raises ClassListError for names or templates that cannot be tokenized."""
        self.clip = clip
        self.structure, self.base_classes = structure, tuple(base_classes)
        self.class_names, self.templates = tuple(class_names), tuple(templates)
        self.preprocessing = preprocessing
        self.text_layout, self.visual_layout = text_layout, visual_layout
        self.class_chunk: int | None = None  # text rows at once; 0 = all, None = what fits
        self.device = clip.logit_scale.device
        rows = (tensor.to(self.device) for tensor in self._rows())
        self._ids, self._eot, self._slots = rows  # (T·K, L), (T·K,), (T·K, L)
        mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
        self._mean, self._std = (c.view(3, 1, 1).to(self.device) for c in (mean, std))

    def _rows(self) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids (T·K, L), ends of text (T·K,) and slots (T·K, L)."""
        tokenizer, length = Tokenizer.default(), self.clip.config.text.context_length
        rows = [
            text_rows(
                self.class_names,
                template,
                tokenizer,
                layout=self.text_layout,
                context_length=length,
            )
            for template in self.templates
        ]
        return _stacked(rows, length)

    def to(self, device: str | torch.device) -> None:
        """Move the CLIP and everything beside it."""
        self.clip.to(device)
        self.device = self.clip.logit_scale.device
        self._ids, self._eot, self._slots, self._mean, self._std = (
            tensor.to(device)
            for tensor in (self._ids, self._eot, self._slots, self._mean, self._std)
        )

    def classes(self, prompts: Prompts, *, plain: bool = False) -> Classes:
        """All that depends on the class names and not on the image: here features (K, D)."""
        return self.class_features(prompts, plain=plain)

    def predict(self, pixels: Tensor, prompts: Prompts, classes: Classes) -> Tensor:
        """Logits (B, K) of uint8 pixels (B, 3, S, S); no row depends on another."""
        return self.logits(self.image_features(pixels, prompts), classes)

    def references(self, prompts: Prompts, pixels: Tensor) -> dict[str, Tensor]:
        """The answers that an export is proven by: `reference.logits` (8, K), plain throughout."""
        classes = self.classes(prompts, plain=True)
        return {"reference.logits": self.predict(pixels, prompts, classes)}

    def variants(self, prompts: Prompts) -> dict[str, Prompts]:
        """Other prompts, made of these, that are worth measuring beside them, by name."""
        return {}

    def class_features(self, prompts: Prompts, *, plain: bool = False) -> Tensor:
        """L2-normalised class embeddings (K, D), the mean direction of all templates."""
        features = F.normalize(self.text_features(prompts, plain=plain), dim=-1)
        if len(self.templates) == 1:
            return features
        mean = features.unflatten(0, (len(self.templates), -1)).mean(dim=0)  # (K, D)
        return F.normalize(mean, dim=-1)

    def text_features(self, prompts: Prompts, *, plain: bool = False) -> Tensor:
        """Features as the text tower gives them, (T·K, D), all classes of a template in a row.

        `plain` sends every token of all 77 positions through every layer, as the papers' code does;
        otherwise the same numbers are computed with less work.
        """
        learned = prompts.get("text.prompts")  # (J, m, d)
        if "text.class_prompts" in prompts:
            learned = prompts["text.class_prompts"][None]  # (1, K, m, d)
        encode = self.clip.encode_text if plain else self.clip.encode_text_fast
        rows = self._ids, self._eot, self._slots, learned
        count = self.class_chunk
        if count is None:
            count = fitting_rows(self.clip.config.text, *rows, plain=plain)
        return encode_in_chunks(encode, *rows, count=count).float()

    def image_features(self, pixels: Tensor, prompts: Prompts) -> Tensor:
        """L2-normalised image embeddings (B, D) of uint8 pixels (B, 3, S, S)."""
        features = self.clip.encode_image(
            self.normalised(pixels), prompts.get("visual.prompts"), self.visual_layout
        )
        return F.normalize(features.float(), dim=-1)

    def normalised(self, pixels: Tensor) -> Tensor:
        """uint8 (B, 3, S, S) → what the image tower reads, by mean and standard deviation."""
        return (pixels.to(self.device).float() / 255 - self._mean) / self._std

    def logits(self, image_features: Tensor, class_features: Tensor) -> Tensor:
        """Scaled cosine similarities (B, K) of normalised features, in float32 also in autocast."""
        with torch.autocast(self.device.type, enabled=False):
            return self.clip.logit_scale.exp() * image_features.float() @ class_features.float().T


def _stacked(rows: Sequence[TextRows], length: int) -> tuple[Tensor, Tensor, Tensor]:
    """All templates' rows below each other, padded to the tower's context length."""
    ids, slots = (
        torch.cat([_padded(torch.from_numpy(part), length, fill) for part in parts])
        for parts, fill in (([r.ids for r in rows], 0), ([r.slots for r in rows], -1))
    )
    eot = torch.cat([torch.from_numpy(r.eot) for r in rows])
    return ids, eot, slots


def _padded(rows: Tensor, length: int, fill: int) -> Tensor:
    return F.pad(rows, (0, length - rows.shape[1]), value=fill)
