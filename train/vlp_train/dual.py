"""DPC's forward pass: base classes through the mixture of two prompts, new ones through P alone.

Legend: B images, K classes, T templates, D joint width, S image size.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vlp_deploy.classes.dual import (
    NEW_LOGITS,
    backbone_prompts,
    base_rows,
    check_together,
    mixed_prompts,
    parallel_prompts,
)
from vlp_deploy.formats.architecture import Preprocessing, TextLayout, VisualLayout
from vlp_deploy.formats.structures import Dual, Structure
from vlp_train.clip import Clip
from vlp_train.prompted import PLAIN_IMAGE, PLAIN_TEXT, Classes, PromptedClip, Prompts

VARIANTS = ("parallel", "backbone")  # metrics beside the mixture's


class DualClip(PromptedClip):
    """One CLIP with two prompts, each class served by the mixture or by the first one.

    One prompt by its plain names is served as it is, without regard to base and new.
    """

    def __init__(
        self,
        clip: Clip,
        class_names: Sequence[str],
        *,
        templates: Sequence[str],
        preprocessing: Preprocessing,
        text_layout: TextLayout = PLAIN_TEXT,
        visual_layout: VisualLayout = PLAIN_IMAGE,
        structure: Structure,
        base_classes: Sequence[str] = (),
    ) -> None:
        """Raises ClassListError as its base does, and for classes that need both image towers."""
        super().__init__(
            clip,
            class_names,
            templates=templates,
            preprocessing=preprocessing,
            text_layout=text_layout,
            visual_layout=visual_layout,
            structure=structure,
            base_classes=base_classes,
        )
        names = [(name,) for name in class_names]
        check_together(structure, names, base_classes, visual=visual_layout.tokens > 0)
        self.rows = base_rows(names, base_classes)  # (K,)

    def text_features(self, prompts: Prompts, *, plain: bool = False) -> Tensor:
        """(T·K, D), each class with the prompt that serves it."""
        if not self.rows.any() or not _two(prompts):
            return super().text_features(self._served(prompts), plain=plain)
        mixture = super().text_features(self._mixture(prompts), plain=plain)
        if self.rows.all():
            return mixture
        backbone = super().text_features(backbone_prompts(prompts), plain=plain)
        rows = torch.from_numpy(np.tile(self.rows, len(self.templates))).to(self.device)
        return torch.where(rows[:, None], mixture, backbone)

    def image_features(self, pixels: Tensor, prompts: Prompts) -> Tensor:
        """(B, D) of uint8 (B, 3, S, S)."""
        return super().image_features(pixels, self._served(prompts))

    def predict(self, pixels: Tensor, prompts: Prompts, classes: Classes) -> Tensor:
        """(B, K), base classes offset where they compete with new ones."""
        logits = super().predict(pixels, prompts, classes)
        if not _two(prompts) or self.rows.all() or not self.rows.any():
            return logits
        rows = torch.from_numpy(self.rows).to(logits.device)
        return logits + self._dual.base_offset * rows

    def references(self, prompts: Prompts, pixels: Tensor) -> dict[str, Tensor]:
        """The mixture's answers, and P's on the same classes as `reference.new_logits`."""
        new = super().references(backbone_prompts(prompts), pixels)["reference.logits"]
        return {**super().references(prompts, pixels), NEW_LOGITS: new}

    def variants(self, prompts: Prompts) -> dict[str, Prompts]:
        """Each prompt alone, to be measured beside the mixture."""
        parts = (parallel_prompts(prompts), backbone_prompts(prompts))
        return dict(zip(VARIANTS, parts, strict=True))

    @property
    def _dual(self) -> Dual:
        assert isinstance(self.structure, Dual)
        return self.structure

    def _mixture(self, prompts: Prompts) -> Prompts:
        return mixed_prompts(prompts, self._dual.mixing_weight)

    def _served(self, prompts: Prompts) -> Prompts:
        """What serves all classes, in the image tower too."""
        if not _two(prompts):
            return prompts
        return self._mixture(prompts) if self.rows.all() else backbone_prompts(prompts)


def _two(prompts: Prompts) -> bool:
    return bool(backbone_prompts(prompts))
