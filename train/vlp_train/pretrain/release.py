"""Turn a run's two towers into the files that are shipped: open_clip configuration and weights.

    python -m vlp_train.pretrain.release --run runs/vlp-tiny --icons ICONS \
        --output runs/candidate

Of an unfinished tower it takes the average of the last weights, which is better while the rate is
high, and another run's text tower where there is none yet (`--text`). The logit scale is fitted to
held-out icons (`unseen`): on drawings that it knows the tower is surer than on others, and few
shots then teach doubt alone.

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
from vlp_train.pretrain.recipe import Recipe
from vlp_train.pretrain.state import StoredState, read_state
from vlp_train.pretrain.text_tower import TextRecipe, text_parameters
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


def finished(state: StoredState, kind: type[Recipe]) -> bool:
    """Tell whether a state is the last one of a training by its recipe, of this kind."""
    return state.step == kind(**state.recipe).steps


@torch.no_grad()
def set_image_tower(clip: Clip, state: StoredState, weights: str) -> None:
    """Set the image tower to a training state's `parameter`s or to their `average`."""
    _set(dict(clip.visual.named_parameters()), state, weights)


@torch.no_grad()
def set_text_tower(clip: Clip, state: StoredState, weights: str) -> None:
    """Set the text tower to a training state's `parameter`s or to their `average`."""
    _set(dict(text_parameters(clip)), state, weights)


def _set(parameters: dict[str, Tensor], state: StoredState, weights: str) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(state.tensors[f"{weights}.{name}"])


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
        help="the last ones or their average; default: an average where a tower is unfinished",
    )
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    image = _read(options.run / "image.safetensors", "image")
    text = _read((options.text or options.run) / "text.safetensors", "text")
    if image.recipe.get("data") != text.recipe.get("data"):
        raise TrainingError(
            f"the text tower of {options.text} learned other targets than the image tower of "
            f"{options.run}: their joint spaces differ. Take one of the same corpus"
        )
    kinds = [
        options.weights or ("parameter" if finished(state, recipe) else "average")
        for state, recipe in ((image, ImageRecipe), (text, TextRecipe))
    ]
    clip = Clip(ClipConfig.from_open_clip(CONFIGURATION)).eval()
    set_image_tower(clip, image, kinds[0])
    set_text_tower(clip, text, kinds[1])
    scale = scale_of(clip, held_out_icons(options.icons, read_captions(options.run / "corpus")))
    write_release(clip, scale, options.output)
    sys.stdout.write(
        f"image tower: {kinds[0]}, text tower: {kinds[1]}, logit scale {scale:.1f}, "
        f"{options.output}/weights.safetensors\n"
    )


def _read(checkpoint: Path, tower: str) -> StoredState:
    if checkpoint.is_file():
        return read_state(checkpoint)
    text = ", or give the folder of a run that has one with --text" if tower == "text" else ""
    raise TrainingError(
        f"{checkpoint} is missing: the run has no {tower} tower yet. Let it go on{text}"
    )


if __name__ == "__main__":
    sys.exit(guarded(main))
