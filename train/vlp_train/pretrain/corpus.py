"""Choose what the embedded CLIP learns from: icon sets and clip art by licence, name and caption.

Input are the npm package `@iconify/json` (`collections.json`, `json/<set>.json`) and the Debian
package `openclipart-svg` (public domain). Output is a list of `Drawing`s: where the SVG is, what
it shows, and whether its colours mean anything.
"""

import gzip
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlp_train.pretrain.captions import caption_of, words_of
from vlp_train.pretrain.wordnet import NounLexicon, singular_forms

# CC-BY asks to name title, author, address and licence of what was used: `pack` lists them.
LICENCES = frozenset({"MIT", "Apache-2.0", "ISC", "CC0-1.0", "Unlicense", "CC-BY-3.0", "CC-BY-4.0"})
# Where the package names the collection instead of those who drew.
AUTHORS = {"game-icons": "Lorc, Delapouite and the contributors that the licence names"}
EXCLUDED_CATEGORIES = frozenset({"Emoji", "Logos", "Programming"})
# Emoji vendors whose sets may lack the category; sets that redraw emoji; flags; currency tokens;
# archived logos.
EXCLUDED_SETS = frozenset(
    {
        "noto",
        "noto-v1",
        "twemoji",
        "fxemoji",
        "openmoji",
        "emojione",
        "emojione-v1",
        "emojione-monotone",
        "fluent-emoji",
        "fluent-emoji-flat",
        "fluent-emoji-high-contrast",
        "streamline-emojis",
        "dinkie-icons",
        "flag",
        "flagpack",
        "circle-flags",
        "cif",
        "geo",
        "cryptocurrency",
        "cryptocurrency-color",
        "token",
        "token-branded",
        "bitcoin-icons",
        "payment",
        "fa-brands",
        "fa6-brands",
    }
)
# Styles of one designer that choices are made by (`held_out`), in colour and in ink.
HELD_OUT_SETS = frozenset(
    {
        "streamline-cyber",
        "streamline-cyber-color",
        "streamline-freehand",
        "streamline-freehand-color",
        "streamline-kameleon-color",
        "streamline-stickies-color",
        "streamline-ultimate",
        "streamline-ultimate-color",
    }
)
# Sets in two to five colours of their maker's, which say nothing of what is drawn.
HOUSE_COLOUR_SETS = frozenset(
    {
        "icon-park",
        "marketeq",
        "streamline-color",
        "streamline-flex-color",
        "streamline-plump-color",
        "streamline-sharp-color",
    }
)
# Icons that draw themselves: nothing is there at first.
ANIMATED_SETS = frozenset({"line-md", "svg-spinners"})
# Drawings that `leaks` finds to look like an emoji, and yellow faces of a set that has such.
EXCLUDED_DRAWINGS = {
    "glyphs-poly": re.compile(
        r"bell|star|tablet|hand-middle|heart-sparkles|rolling-eyes"
        r"|(?:angry|dizzy|grin|kiss|laugh|meh|sad|smile|tired|wink)\b.*"
    ),
    "meteocons": re.compile(r"overcast-fog"),
    "streamline-color": re.compile(r"diamonds-symbol-flat|heart-flat|hearts-symbol-flat"),
    "streamline-flex-color": re.compile(r"bag-flat|heart-flat"),
    "streamline-sharp-color": re.compile(r"home-1-flat|target-3-flat"),
    "openclipart": re.compile(r"tools/(?:weapons/longsword_01|pansement_jean_victor_ba_)\.svg"),
}
# Style variants of one name that a set contributes; the same style in another size is no variant.
VARIANTS_PER_SET = 6
OPENCLIPART_SKIPPED = (
    "shapes/",
    "special/",
    "logos/",
    "buttons/",
    "signs_and_symbols/",
    "computer/icons/",
    "computer/buttons/",
    "recreation/games/cards/",
    "geography/maps/",
    "transportation/roadsigns/",
)
# Keywords that say how a clip art was filed, not what it shows.
FILING_WORDS = frozenset(
    {
        "hash",
        "icon",
        "icons",
        "equipment",
        "art",
        "clip",
        "image",
        "svg",
        "computer",
        "drawing",
        "picture",
        "media",
    }
)
MAX_SVG_CHARACTERS = 400_000
_SIZE = re.compile(r"-(?:12|16|20|24|28|32|40|48|64)(?:px)?(?=-|$)")


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """One SVG: `source` is the set's name, `captions[0]` says best what it shows."""

    source: str
    name: str
    captions: tuple[str, ...]
    colour: bool
    svg: str


@dataclass(frozen=True, kw_only=True)
class IconSet:
    """One allowed set of the icon package, with what its licence asks to be named."""

    prefix: str
    title: str
    author: str
    address: str
    licence: str
    licence_url: str
    colour: bool


def is_excluded(prefix: str, info: dict[str, Any]) -> bool:
    """Tell whether a set is about emoji, logos or flags, by prefix, name and category."""
    described = f"{prefix} {info.get('name', '')} {info.get('category', '')}".lower()
    return (
        "emoji" in described
        or prefix in EXCLUDED_SETS
        or info.get("category") in EXCLUDED_CATEGORIES
    )


def is_excluded_drawing(source: str, name: str) -> bool:
    """Tell whether a drawing of an allowed source looks like an emoji."""
    pattern = EXCLUDED_DRAWINGS.get(source)
    return pattern is not None and pattern.fullmatch(name) is not None


def allowed_sets(icons: Path) -> list[IconSet]:
    """Return the sets under `icons` whose licence allows it and that nothing excludes."""
    collections = json.loads((icons / "collections.json").read_text(encoding="utf-8"))
    return [
        IconSet(
            prefix=prefix,
            title=info["name"],
            author=AUTHORS.get(prefix, info["author"]["name"]),
            address=info["author"].get("url", ""),
            licence=info["license"]["spdx"],
            licence_url=info["license"].get("url", ""),
            colour=bool(info.get("palette")),
        )
        for prefix, info in sorted(collections.items())
        if info.get("license", {}).get("spdx") in LICENCES
        and not is_excluded(prefix, info)
        and prefix not in HELD_OUT_SETS | ANIMATED_SETS
    ]


def icons_of_set(icons: Path, icon_set: IconSet, lexicon: NounLexicon) -> Iterator[Drawing]:
    """Yield the drawable icons of one set, at most six style variants per caption."""
    content = json.loads((icons / "json" / f"{icon_set.prefix}.json").read_text(encoding="utf-8"))
    aliases: dict[str, list[str]] = {}
    for alias, entry in content.get("aliases", {}).items():
        aliases.setdefault(entry["parent"], []).append(alias)
    variants: Counter[str] = Counter()
    styles: set[str] = set()
    for name, icon in content["icons"].items():
        captions = _captions([name, *aliases.get(name, [])], lexicon)
        excluded = icon.get("hidden") or is_excluded_drawing(icon_set.prefix, name)
        style = _SIZE.sub("", name)
        if excluded or not captions or style in styles:
            continue
        styles.add(style)
        variants[captions[0]] += 1
        if variants[captions[0]] <= VARIANTS_PER_SET:
            width = icon.get("width", content.get("width", 16))
            height = icon.get("height", content.get("height", 16))
            box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
            yield Drawing(
                source=icon_set.prefix,
                name=name,
                captions=captions,
                colour=icon_set.colour,
                svg=f'<svg xmlns="http://www.w3.org/2000/svg" '
                f'xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{box}" '
                f'width="{width}" height="{height}">{icon["body"]}</svg>',
            )


def clip_art(root: Path, lexicon: NounLexicon) -> Iterator[Drawing]:
    """Yield the drawable clip art below `root`, captioned by title, file name and keywords."""
    base = root / "usr/share/openclipart/svg"
    for path in sorted((*base.rglob("*.svg"), *base.rglob("*.svgz"))):
        relative = path.relative_to(base).as_posix()
        skipped = relative.startswith(OPENCLIPART_SKIPPED) or "flag" in relative
        if skipped or is_excluded_drawing("openclipart", relative):
            continue
        svg = _read_svg(path)
        if len(svg) > MAX_SVG_CHARACTERS:
            continue
        title, subjects = _described(svg)
        if any("emoji" in text.lower() for text in (relative, title, *subjects)):
            continue
        folder = path.parent.name
        stem = _leading_nouns(path.stem, lexicon)
        captions = tuple(
            caption
            for caption in _captions([stem, title, *subjects, folder], lexicon)
            if caption not in FILING_WORDS and _all_nouns(caption, lexicon)
        )
        if captions:
            yield Drawing(
                source="openclipart", name=relative, captions=captions, colour=True, svg=svg
            )


def _captions(identifiers: list[str], lexicon: NounLexicon) -> tuple[str, ...]:
    found = (caption_of(identifier, lexicon) for identifier in identifiers)
    return tuple(dict.fromkeys(caption for caption in found if caption))


def _read_svg(path: Path) -> str:
    content = path.read_bytes()
    if content.startswith(b"\x1f\x8b"):
        content = gzip.decompress(content)
    return content.decode("utf-8", errors="replace")


def _described(svg: str) -> tuple[str, list[str]]:
    """Return title and keywords from the Dublin Core metadata of an SVG ("" and [] if none)."""
    title = re.search(r"<dc:title>([^<]*)</dc:title>", svg)
    subject = re.search(r"<dc:subject>(.*?)</dc:subject>", svg, re.DOTALL)
    words = re.findall(r"<rdf:li>([^<]+)</rdf:li>", subject.group(1)) if subject else []
    return (title.group(1) if title else ""), words


def _all_nouns(caption: str, lexicon: NounLexicon) -> bool:
    """Clip art is described by people: names, colours and other languages are left out."""
    words = caption.split()
    return len(words) <= 3 and all(
        any(lexicon.is_noun(form) for form in singular_forms(word)) for word in words
    )


def _leading_nouns(stem: str, lexicon: NounLexicon) -> str:
    """Return what a file name starts with: `rubber_duck2_ganson` -> `rubber duck`.

    Authors' names follow the subject; the first word that is no noun ends it.
    """
    words = words_of(stem)
    return " ".join(itertools.takewhile(lexicon.is_noun, words[:3]))
