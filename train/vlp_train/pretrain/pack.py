"""Turn drawings into the packed corpus: two arrays of pixels and one JSON file of captions.

`ink.npy` (N, S, S) uint8 holds drawings without colours of their own: how much ink lies where.
`areas.npy` (N, 3, S, S) uint8 says what to colour apart (`areas`). `colour.npy` (M, S, S, 4) uint8
holds RGBA. `corpus.json` lists source, name and captions of the N + M drawings, ink first.
`licences.csv` lists the sources: title, author, address, licence, number of drawings.
"""

import csv
import io
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vlp_deploy.files import write_atomic
from vlp_train.pretrain.areas import all_areas
from vlp_train.pretrain.corpus import Drawing, IconSet
from vlp_train.pretrain.progress import bar
from vlp_train.pretrain.render import render_all

Pixels = npt.NDArray[np.uint8]

CLIP_ART_LICENCE = (
    "openclipart",
    "Open Clip Art Library 0.18",
    "its contributors",
    "https://openclipart.org/",
    "public domain",
    "https://creativecommons.org/licenses/publicdomain/",
)
_COLOURLESS = 12.0  # mean spread between channels, of 255, up to which a drawing counts as ink


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """The packed corpus in memory; drawing i is `ink[i]` if i < N, else `colour[i - N]`."""

    ink: Pixels  # (N, S, S)
    areas: Pixels  # (N, 3, S, S)
    colour: Pixels  # (M, S, S, 4)
    sources: list[str]
    names: list[str]
    captions: list[list[str]]

    def __len__(self) -> int:
        return len(self.captions)


def ink_of(rgba: Pixels) -> Pixels | None:
    """Return ink (S, S), dark and opaque = 255, or None if RGBA (S, S, 4) has colours."""
    alpha = rgba[..., 3].astype(np.float32) / 255.0
    rgb = rgba[..., :3].astype(np.float32)
    spread = (rgb.max(axis=-1) - rgb.min(axis=-1)) * alpha
    if spread.sum() > _COLOURLESS * alpha.sum():
        return None
    darkness = 1.0 - rgb.mean(axis=-1) / 255.0
    ink = alpha * darkness  # (S, S)
    if ink.mean() < 0.02:  # a white drawing: its silhouette is what can be seen
        ink = alpha
    return np.asarray(np.round(255.0 * ink), dtype=np.uint8)


def pack(drawings: list[Drawing], sets: list[IconSet], output: Path) -> None:
    """Render `drawings` and write the packed corpus into the folder `output`."""
    ink: list[Pixels] = []
    colour: list[Pixels] = []
    rows: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    rendered = bar(render_all(each.svg for each in drawings), len(drawings), "drawings")
    for drawing, rgba in zip(drawings, rendered, strict=True):
        if rgba is None:
            continue
        plain = ink_of(rgba)
        if plain is None:
            colour.append(rgba)
        else:
            ink.append(plain)
        row = {"source": drawing.source, "name": drawing.name, "captions": drawing.captions}
        rows[plain is None].append(row)
    inks = np.stack(ink)
    write_atomic(output / "ink.npy", _npy(inks))
    write_atomic(output / "areas.npy", _npy(all_areas(inks)))
    write_atomic(output / "colour.npy", _npy(np.stack(colour)))
    listed = rows[False] + rows[True]
    write_atomic(output / "licences.csv", _licences(sets, Counter(row["source"] for row in listed)))
    write_atomic(output / "corpus.json", json.dumps(listed, ensure_ascii=False).encode())


def load_corpus(folder: Path) -> Corpus:
    """Read a packed corpus.

    Raises:
        OSError: a file is missing or unreadable.
    """
    rows = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
    return Corpus(
        ink=np.load(folder / "ink.npy"),
        areas=np.load(folder / "areas.npy"),
        colour=np.load(folder / "colour.npy"),
        sources=[row["source"] for row in rows],
        names=[row["name"] for row in rows],
        captions=[row["captions"] for row in rows],
    )


def _npy(array: Pixels) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _licences(sets: list[IconSet], counts: Counter[str]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["source", "title", "author", "address", "licence", "licence url", "drawings"])
    for each in sets:
        named = [each.prefix, each.title, each.author, each.address]
        writer.writerow([*named, each.licence, each.licence_url, counts[each.prefix]])
    writer.writerow([*CLIP_ART_LICENCE, counts["openclipart"]])
    return text.getvalue().encode()
