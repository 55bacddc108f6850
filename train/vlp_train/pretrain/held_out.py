"""Print how good a run is, finished or not, on drawings neither trained on nor tested.

    python -m vlp_train.pretrain.held_out --icons ICONS --run runs/vlp-tiny

Choices (augmentation, sampling, schedule) are made by this command, so that the table of `evaluate`
stays a test. Held out are the `icons` and `openmoji` of `unseen`.

For comparison, `trained` are the corpus's own colour drawings among the classes of `icons`: what is
remembered beside what is recognised.

Class embeddings are the teacher's, so the figures are the image tower's alone. The last column is
the mean reciprocal rank, less noisy than top-1.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from vlp_deploy.cli import guarded
from vlp_deploy.formats.architecture import ClipConfig
from vlp_train.clip import Clip
from vlp_train.pretrain.batches import normalise
from vlp_train.pretrain.evaluate import Pictures, image_features, read_captions
from vlp_train.pretrain.leaks import on_white
from vlp_train.pretrain.release import CONFIGURATION, set_image_tower
from vlp_train.pretrain.state import read_state
from vlp_train.pretrain.teacher import Projection, embed
from vlp_train.pretrain.unseen import held_out_emoji, held_out_icons


def trained_icons(corpus: Path, classes: Sequence[str]) -> Pictures:
    """Return the colour drawings of a packed corpus that are called like one of `classes`."""
    colour = np.load(corpus / "colour.npy")
    rows = json.loads((corpus / "corpus.json").read_text(encoding="utf-8"))[-len(colour) :]
    chosen = [
        (rgba, row) for rgba, row in zip(colour, rows, strict=True) if row["captions"][0] in classes
    ]
    images = [np.asarray(on_white(rgba)).transpose(2, 0, 1) for rgba, _ in chosen]
    return Pictures(
        classes=list(classes),
        pixels=normalise(torch.from_numpy(np.stack(images)).float() / 255),
        labels=torch.tensor([classes.index(row["captions"][0]) for _, row in chosen]),
        styles=[row["source"] for _, row in chosen],
    )


def figures(images: Tensor, texts: Tensor, labels: Tensor) -> tuple[float, float, float]:
    """Return top-1, top-5 and mean reciprocal rank, in percent."""
    cosines = images @ texts.T  # (N, C)
    own = cosines.gather(1, labels[:, None])
    rank = (cosines > own).sum(dim=1) + 1
    measures = ((rank == 1).float(), (rank <= 5).float(), 1 / rank)
    top1, top5, reciprocal = (100 * each.mean().item() for each in measures)
    return top1, top5, reciprocal


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and print one line for every held-out set."""
    parser = argparse.ArgumentParser(
        prog="python -m vlp_train.pretrain.held_out", description="Print held-out accuracy."
    )
    parser.add_argument("--icons", type=Path, required=True, help="unpacked npm @iconify/json")
    parser.add_argument("--run", type=Path, required=True, help="output folder of the pre-training")
    options = parser.parse_args(arguments)
    stored = load_file(options.run / "targets.safetensors")
    projection = Projection(mean=stored["mean"], axes=stored["axes"])
    icons = held_out_icons(options.icons, read_captions(options.run / "corpus"))
    sets = {
        "trained": trained_icons(options.run / "corpus", icons.classes),
        "icons": icons,
        "openmoji": held_out_emoji(options.icons),
    }
    clip = Clip(ClipConfig.from_open_clip(CONFIGURATION)).eval()
    state = read_state(options.run / "image.safetensors")
    for name, pictures in sets.items():
        classes = F.normalize(projection(embed(pictures.classes)), dim=-1)
        for kind in ("parameter", "average"):
            set_image_tower(clip, state, kind)
            images = image_features(clip, pictures.pixels)
            top1, top5, reciprocal = figures(images, classes, pictures.labels)
            sys.stdout.write(
                f"{name}, {kind}: {len(pictures.labels)} images, {len(classes)} classes,"
                f" top-1 {top1:.1f}, top-5 {top5:.1f}, mean reciprocal rank {reciprocal:.1f}\n"
            )


if __name__ == "__main__":
    sys.exit(guarded(main))
