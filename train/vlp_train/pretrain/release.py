"""Turn the two trained towers into the files that are shipped: open_clip configuration and weights.

Legend: B images, K captions, D joint width.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor

from vlp_deploy.files import write_atomic
from vlp_train.clip import Clip

CONFIGURATION: dict[str, Any] = {
    "embed_dim": 256,
    "vision_cfg": {"image_size": 64, "layers": 6, "width": 256, "patch_size": 16},
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 192,
        "heads": 3,
        "layers": 4,
    },
}
_SCALES = torch.linspace(5.0, 100.0, 191)


@torch.no_grad()
def fit_scale(features: Tensor, targets: Tensor, embeddings: Tensor) -> float:
    """Return the logit scale, at most 100, with the least cross entropy over all captions.

    Args:
        features: image features (B, D), any length.
        targets: caption numbers (B,).
        embeddings: unit vectors (K, D).
    """
    cosines = F.normalize(features, dim=-1) @ embeddings.T  # (B, K)
    losses = [F.cross_entropy(float(scale) * cosines, targets).item() for scale in _SCALES]
    return float(_SCALES[losses.index(min(losses))])


def write_release(clip: Clip, scale: float, folder: Path) -> None:
    """Write `vlp-tiny.json` and `weights.safetensors` (float16, open_clip's keys) into `folder`."""
    weights = {name: value.half().contiguous() for name, value in clip.state_dict().items()}
    weights["logit_scale"] = torch.tensor(math.log(scale)).half()
    configuration = json.dumps(CONFIGURATION, indent=2) + "\n"
    write_atomic(folder / "weights.safetensors", save(weights))
    write_atomic(folder / "vlp-tiny.json", configuration.encode())
