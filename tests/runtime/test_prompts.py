"""Where learned tokens stand among the tokens of a template and a class name."""

from itertools import chain

import pytest

from vlp_deploy.classes.prompts import text_rows
from vlp_deploy.classes.tokenizer import END_OF_TEXT, START_OF_TEXT, Tokenizer
from vlp_deploy.errors import ClassListError
from vlp_deploy.formats.architecture import TextLayout

TOKENIZER = Tokenizer.default()
MERGING = ["foo (bar)", "U.S.", "what is it?", "C++", "gas mask!"]


def row(name: str, template: str, layout: TextLayout) -> list[str | int]:
    """One prompt in readable form: words as text, learned prompt j as the number j."""
    rows = text_rows([name], template, TOKENIZER, layout=layout)
    ids, slots = rows.ids[0].tolist(), rows.slots[0].tolist()
    assert (ids[0], ids[-1]) == (START_OF_TEXT, END_OF_TEXT)
    assert rows.eot.tolist() == [len(ids) - 1]
    parts = zip(ids[1:-1], slots[1:-1], strict=True)
    return [TOKENIZER.decode([i]).strip() if slot < 0 else slot for i, slot in parts]


@pytest.mark.parametrize(
    ("position", "expected"),
    [
        ("end", [0, 1, 2, "red", "fox", "."]),
        ("middle", [0, "red", "fox", 1, 2, "."]),
        ("front", ["red", "fox", 0, 1, 2, "."]),
    ],
)
def test_the_class_name_stands_where_it_was_asked_for(
    position: str, expected: list[str | int]
) -> None:
    layout = TextLayout(tokens=3, position=position)  # type: ignore[arg-type]

    assert row("red_fox", "X X X {}.", layout) == expected


def test_words_behind_the_learned_ones_stay() -> None:
    assert row("fox", "a photo of a {}.", TextLayout(tokens=2)) == [0, 1, "of", "a", "fox", "."]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("foo (bar)", [0, "foo", "(", "bar", ").", 1]),
        ("what is it?", [0, "what", "is", "it", "?.", 1]),
        ("red fox", [0, "red", "fox", 1, "."]),
    ],
)
def test_a_token_shared_with_the_full_stop_moves_with_the_name(
    name: str, expected: list[str | int]
) -> None:
    assert row(name, "X X {}.", TextLayout(tokens=2, position="middle")) == expected


@pytest.mark.parametrize("name", MERGING)
@pytest.mark.parametrize("position", ["middle", "front"])
def test_no_token_of_a_prompt_is_lost_by_moving(name: str, position: str) -> None:
    layout = TextLayout(tokens=2, position=position)  # type: ignore[arg-type]
    moved = row(name, "X X {}.", layout)
    end = row(name, "X X {}.", TextLayout(tokens=2))

    assert sorted(map(str, moved)) == sorted(map(str, end))
    assert [part for part in moved if part not in (0, 1)] == end[2:]


def test_the_official_span_counts_the_bare_names_tokens() -> None:
    layout = TextLayout(tokens=2, position="front", official_span=True)

    # the bare "foo (bar)" has four tokens, and so has "foo (bar)." as ")." is one
    assert row("foo (bar)", "X X {}.", layout) == ["foo", "(", "bar", ").", 0, 1]
    # of a prefix of more tokens than are learned, the official code cuts behind the learned ones
    cut = row("fox", "an ice-cold {}.", TextLayout(tokens=2, position="front", official_span=True))
    assert cut == ["-", 0, 1, "cold", "fox", "."]


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("official_span", [False, True])
def test_learned_tokens_never_stand_on_the_class_name(position: str, official_span: bool) -> None:
    layout = TextLayout(tokens=4, position=position, official_span=official_span)  # type: ignore[arg-type]

    for template in ("a photo {}.", "{}"):
        with pytest.raises(ClassListError, match=r"before the class name, but 4 are learned"):
            text_rows(["fox"], template, TOKENIZER, layout=layout)


def test_a_prefix_of_other_length_cannot_be_moved() -> None:
    with pytest.raises(ClassListError, match="make 4 tokens, but 2 are learned"):
        text_rows(
            ["fox"], "a photo of a {}.", TOKENIZER, layout=TextLayout(tokens=2, position="front")
        )


def test_a_name_that_merges_with_the_word_before_it_is_refused() -> None:
    layout = TextLayout(tokens=2, position="front")

    with pytest.raises(ClassListError, match="'cat' merges with the template's word before"):
        text_rows(["cat"], "a tom{}.", TOKENIZER, layout=layout)


@pytest.mark.parametrize("template", ["a photo", "{} and {}"])
def test_a_template_has_one_place_for_the_name(template: str) -> None:
    with pytest.raises(ClassListError, match="exactly once"):
        text_rows(["cat"], template, TOKENIZER)


def test_rows_are_padded_and_ends_are_told() -> None:
    rows = text_rows(["cat", "red panda bear"], "a {}.", TOKENIZER)

    assert rows.ids.shape == (2, 7)
    assert rows.eot.tolist() == [4, 6]
    assert [rows.ids[i, end] for i, end in enumerate(rows.eot)] == [END_OF_TEXT] * 2
    assert set(chain(*rows.slots.tolist())) == {-1}


def test_too_long_a_name_is_named() -> None:
    long = "very " * 80 + "long"

    with pytest.raises(ClassListError, match=r"'very very .*makes a prompt of 85 tokens"):
        text_rows(["cat", long], "a {}.", TOKENIZER)


@pytest.mark.parametrize("name", ["", " ", "_"])
def test_an_empty_name_is_refused(name: str) -> None:
    with pytest.raises(ClassListError, match="no readable characters"):
        text_rows([name], "a {}.", TOKENIZER)
