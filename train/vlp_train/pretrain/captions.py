"""Turn icon identifiers (`dog-side-outline-24`) into plain captions (`dog side`) or into None.

Icon names carry the drawing style, the size and interface vocabulary. Style and size are cut off;
names about interfaces rather than things (arrows, alignment, file operations) give None.
"""

import re
import tomllib
from pathlib import Path

from vlp_train.pretrain.wordnet import NounLexicon

_WORDS = tomllib.loads(Path(__file__).with_name("icon_words.toml").read_text(encoding="utf-8"))
STYLE_WORDS = frozenset(_WORDS["style"].split())
SET_PREFIXES = frozenset(_WORDS["set_prefixes"].split())
INTERFACE_WORDS = frozenset(_WORDS["interface"].split())
DRAWABLE_WORDS = frozenset(_WORDS["drawable"].split())
SHORT_WORDS = frozenset(_WORDS["short"].split())

_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_WORD = re.compile(r"[a-z]+")
MAX_WORDS = 4


def words_of(identifier: str) -> list[str]:
    """Split an identifier at punctuation, digits and camel case; lower case, styles removed."""
    spaced = _CAMEL.sub(" ", identifier).lower()
    words = _WORD.findall(spaced)
    kept = [word for word in words if word not in STYLE_WORDS]
    if len(kept) > 1 and kept[0] in SET_PREFIXES:
        kept = kept[1:]
    return [word for at, word in enumerate(kept) if at == 0 or kept[at - 1] != word]


def caption_of(identifier: str, lexicon: NounLexicon) -> str | None:
    """Return the caption of an icon, or None if the icon is not about a thing.

    Kept are names of at most four words, none of them from the interface vocabulary, in which at
    least one word (or the whole name) is a concrete noun.
    """
    words = words_of(identifier)
    if (
        not words
        or len(words) > MAX_WORDS
        or any(len(word) < 3 for word in words if word not in SHORT_WORDS)
    ):
        return None
    if any(word in INTERFACE_WORDS for word in words):
        return None
    caption = " ".join(words)
    drawable = any(word in DRAWABLE_WORDS or lexicon.is_concrete(word) for word in words)
    return caption if drawable or lexicon.is_concrete(caption) else None
