"""Token ids must be open_clip's, save for special tokens that somebody typed."""

import gzip

import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vlp_deploy.classes.tokenizer import (
    END_OF_TEXT,
    START_OF_TEXT,
    VOCABULARY_PATH,
    Tokenizer,
    clean,
)
from vlp_deploy.errors import BundleError

AWKWARD = [
    "",
    " \t\n\u00a0\u2003 ",
    "a photo of a dog.",
    "ﬁne ﬂower ŒUVRE Ǆ ﷺ",  # ligatures
    "fish &amp; chips &amp;amp; &lt;b&gt; &#x1F436; &nbsp;x &copy",  # entities, also doubled
    "schÃ¶n â€œquotedâ€\u009d lâ€™humanitÃ©",  # mojibake
    "ΟΔΥΣΣΕΥΣ ΣΑΣ",  # final sigma
    "İstanbul ISPARTA ı",  # dotted and dotless i
    "it's we've I'M they'LL you'd she'ſ 's",  # contractions, one with a long s
    "“curly” ‘quotes’ «guillemets» —dash… 100 %",
    "🐶👩‍👩‍👧‍👦🏴󠁧󠁢󠁥󠁮󠁧󠁿 emoji🇩🇪👍🏽",
    "שלום עולם مرحبا \u202eright to left\u202c",
    "日本語 한국어 ไทย हिन्दी",
    "a\x00b\x07c\x1b[31m\x7f\x85\ufeff\ufffe",
    "½ ² ⅷ Ⅷ ٣ 12345 1.5e-3",
    "e\u0301 é Å Å ﬃ",
    "x" * 300,
    "_under_score__ #hash @at /path\\to C++ .NET",
    "\ud83d\ude00 \ud800 lone",  # surrogates
    "<start> <|endoftext|> </w> &lt;/w&gt;",
]
SPECIAL = regex.compile("<start_of_text>|<end_of_text>", regex.IGNORECASE)

pieces = st.sampled_from([*AWKWARD, "'s", "&", ";", "Ã", "Σ", "<", "_of_text>"]) | st.text(
    max_size=12
)
texts = st.lists(pieces, max_size=6).map(" ".join) | st.text(max_size=60)


@pytest.fixture(scope="module")
def reference():
    module = pytest.importorskip("open_clip.tokenizer", reason="compares with open_clip")
    return module.SimpleTokenizer()


@settings(max_examples=600, deadline=None)
@given(text=texts)
@example(text="Ã©ſ'ſ &#83; &amp;#x200b;")
def test_ids_equal_open_clips_on_awkward_text(text: str, reference) -> None:
    cleaned = clean(text)
    if SPECIAL.search(cleaned):
        return  # the documented difference, tested below

    assert Tokenizer.default().encode(text) == reference.encode(text)


@pytest.mark.parametrize("text", AWKWARD)
def test_ids_and_decoded_text_equal_open_clips(text: str, reference) -> None:
    ids = Tokenizer.default().encode(text)

    assert ids == reference.encode(text)
    assert Tokenizer.default().decode(ids) == reference.decode(ids)


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(0, END_OF_TEXT), max_size=20))
def test_decoding_any_ids_equals_open_clips(ids: list[int], reference) -> None:
    assert Tokenizer.default().decode(ids) == reference.decode(ids)


@pytest.mark.parametrize(
    "text",
    [
        "<end_of_text>",
        "dog<END_of_text>cat",
        "&lt;start_of_text&gt; x",
        "&amp;lt;end_of_text&amp;gt;",
        "<start_of_text><end_of_text>",
    ],
)
def test_special_tokens_typed_by_somebody_are_spelled_out(text: str) -> None:
    ids = Tokenizer.default().encode(text)

    assert ids
    assert START_OF_TEXT not in ids
    assert END_OF_TEXT not in ids
    assert Tokenizer.default().decode(ids).replace(" ", "") == clean(text).replace(" ", "")


def test_known_ids_without_open_clip() -> None:
    # from open_clip 3.3.0: SimpleTokenizer().encode(...)
    assert Tokenizer.default().encode("a photo of a dog.") == [320, 1125, 539, 320, 1929, 269]
    assert Tokenizer.default().encode("") == []
    assert (START_OF_TEXT, END_OF_TEXT) == (49406, 49407)


def test_vocabulary_bytes_make_the_default_tokenizer() -> None:
    text = "red panda in tree"

    assert Tokenizer(VOCABULARY_PATH.read_bytes()).encode(text) == Tokenizer.default().encode(text)


@pytest.mark.parametrize(
    ("vocabulary", "complaint"),
    [
        (b"", "not CLIP's"),
        (b"no gzip", "cannot be read"),
        (VOCABULARY_PATH.read_bytes()[:1000], "cannot be read"),
        (gzip.compress(b"#version\na b\nc d\n", mtime=0), "not CLIP's"),
        (gzip.compress(b"#version\n" + b"onlyone\n" * 48_894, mtime=0), "not CLIP's"),
        (gzip.compress(b"#version\n" + b"one two\n" * 48_894, mtime=0), "not CLIP's"),
    ],
)
def test_damaged_vocabulary_is_refused(vocabulary: bytes, complaint: str) -> None:
    with pytest.raises(BundleError, match=complaint):
        Tokenizer(vocabulary)
