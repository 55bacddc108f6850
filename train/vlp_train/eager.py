"""A bundle's classifier as its user would run it in PyTorch: eager, un-folded, class embeddings
cached.

B images, K classes, S image size.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlp_deploy.bundle import Bundle
from vlp_train.backbones import reload_backbone
from vlp_train.prompted import PromptedClip


class EagerClassifier:
    """Pixels to logits through the prompted CLIP."""

    def __init__(self, model: PromptedClip, prompts: Mapping[str, Tensor]) -> None:
        self.model, self.prompts = model, prompts
        with torch.inference_mode():
            self.class_features = model.class_features(prompts)  # (K, D)

    def logits(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 (B, 3, S, S) → float32 (B, K)."""
        with torch.inference_mode():
            features = self.model.image_features(torch.from_numpy(pixels), self.prompts)
            logits: NDArray[np.float32] = self.model.logits(features, self.class_features).numpy()
        return logits


def load_eager(
    bundle: Bundle, *, classes: Sequence[str], pretrained: str | None, threads: int
) -> EagerClassifier:
    """The un-folded model of a bundle, for `classes`, on `threads` processor threads.

    `pretrained` is a weights file or tag where the bundle's own cannot be found. Raises ModelError
    if those weights are not the bundle's.
    """
    torch.set_num_threads(threads)
    manifest = bundle.manifest
    model = PromptedClip(
        reload_backbone(manifest.backbone, pretrained),
        classes,
        templates=manifest.templates,
        preprocessing=manifest.preprocessing,
        text_layout=manifest.text_layout,
        visual_layout=manifest.visual_layout,
    )
    prompts = {name: torch.from_numpy(value) for name, value in bundle.prompts().items()}
    return EagerClassifier(model, prompts)
