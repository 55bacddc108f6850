"""From text to CLIP's token ids and back: byte-level BPE over cleaned, lower-cased words.

The algorithm is byte-pair encoding (arXiv:1508.07909) over bytes as in GPT-2, with an end-of-word
form of every byte. Ids are open_clip's, with one deliberate difference: the words `<start_of_text>`
and `<end_of_text>` in a text are spelled out like any other word. open_clip turns them into the
real special tokens, so that a class name could end its own prompt.

Vocabulary: 256 bytes, 256 bytes that end a word, 48,894 merges by rank, start and end of text.
"""

import gzip
import html
import zlib
from collections.abc import Iterable
from functools import cache, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from vlp_deploy.errors import BundleError

VOCABULARY_PATH = Path(__file__).parents[1] / "vocabulary" / "bpe_simple_vocab_16e6.txt.gz"

BYTES = 256
MERGES = 48_894
START_OF_TEXT = 2 * BYTES + MERGES  # 49406
END_OF_TEXT = START_OF_TEXT + 1
WORD_END = "</w>"
NOT_CLIPS = "the tokenizer's vocabulary is not CLIP's"
UNMERGEABLE = END_OF_TEXT + 1  # above every id

# `'s` and the like first, then words of letters, single digits, runs of anything else.
WORD = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


class Tokenizer:
    """CLIP's tokenizer. Safe to share between threads.

    >>> Tokenizer.default().encode("a photo of a dog.")
    [320, 1125, 539, 320, 1929, 269]
    """

    def __init__(self, vocabulary: bytes) -> None:
        """Read a gzipped merge table (`bpe_simple_vocab_16e6.txt.gz`). Raises BundleError."""
        letters = _byte_letters()
        self._spelling = [*letters.values(), *(letter + WORD_END for letter in letters.values())]
        self._byte_ids = {byte: index for index, byte in enumerate(letters)}
        self._merges: dict[tuple[int, ...], int] = {}  # pair of ids -> id; a lower id merges first
        ids = {symbol: index for index, symbol in enumerate(self._spelling)}
        for first, second in _read_merges(vocabulary):
            index = len(self._spelling)
            if first not in ids or second not in ids:
                raise BundleError(f"{NOT_CLIPS}: {first!r} + {second!r} merges what does not exist")
            self._merges[ids[first], ids[second]] = ids[first + second] = index
            self._spelling.append(first + second)
        self._spelling += ["<start_of_text>", "<end_of_text>"]
        self._bytes = {letter: byte for byte, letter in letters.items()}
        self._word_ids = lru_cache(maxsize=1 << 16)(self._merge_word)

    @classmethod
    @cache
    def default(cls) -> "Tokenizer":
        """The tokenizer that comes with this package; read once."""
        return cls(VOCABULARY_PATH.read_bytes())

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without start and end of text; no limit on their number."""
        words = _word_pattern().findall(clean(text))
        return [index for word in words for index in self._word_ids(word)]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids: lower case, a blank after every word, U+FFFD for broken UTF-8."""
        spelled = "".join(self._spelling[index] for index in ids)
        content = bytes(self._bytes[letter] for letter in spelled)
        return content.decode("utf-8", errors="replace").replace(WORD_END, " ")

    def _merge_word(self, word: str) -> tuple[int, ...]:
        """Join the pair of lowest rank, everywhere in the word, until no pair can be joined."""
        ids = [self._byte_ids[byte] for byte in word.encode("utf-8")]
        ids[-1] += BYTES  # the form that ends a word
        while len(ids) > 1:
            merged = min(self._merges.get(pair, UNMERGEABLE) for pair in pairwise(ids))
            if merged == UNMERGEABLE:
                break
            ids = self._join(ids, merged)
        return tuple(ids)

    def _join(self, ids: list[int], merged: int) -> list[int]:
        """Replace, from the left, every pair that makes `merged` by it."""
        joined: list[int] = []
        position = 0
        while position < len(ids):
            fits = self._merges.get(tuple(ids[position : position + 2])) == merged
            joined.append(merged if fits else ids[position])
            position += 2 if fits else 1
        return joined


def clean(text: str) -> str:
    """Repair mojibake and ligatures, resolve HTML entities (twice), single blanks, lower case."""
    import ftfy  # here because it takes 0.1 s and only new class names need it

    repaired = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(repaired.split()).lower()


@cache
def _word_pattern() -> Any:
    import regex  # here for the same reason

    # Without IGNORECASE `'s` would not match its long-s form, as open_clip's pattern does.
    return regex.compile(WORD, regex.IGNORECASE)


def _byte_letters() -> dict[int, str]:
    """Byte → the printable letter that stands for it in the merge table, in vocabulary order.

    Printable Latin-1 stands for itself; the other bytes take the letters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(BYTES) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    return letters | {byte: chr(BYTES + index) for index, byte in enumerate(others)}


def _read_merges(vocabulary: bytes) -> list[tuple[str, str]]:
    try:
        lines = gzip.decompress(vocabulary).decode("utf-8").split("\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise BundleError(f"the tokenizer's vocabulary cannot be read: {error}") from error
    merges = [line.split() for line in lines[1 : 1 + MERGES]]  # line 0 is a version
    if len(merges) < MERGES or any(len(merge) != 2 for merge in merges):
        raise BundleError(f"{NOT_CLIPS}: expected {MERGES} merges of two symbols each")
    return [(first, second) for first, second in merges]
