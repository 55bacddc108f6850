"""Print how well `vlp-tiny` recognises the embedded emoji without training: the zero-shot table.

    python -m vlp_train.pretrain.evaluate [--pretrained WEIGHTS] [--corpus runs/vlp-tiny/corpus]

With `--corpus`, classes whose name was a caption in pre-training are also reported apart from the
others. Rows are templates and their ensemble, columns the drawing styles; every cell is top-1 /
top-5 in percent over all classes. Legend: N images, C classes, D joint width.
"""

import argparse
import json
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vlp_deploy import embedded
from vlp_deploy.classes.tokenizer import Tokenizer
from vlp_deploy.cli import guarded
from vlp_deploy.formats.architecture import Preprocessing
from vlp_deploy.images.preprocess import preprocess
from vlp_train.backbones import load_backbone
from vlp_train.clip import Clip
from vlp_train.pretrain.batches import normalise
from vlp_train.pretrain.text_tower import tokenise

TEMPLATES = ("{}", "a photo of a {}.", "an icon of a {}.")
EMOJI = Path(embedded.__file__).parent / "emoji"


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Pictures of a folder of class folders; the file name is the style."""

    classes: list[str]
    pixels: Tensor  # (N, 3, S, S), normalised
    labels: Tensor  # (N,)
    styles: list[str]


def read_pictures(folder: Path, size: int) -> Pictures:
    """Read `folder`/CLASS_NAME/STYLE.png."""
    paths = sorted(folder.glob("*/*.png"))
    classes = sorted({path.parent.name for path in paths})
    preprocessing = Preprocessing(image_size=size)
    pixels = np.stack([preprocess(path, preprocessing) for path in paths])
    return Pictures(
        classes=[name.replace("_", " ") for name in classes],
        pixels=normalise(torch.from_numpy(pixels).float() / 255),
        labels=torch.tensor([classes.index(path.parent.name) for path in paths]),
        styles=[path.stem for path in paths],
    )


@torch.inference_mode()
def image_features(clip: Clip, pixels: Tensor) -> Tensor:
    """Return unit features (N, D) of normalised pixels (N, 3, S, S)."""
    return torch.cat([F.normalize(clip.encode_image(part), dim=-1) for part in pixels.split(256)])


@torch.inference_mode()
def class_features(clip: Clip, classes: list[str], templates: Sequence[str]) -> Tensor:
    """Return unit features (C, D): the mean over templates of unit text features."""
    tokenizer = Tokenizer.default()
    each = [
        F.normalize(
            clip.encode_text(*tokenise([name_in(template, name) for name in classes], tokenizer)),
            dim=-1,
        )
        for template in templates
    ]
    return F.normalize(torch.stack(each).mean(dim=0), dim=-1)


def name_in(template: str, name: str) -> str:
    """Put a class name into a template's braces."""
    return template.replace("{}", name)


def hits(images: Tensor, texts: Tensor, labels: Tensor) -> Tensor:
    """Return booleans (N, 2): is the class the best, is it among the best five."""
    best = (images @ texts.T).topk(5, dim=1).indices == labels[:, None]
    return torch.stack([best[:, 0], best.any(dim=1)], dim=1)


def table(clip: Clip, pictures: Pictures, templates: Sequence[str] = TEMPLATES) -> str:
    """Return the zero-shot table as Markdown."""
    images = image_features(clip, pictures.pixels)
    styles = sorted(set(pictures.styles))
    lines = [
        "| template | " + " | ".join([*styles, "all"]) + " |",
        "|---" * (len(styles) + 2) + "|",
    ]
    rows = [(f"`{template}`", [template]) for template in templates]
    for label, chosen in [*rows, ("ensemble", list(templates))]:
        found = hits(images, class_features(clip, pictures.classes, chosen), pictures.labels)
        cells = []
        for style in [*styles, None]:
            chosen_rows = torch.tensor([style in (None, own) for own in pictures.styles])
            top1, top5 = (100 * found[chosen_rows].float().mean(dim=0)).tolist()
            cells.append(f"{top1:.1f} / {top5:.1f}")
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    count = len(pictures.classes)
    lines.append(f"\n{len(pictures.labels)} images, {count} classes, chance {100 / count:.2f}")
    return "\n".join(lines)


def by_group(clip: Clip, pictures: Pictures, groups: Mapping[str, Collection[str]]) -> str:
    """Return accuracy (ensemble, over all classes) on each group of classes, one line a group."""
    images = image_features(clip, pictures.pixels)
    found = hits(images, class_features(clip, pictures.classes, TEMPLATES), pictures.labels)
    lines = []
    for label, members in groups.items():
        chosen = torch.tensor([name in members for name in pictures.classes])
        if chosen.any():
            top1, top5 = (100 * found[chosen[pictures.labels]].float().mean(dim=0)).tolist()
            lines.append(f"{int(chosen.sum())} classes, {label}: {top1:.1f} / {top5:.1f}")
    return "\n".join(lines)


def by_caption(pictures: Pictures, captions: set[str]) -> dict[str, set[str]]:
    """Group classes by whether their name was a caption in pre-training."""
    known = captions.intersection(pictures.classes)
    return {"captions in pre-training": known, "others": set(pictures.classes) - known}


def read_captions(corpus: Path) -> set[str]:
    """Return all captions of a packed corpus."""
    rows = json.loads((corpus / "corpus.json").read_text(encoding="utf-8"))
    return {caption for row in rows for caption in row["captions"]}


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m vlp_train.pretrain.evaluate", description="Print the zero-shot table."
    )
    parser.add_argument("--model", default=embedded.MODEL_NAME)
    parser.add_argument("--pretrained", default=None, help="weights other than the embedded ones")
    parser.add_argument("--data", type=Path, default=EMOJI, help="folder of class folders")
    parser.add_argument("--corpus", type=Path, default=None, help="packed pre-training corpus")
    options = parser.parse_args(arguments)
    clip, backbone = load_backbone(options.model, options.pretrained)
    pictures = read_pictures(options.data, backbone.config.vision.image_size)
    sys.stdout.write(table(clip.eval(), pictures) + "\n")
    if options.corpus is not None:
        groups = by_caption(pictures, read_captions(options.corpus))
        sys.stdout.write(by_group(clip, pictures, groups) + "\n")


if __name__ == "__main__":
    sys.exit(guarded(main))
