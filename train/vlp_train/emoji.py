"""Icon sets with emoji become a data set: class = what is drawn, sample = one vendor's drawing.

    npm pack @iconify/json@2.2.535 && tar xf iconify-json-*.tgz     # unpacks to package/
    python -m vlp_train.emoji --icons package/json --output vlp_deploy/embedded/emoji

The classes are curated in `emoji_classes.tsv`: a plain name, the icon that most sets use for it
and, where it differs, Mozilla's icon. Names are compared without punctuation: fxemoji's have none.
A class must exist in `MINIMUM_STYLES` styles, and training styles never share a vendor with test
styles. Equal icons and equal versions of resvg-py and Pillow give equal bytes.
"""

import argparse
import csv
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import resvg_py
from PIL import Image

from vlp_deploy.errors import DataError
from vlp_deploy.files import staged_folder

SIZE = 64
MINIMUM_STYLES = 6
CLASSES_FILE = Path(__file__).with_name("emoji_classes.tsv")

Split = dict[str, list[tuple[str, int, str]]]  # split name -> (path, label, class name)


@dataclass(frozen=True, kw_only=True)
class Style:
    """One icon set: who drew it, under which licence, and on which side of the split it is."""

    prefix: str
    vendor: str
    copyright: str
    declared_licence: (
        str  # what the icon package says; a change there must be looked at, so it stops the build
    )
    drawings_licence: str  # what the vendor's own repository says of the drawings
    split: str


STYLES = (
    Style(
        prefix="noto",
        vendor="Google",
        copyright="Copyright Google Inc.",
        declared_licence="Apache-2.0",
        drawings_licence="Apache-2.0",
        split="train",
    ),
    Style(
        prefix="noto-v1",
        vendor="Google",
        copyright="Copyright Google Inc.",
        declared_licence="Apache-2.0",
        drawings_licence="Apache-2.0",
        split="train",
    ),
    Style(
        prefix="twemoji",
        vendor="Twitter",
        copyright="Copyright Twitter, Inc. and other contributors",
        declared_licence="CC-BY-4.0",
        drawings_licence="CC-BY-4.0",
        split="train",
    ),
    Style(
        prefix="emojione",
        vendor="EmojiOne",
        copyright="Copyright Ranks.com Inc. (EmojiOne 2) and the EmojiTwo contributors",
        declared_licence="CC-BY-4.0",
        drawings_licence="CC-BY-4.0",
        split="train",
    ),
    Style(
        prefix="fluent-emoji",
        vendor="Microsoft",
        copyright="Copyright (c) Microsoft Corporation.",
        declared_licence="MIT",
        drawings_licence="MIT",
        split="test",
    ),
    Style(
        prefix="fluent-emoji-flat",
        vendor="Microsoft",
        copyright="Copyright (c) Microsoft Corporation.",
        declared_licence="MIT",
        drawings_licence="MIT",
        split="test",
    ),
    Style(
        prefix="fxemoji",
        vendor="Mozilla",
        copyright="Copyright 2015, Mozilla Foundation",
        declared_licence="Apache-2.0",
        drawings_licence="CC-BY-4.0",  # its LICENSE.md: Apache-2.0 is for the code only
        split="test",
    ),
)

LICENCE_ADDRESSES = {
    "Apache-2.0": "https://www.apache.org/licenses/LICENSE-2.0",
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/legalcode",
    "MIT": "the text at the end of this file",
}

MIT_TEXT = """\
Permission is hereby granted, free of charge, to any person obtaining a copy of this software
and associated documentation files (the "Software"), to deal in the Software without
restriction, including without limitation the rights to use, copy, modify, merge, publish,
distribute, sublicense, and/or sell copies of the Software, and to permit persons to whom the
Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or
substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING
BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND
NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM,
DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


@dataclass(frozen=True, kw_only=True)
class EmojiClass:
    """A class: its name, the icon most sets use for it, and Mozilla's icon.

    `fxemoji` is "" where Mozilla uses the same name, "-" where its drawing shows something else.
    """

    name: str
    icon: str
    fxemoji: str

    def icon_in(self, style: Style) -> str | None:
        if style.prefix != "fxemoji" or not self.fxemoji:
            return self.icon
        return None if self.fxemoji == "-" else self.fxemoji

    @property
    def folder(self) -> str:
        return self.name.replace(" ", "_")


class IconSet:
    """One set of the package, `<prefix>.json`: icons by normalised name, as SVG documents."""

    def __init__(self, path: Path) -> None:
        try:
            self._set = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise DataError(
                f"No icon set {path}. --icons must be the folder json/ of the npm package"
                " @iconify/json: npm pack @iconify/json, then unpack it."
            ) from None
        self.info = self._set["info"]
        self.modified = datetime.fromtimestamp(self._set["lastModified"], UTC).date()
        self._names = {normalised(name): name for name in self._set["icons"]}
        for name, alias in self._set.get("aliases", {}).items():
            if alias.keys() == {"parent"}:  # the others are flipped or rotated
                self._names.setdefault(normalised(name), alias["parent"])

    @property
    def names(self) -> Mapping[str, str]:
        """Normalised name or alias -> the icon's name as the set writes it."""
        return self._names

    def svg(self, name: str) -> str | None:
        """The icon of that name, spelled in any way, centred in a square; None where absent."""
        key = self._names.get(normalised(name))
        if key is None or key not in self._set["icons"]:
            return None
        icon = self._set["icons"][key]
        left, top, width, height = (
            icon.get(edge, self._set.get(edge, default))
            for edge, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
        )
        side = max(width, height)
        box = (left - (side - width) / 2, top - (side - height) / 2, side, side)
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
            f' viewBox="{" ".join(map(str, box))}">{icon["body"]}</svg>'
        )


def normalised(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def read_classes(path: Path = CLASSES_FILE) -> tuple[EmojiClass, ...]:
    """The curated classes, sorted by name.

    Raises:
        DataError: a name twice, or one that is not lower-case words.
    """
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", restval=""))
    names = [row["class"] for row in rows]
    for name in names:
        if not re.fullmatch(r"[a-z]+([ -][a-z]+)*", name):
            raise DataError(
                f"{path}: class name {name!r} is not lower-case words with blanks between them."
            )
        if names.count(name) > 1:
            raise DataError(f"{path}: class {name!r} is listed twice. Keep one line.")
    classes = (
        EmojiClass(name=row["class"], icon=row["icon"], fxemoji=row["fxemoji"]) for row in rows
    )
    return tuple(sorted(classes, key=lambda emoji: emoji.name))


def render(svg: str) -> bytes:
    """An SVG document as an RGB PNG of SIZE x SIZE pixels on white."""
    drawn = resvg_py.svg_to_bytes(
        svg_string=svg, width=SIZE, height=SIZE, background="#ffffff", skip_system_fonts=True
    )
    png = io.BytesIO()
    Image.open(io.BytesIO(drawn)).convert("RGB").save(png, "PNG", optimize=True)
    return png.getvalue()


def draw_class(emoji: EmojiClass, sets: Mapping[str, IconSet]) -> dict[str, bytes]:
    """One class in all its styles: prefix -> PNG.

    Raises:
        DataError: fewer than MINIMUM_STYLES styles, or Mozilla lacks the icon named for it.
    """
    drawings: dict[str, bytes] = {}
    for style in STYLES:
        icon = emoji.icon_in(style)
        svg = sets[style.prefix].svg(icon) if icon else None
        if svg:
            drawings[style.prefix] = render(svg)
        elif icon and icon != emoji.icon:
            raise DataError(
                f"Class {emoji.name!r}: {style.prefix} has no icon {icon!r}."
                f" Name another in {CLASSES_FILE.name}."
            )
    if len(drawings) < MINIMUM_STYLES:
        raise DataError(
            f"Class {emoji.name!r} exists in {len(drawings)} styles only: {', '.join(drawings)}."
            f" Expected at least {MINIMUM_STYLES}."
            f" Remove it from {CLASSES_FILE.name} or name other icons."
        )
    return drawings


def zhou_split(classes: Sequence[EmojiClass], styles_of: Mapping[str, Iterable[str]]) -> Split:
    """CoOp's split format: {"train" | "val" | "test": [[path, label, class name], ...]}.

    Labels count from 0. `val` stays empty: a validation style would have to be taken from the four
    training styles or would show a test vendor's hand.
    """
    split: Split = {"train": [], "val": [], "test": []}
    for label, emoji in enumerate(classes):
        drawn = set(styles_of[emoji.name])
        for style in STYLES:
            if style.prefix in drawn:
                path = f"{emoji.folder}/{style.prefix}.png"
                split[style.split].append((path, label, emoji.name))
    return split


def split_as_json(split: Split) -> str:
    """One sample a line, so that a changed class is a changed line."""
    parts = []
    for name, samples in split.items():
        lines = ",\n".join(json.dumps(sample) for sample in samples)
        parts.append(f'"{name}": [\n{lines}\n]' if lines else f'"{name}": []')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def notice(sets: Mapping[str, IconSet]) -> str:
    """Who drew what, under which licence, and what was changed: what all three licences ask for."""
    parts = [
        "The images in this folder were drawn by the vendors below and are redistributed under\n"
        "their licences. Changed: each drawing was rendered from SVG to"
        f" {SIZE} x {SIZE} pixels on a\nwhite background and renamed. No vendor endorses this"
        " project. Taken from the npm package\n@iconify/json.\n"
    ]
    for style in STYLES:
        icons = sets[style.prefix]
        licence = style.drawings_licence
        parts.append(
            f"{style.prefix}.png: {icons.info['name']}, {style.vendor}\n"
            f"  {style.copyright}\n"
            f"  Source:  {icons.info['author']['url']} (icon set of {icons.modified})\n"
            f"  Licence: {licence}, {LICENCE_ADDRESSES[licence]}\n"
        )
    return "\n".join([*parts, f"MIT licence\n\n{MIT_TEXT}"])


def readme(drawings: Mapping[str, Mapping[str, bytes]]) -> str:
    """How the folder was made, what is in it, and its figures."""
    rows = []
    for style in STYLES:
        images = [drawn[style.prefix] for drawn in drawings.values() if style.prefix in drawn]
        size = f"{sum(map(len, images)):,}"
        about = f"{style.prefix} | {style.vendor} | {style.drawings_licence} | {style.split}"
        rows.append(f"| {about} | {len(images)} | {size} |")
    images = [png for drawn in drawings.values() for png in drawn.values()]
    base = math.ceil(len(drawings) / 2)
    return f"""\
# Emoji in seven styles

{len(drawings)} classes, {len(images):,} images, {sum(map(len, images)):,} bytes: a class is what
is drawn, a sample is one vendor's drawing of it, {SIZE} x {SIZE} RGB on white. Each class exists in
at least {MINIMUM_STYLES} of the {len(STYLES)} styles.

Everything here is written by

```
npm pack @iconify/json@2.2.535 && tar xf iconify-json-*.tgz     # unpacks to package/
python -m vlp_train.emoji --icons package/json --output vlp_deploy/embedded/emoji
```

from `train/vlp_train/emoji_classes.tsv`, the curated list of classes. Do not edit by hand.

| style | vendor | licence | split | images | bytes |
|---|---|---|---|---|---|
{chr(10).join(rows)}

Splits, in CoOp's format; test vendors drew nothing that is trained on:

- `split_zhou_styles.json`: all classes.
- `split_zhou_base.json`: the first {base} classes by name.
- `split_zhou_new.json`: the other {len(drawings) - base}, labels again from 0.

`val` is empty: a validation style would be missing in training or show a test vendor's hand.
Licences, authors and sources: `NOTICE`.
"""


def read_sets(icons: Path) -> dict[str, IconSet]:
    """All icon sets of STYLES, from the folder with `<prefix>.json`.

    Raises:
        DataError: a set is missing or its licence is not the one that was looked at.
    """
    sets = {style.prefix: IconSet(icons / f"{style.prefix}.json") for style in STYLES}
    for style in STYLES:
        found = sets[style.prefix].info["license"]["spdx"]
        if found != style.declared_licence:
            raise DataError(
                f"{icons / style.prefix}.json declares licence {found},"
                f" expected {style.declared_licence}."
                " Check the vendor's terms, then correct STYLES in vlp_train/emoji.py."
            )
    return sets


def build(icons: Path, output: Path, *, classes: Sequence[EmojiClass]) -> None:
    """Write the whole data set to `output`, replacing an earlier build of it.

    Raises:
        DataError: as read_sets and draw_class; or `output` is no earlier build.
    """
    if output.exists() and not (output / "split_zhou_styles.json").exists():
        raise DataError(
            f"{output} exists and is no earlier build of this data set."
            " Name another --output or remove it."
        )
    sets = read_sets(icons)
    drawings = {emoji.name: draw_class(emoji, sets) for emoji in classes}
    base = math.ceil(len(classes) / 2)  # as CoOp's subsample_classes
    texts = {
        "split_zhou_styles.json": split_as_json(zhou_split(classes, drawings)),
        "split_zhou_base.json": split_as_json(zhou_split(classes[:base], drawings)),
        "split_zhou_new.json": split_as_json(zhou_split(classes[base:], drawings)),
        "NOTICE": notice(sets),
        "README.md": readme(drawings),
    }
    with staged_folder(output, replace=True) as staging:
        for emoji in classes:
            (staging / emoji.folder).mkdir()
            for prefix, png in drawings[emoji.name].items():
                (staging / emoji.folder / f"{prefix}.png").write_bytes(png)
        for name, text in texts.items():
            (staging / name).write_text(text, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(
        prog="python -m vlp_train.emoji", description="Build the emoji data set."
    )
    parser.add_argument(
        "--icons", type=Path, required=True, help="folder json/ of the npm package @iconify/json"
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="folder to write; an earlier build is replaced"
    )
    options = parser.parse_args(arguments)
    try:
        build(options.icons, options.output, classes=read_classes())
    except DataError as error:
        parser.exit(error.exit_code, f"{error}\n")


if __name__ == "__main__":
    main()
