"""Icon names become captions, or are left out."""

import pytest

from vlp_train.pretrain.captions import caption_of
from vlp_train.pretrain.wordnet import NounLexicon, read_nouns, singular_forms


@pytest.mark.parametrize(
    ("identifier", "caption"),
    [
        ("dog", "dog"),
        ("dog-outline-24", "dog"),
        ("baseline-dog-rounded", "dog"),
        ("dogSideFilled", "dog side"),
        ("polar_bear_02", "polar bear"),
        ("cherries-duotone-bold", "cherries"),
        ("heart", "heart"),
        ("running", "running"),
    ],
)
def test_caption_keeps_what_is_drawn(identifier: str, caption: str, lexicon: NounLexicon) -> None:
    assert caption_of(identifier, lexicon) == caption


@pytest.mark.parametrize(
    "identifier",
    ["arrow-left", "dog-off", "house-plus", "idea", "outline", "24", "a-dog", "x", "dog-a-b-c-d-e"],
)
def test_caption_is_none_for_interface_names(identifier: str, lexicon: NounLexicon) -> None:
    assert caption_of(identifier, lexicon) is None


def test_singular_forms_of_plurals() -> None:
    assert "cherry" in singular_forms("cherries")
    assert "box" in singular_forms("boxes")
    assert singular_forms("glass") == ["glass"]


def test_wordnet_files_give_senses_in_order(tmp_path) -> None:
    (tmp_path / "data.noun").write_text(
        "  1 a licence line\n"
        "00000001 05 n 01 dog 0 000 | an animal\n"
        "00000002 18 n 01 dog 0 000 | a person\n"
        "00000003 09 n 01 idea 0 000 | a thought\n"
    )
    (tmp_path / "index.noun").write_text(
        "  1 a licence line\ndog n 2 1 @ 2 1 00000001 00000002\nidea n 1 0 1 0 00000003\n"
    )
    nouns = read_nouns(tmp_path)
    assert nouns.files == {"dog": (5, 18), "idea": (9,)}
    assert nouns.concrete_lemmas() == ["dog"]
    assert nouns.is_concrete("dogs")
    assert not nouns.is_concrete("ideas")
