"""Turn a run's two towers into the files that are shipped: open_clip configuration and weights.

    python -m vlp_train.pretrain.release --run runs/vlp-tiny --icons ICONS \
        --output runs/candidate

An unfinished run is released, too, with the average of its last weights, which is better while the
rate is high, and with another run's text tower where it has none yet (`--text`). The logit
scale is fitted to held-out icons (`unseen`): on drawings that it knows the tower is surer than on
others, and few shots then teach doubt alone.

Legend: B images, K classes, D joint width.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from vlp_deploy.cli import guarded
from vlp_deploy.errors import TrainingError
from vlp_deploy.files import write_atomic
from vlp_deploy.formats.architecture import ClipConfig
from vlp_train.clip import Clip
from vlp_train.pretrain.evaluate import (
    TEMPLATES,
    Pictures,
    class_features,
    image_features,
    read_captions,
)
from vlp_train.pretrain.image_tower import ImageRecipe
from vlp_train.pretrain.text_tower import text_parameters
from vlp_train.pretrain.unseen import held_out_icons

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
    """Return the logit scale, at most 100, with the least cross entropy over all classes.

    Args:
        features: image features (B, D), any length.
        targets: class numbers (B,).
        embeddings: unit vectors (K, D).
    """
    cosines = F.normalize(features, dim=-1) @ embeddings.T  # (B, K)
    losses = [F.cross_entropy(float(scale) * cosines, targets).item() for scale in _SCALES]
    return float(_SCALES[losses.index(min(losses))])


@torch.no_grad()
def load_image_tower(clip: Clip, checkpoint: Path, kind: str) -> None:
    """Set the image tower to a training state's `parameter`s or to their `average`."""
    _load(dict(clip.visual.named_parameters()), checkpoint, kind)


def finished(checkpoint: Path) -> bool:
    """Tell whether an image tower's training state is the last of its training."""
    with safe_open(checkpoint, framework="pt") as file:
        metadata = file.metadata()
    return int(metadata["step"]) == ImageRecipe(**json.loads(metadata["recipe"])).steps


@torch.no_grad()
def load_text_tower(clip: Clip, checkpoint: Path, kind: str) -> None:
    """Set the text tower to a training state's `parameter`s or to their `average`."""
    _load(dict(text_parameters(clip)), checkpoint, kind)


def _load(parameters: dict[str, Tensor], checkpoint: Path, kind: str) -> None:
    with safe_open(checkpoint, framework="pt") as file:
        for name, parameter in parameters.items():
            parameter.copy_(file.get_tensor(f"{kind}.{name}"))


def scale_of(clip: Clip, pictures: Pictures) -> float:
    """Return the logit scale that fits `clip` to pictures with classes."""
    classes = class_features(clip, pictures.classes, TEMPLATES)
    return fit_scale(image_features(clip, pictures.pixels), pictures.labels, classes)


def write_release(clip: Clip, scale: float, folder: Path) -> None:
    """Write `vlp-tiny.json` and `weights.safetensors` (float16, open_clip's keys) into `folder`."""
    weights = {name: value.half().contiguous() for name, value in clip.state_dict().items()}
    weights["logit_scale"] = torch.tensor(math.log(scale)).half()
    configuration = json.dumps(CONFIGURATION, indent=2) + "\n"
    write_atomic(folder / "weights.safetensors", save(weights))
    write_atomic(folder / "vlp-tiny.json", configuration.encode())


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and write the release."""
    parser = argparse.ArgumentParser(
        prog="python -m vlp_train.pretrain.release", description="Release a run, finished or not."
    )
    parser.add_argument("--run", type=Path, required=True, help="output folder of the pre-training")
    parser.add_argument("--text", type=Path, help="another run's folder for the text tower")
    parser.add_argument("--icons", type=Path, required=True, help="unpacked npm @iconify/json")
    parser.add_argument(
        "--weights",
        choices=("parameter", "average"),
        help="the last ones or their average; default: what suits how far the run is",
    )
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    image, text = (
        _there(folder / f"{tower}.safetensors", tower)
        for folder, tower in ((options.run, "image"), (options.text or options.run, "text"))
    )
    clip = Clip(ClipConfig.from_open_clip(CONFIGURATION)).eval()
    weights = options.weights or ("parameter" if finished(image) else "average")
    load_image_tower(clip, image, weights)
    load_text_tower(clip, text, "parameter")
    scale = scale_of(clip, held_out_icons(options.icons, read_captions(options.run / "corpus")))
    write_release(clip, scale, options.output)
    sys.stdout.write(
        f"{weights} weights, logit scale {scale:.1f}, {options.output}/weights.safetensors\n"
    )


def _there(checkpoint: Path, tower: str) -> Path:
    if checkpoint.is_file():
        return checkpoint
    text = ", or give the folder of a run that has one with --text" if tower == "text" else ""
    raise TrainingError(
        f"{checkpoint} is missing: the run has no {tower} tower yet. Let it go on{text}"
    )


if __name__ == "__main__":
    sys.exit(guarded(main))
