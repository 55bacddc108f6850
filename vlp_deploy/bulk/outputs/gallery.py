"""From answers and their images to one HTML page of thumbnails by label, that needs nothing else.

An image of several labels stands under each of them; those of none come last. The page is bounded:
of each label the first PER_LABEL images are shown, and altogether as many as fit into MAX_BYTES;
what is left out is counted on the page. It appears when the run has ended.
"""

import base64
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from PIL import Image

from vlp_deploy.answers import Failure
from vlp_deploy.bulk.items import Input
from vlp_deploy.bulk.outputs.base import Companion
from vlp_deploy.bulk.reading import source_of
from vlp_deploy.bulk.results import NONE_OF_THESE, Row
from vlp_deploy.errors import DataError, ImageError
from vlp_deploy.files import atomic_file
from vlp_deploy.images.limits import Limits
from vlp_deploy.images.loading import load_image

PER_LABEL = 24
MAX_BYTES = 16 << 20  # of thumbnails, as JPEG
SIDE = 192  # pixels of a thumbnail's longer side
QUALITY = 75
MARK = '<meta name="generator" content="vlp classify --html">'

STYLE = """
:root { color-scheme: light dark; --paper: #fbfaf8; --ink: #1d1d1f; --faint: #6b6b70;
  --tile: #fff; --line: #dddad4; --bar: #2f6f4f; }
@media (prefers-color-scheme: dark) { :root { --paper: #151517; --ink: #ececee;
  --faint: #9a9aa2; --tile: #202024; --line: #36363c; --bar: #63b58b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 90rem; padding: 1rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.45 system-ui, sans-serif; }
h1 { font-size: 1.3rem; margin: 0; }
h2 { font-size: 1.05rem; margin: 0; padding: .6rem 0; position: sticky; top: 0;
  background: var(--paper); overflow-wrap: anywhere; }
p, h2 small { color: var(--faint); font-weight: normal; margin: .2rem 0; }
nav { display: flex; flex-wrap: wrap; gap: .4rem; margin: 1rem 0; max-height: 40vh;
  overflow: auto; }
nav a { border: 1px solid var(--line); border-radius: 1rem; padding: .15rem .7rem;
  background: var(--tile); color: inherit; text-decoration: none; overflow-wrap: anywhere; }
ul { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: .6rem;
  list-style: none; margin: 0 0 1.5rem; padding: 0; }
li { background: var(--tile); border: 1px solid var(--line); border-radius: .5rem;
  overflow: hidden; font-size: .8rem; }
img { display: block; width: 100%; height: auto; aspect-ratio: 1; object-fit: contain; }
meter { display: block; width: calc(100% - 1rem); margin: .4rem .5rem 0; height: .5rem;
  accent-color: var(--bar); }
li p { margin: .1rem .5rem .5rem; overflow-wrap: anywhere; }
li b { color: var(--ink); }
"""


@dataclass(frozen=True)
class _Tile:
    """A thumbnail as JPEG, and what is said of it."""

    name: str
    labels: tuple[str, ...]  # the probability is that of the first
    probability: float
    jpeg: bytes
    size: tuple[int, int]


@dataclass
class _Group:
    """Images of one label: how many there are, and those that are shown."""

    count: int = 0
    tiles: list[_Tile] = field(default_factory=list)


class Gallery(Companion):
    """Written to `path` at the end; `title` is its heading.

    Raises DataError if something is there that is no such page, unless `force`.
    """

    def __init__(self, path: Path, *, limits: Limits, title: str, force: bool) -> None:
        if not force and os.path.lexists(path) and not _is_gallery(path):
            raise DataError(f"{path} is there already. Name another --html, or use --force")
        self._path, self._limits, self._title = path, limits, title
        self._groups: dict[str | None, _Group] = {}  # None: of no class
        self._bytes = 0
        self._count = 0
        self._failed = 0

    def take(self, row: Row, image: Input) -> None:
        if row.failed:
            self._failed += 1
            return
        self._count += 1
        groups = [self._groups.setdefault(label, _Group()) for label in row.labels or (None,)]
        for group in groups:
            group.count += 1
        wanting = [group for group in groups if len(group.tiles) < PER_LABEL]
        if not wanting or self._bytes >= MAX_BYTES:
            return
        try:
            tile = _tile(row, image, self._limits)
        except ImageError:  # it was readable, and is gone: it counts among those left out
            return
        for group in wanting:
            group.tiles.append(tile)
            self._bytes += len(tile.jpeg)

    def finish(self) -> None:
        with atomic_file(self._path) as file:
            for part in self._page():
                file.write(part.encode("utf-8", "replace"))

    def _page(self) -> Iterator[str]:
        groups = sorted(self._groups.items(), key=_most_first)
        yield _head(self._title)
        yield f"<p>Images: {self._count:,}. Classes: {len(self._groups.keys() - {None}):,}."
        if none := self._groups.get(None):
            yield f" Of none of them: {none.count:,}."
        yield f" Inputs that failed: {self._failed:,}."
        if left_out := sum(group.count - len(group.tiles) for _, group in groups):
            yield f" Shown are the first {PER_LABEL} of each class, as far as there was room;"
            yield f" {left_out:,} are left out."
        yield "</p>\n<nav>"
        for number, (label, group) in enumerate(groups):
            name = _text(label or NONE_OF_THESE)
            yield f'<a href="#c{number}">{name} <small>{group.count:,}</small></a>\n'
        yield "</nav>\n"
        for number, (label, group) in enumerate(groups):
            yield from _section(number, label or NONE_OF_THESE, group)
        yield "</body>\n</html>\n"


def _most_first(item: tuple[str | None, _Group]) -> tuple[bool, int, str]:
    """The order of labels: by their images, none of them last."""
    label, group = item
    return label is None, -group.count, label or ""


def _is_gallery(path: Path) -> bool:
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return MARK.encode() in file.read(1000)


def _head(title: str) -> str:
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"{MARK}\n"
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{_text(title)}</h1>\n"
    )


def _section(number: int, label: str, group: _Group) -> Iterator[str]:
    left_out = group.count - len(group.tiles)
    also = f", {left_out:,} left out" if left_out else ""
    yield f'<section id="c{number}">\n<h2>{_text(label)} '
    yield f"<small>{group.count:,}{also}</small></h2>\n<ul>\n"
    for tile in sorted(group.tiles, key=lambda tile: -tile.probability):
        source = base64.b64encode(tile.jpeg).decode()
        name, (width, height) = _text(tile.name), tile.size
        labels = f"{_text(', '.join(tile.labels))}: " if len(tile.labels) > 1 else ""
        yield (
            f'<li><img loading="lazy" decoding="async" width="{width}" height="{height}"'
            f' alt="{_text(label)}" src="data:image/jpeg;base64,{source}">'
            f'<meter value="{tile.probability:.4f}" title="{tile.probability:.2%}"></meter>'
            f'<p title="{name}"><b>{tile.probability:.1%}</b> {labels}'
            f"{_text(_last_parts(tile.name))}</p></li>\n"
        )
    yield "</ul>\n</section>\n"


def _tile(row: Row, image: Input, limits: Limits) -> _Tile:
    if isinstance(image, Failure):
        raise ImageError(image.error)
    picture = load_image(source_of(image), limits=limits, draft_size=SIDE)
    picture.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY)
    return _Tile(row.name or "", row.labels, row.probability, file.getvalue(), picture.size)


def _last_parts(name: str) -> str:
    """A path's last part and the folder it is in; all of it stands in the tooltip."""
    return "/".join(name.split("/")[-2:])


def _text(text: str) -> str:
    """As HTML, what cannot be shown replaced."""
    text = os.fsencode(text).decode("utf-8", "replace")
    return escape("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text))
