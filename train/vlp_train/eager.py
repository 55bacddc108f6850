"""A bundle's classifier as its user would run it in PyTorch: eager, un-folded, class embeddings
cached.

B images, K classes, S image size.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlp_deploy.formats.bundle import Bundle
from vlp_deploy.measuring.rivals import RivalOptions
from vlp_train.backbones import reload_backbone
from vlp_train.forward import prompted_clip
from vlp_train.prompted import PromptedClip


class EagerClassifier:
    """Pixels to logits through the un-folded model."""

    def __init__(self, model: PromptedClip, prompts: Mapping[str, Tensor]) -> None:
        self.model, self.prompts = model, prompts
        with torch.inference_mode():
            self.classes = model.classes(prompts)

    def logits(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 (B, 3, S, S) → float32 (B, K)."""
        with torch.inference_mode():
            answers: NDArray[np.float32] = self.predict(torch.from_numpy(pixels)).cpu().numpy()
        return answers

    def predict(self, pixels: Tensor) -> Tensor:
        """The same from tensor to tensor."""
        return self.model.predict(pixels, self.prompts, self.classes)


def load_eager(bundle: Bundle, options: RivalOptions) -> EagerClassifier:
    """The un-folded model of a bundle. Raises ModelError if the weights are not the bundle's."""
    torch.set_num_threads(options.threads)
    manifest = bundle.manifest
    clip = reload_backbone(manifest.backbone, options.pretrained)
    model = prompted_clip(manifest, clip, options.classes)
    model.to(options.device)
    prompts = {
        name: torch.from_numpy(value).to(options.device) for name, value in bundle.prompts().items()
    }
    return EagerClassifier(model, prompts)
