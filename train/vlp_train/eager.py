"""A bundle's classifier as its user would run it in PyTorch: eager, un-folded, class embeddings
cached.

B images, K classes, S image size.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlp_deploy.architecture import Backbone
from vlp_deploy.bundle import Bundle
from vlp_deploy.errors import ModelError
from vlp_deploy.weights import fingerprint, load_weights
from vlp_train.backbones import build_clip, load_backbone
from vlp_train.clip import Clip
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
        restore_clip(manifest.backbone, pretrained),
        classes,
        templates=manifest.templates,
        preprocessing=manifest.preprocessing,
        text_layout=manifest.text_layout,
        visual_layout=manifest.visual_layout,
    )
    prompts = {name: torch.from_numpy(value) for name, value in bundle.prompts().items()}
    return EagerClassifier(model, prompts)


def restore_clip(backbone: Backbone, pretrained: str | None) -> Clip:
    """The CLIP that `backbone` names, its weights checked."""
    source = pretrained or backbone.pretrained
    if Path(source).is_file():
        weights = load_weights(Path(source), backbone.config)
        clip, found = build_clip(backbone.config, weights), fingerprint(weights)
    else:
        clip, record = load_backbone(backbone.name, source)
        found = record.sha256
    if found != backbone.sha256:
        raise ModelError(
            f"the weights {source} are not those of this bundle (fingerprint {found[:12]}…, "
            f"expected {backbone.sha256[:12]}…). Pass the backbone's weights with --pretrained"
        )
    return clip
