"""From class names and a template to token rows with slots for learned prompts.

N rows, L tokens (the longest row), m learned tokens. Trainer, exporter and runtime share this
module, so that the tokens a prompt was trained with are the tokens it is served with.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlp_deploy.classes.tokenizer import END_OF_TEXT, START_OF_TEXT, Tokenizer
from vlp_deploy.errors import ClassListError
from vlp_deploy.formats.architecture import TextLayout

PLAIN = TextLayout()
PAD = 0


@dataclass(frozen=True, kw_only=True)
class TextRows:
    """Token rows as the text tower reads them, cut after the last end of text."""

    ids: NDArray[np.int64]  # (N, L), padded with 0
    eot: NDArray[np.int64]  # (N,), where the feature is read
    slots: NDArray[np.int64]  # (N, L): -1 = the token itself, j >= 0 = learned prompt j


def text_rows(
    names: Sequence[str],
    template: str,
    tokenizer: Tokenizer,
    *,
    layout: TextLayout = PLAIN,
    context_length: int = 77,
) -> TextRows:
    """One row for every name put in `template` (which holds `{}` once); underscores become blanks.

    Raises ClassListError for a name that is empty, too long, or cannot be cut out of its prompt.
    """
    rows = [_row(name.replace("_", " "), template, tokenizer, layout) for name in names]
    longest = max(len(ids) for ids, _ in rows)
    if longest > context_length:
        worst = names[max(range(len(rows)), key=lambda i: len(rows[i][0]))]
        raise ClassListError(
            f"class name {worst!r} makes a prompt of {longest} tokens; this model reads "
            f"{context_length}. Shorten the name"
        )
    ids = np.full((len(rows), longest), PAD, np.int64)
    slots = np.full((len(rows), longest), -1, np.int64)
    for index, (row, row_slots) in enumerate(rows):
        ids[index, : len(row)], slots[index, : len(row)] = row, row_slots
    return TextRows(ids=ids, eot=np.array([len(row) - 1 for row, _ in rows]), slots=slots)


def _row(
    name: str, template: str, tokenizer: Tokenizer, layout: TextLayout
) -> tuple[list[int], list[int]]:
    """Token ids and slots of one prompt, start and end of text included."""
    words_before, words_after = _split(template)
    if not tokenizer.encode(name):
        raise ClassListError(f"class name {name!r} has no readable characters")
    body = tokenizer.encode(f"{words_before}{name}{words_after}")
    learned, m = list(range(layout.tokens)), layout.tokens
    prefix = tokenizer.encode(words_before)
    if len(prefix) < m:
        raise ClassListError(
            f"template {template!r} has {len(prefix)} tokens before the class name, but {m} are "
            f"learned and would stand on the name itself. Put at least {m} words before {{}}"
        )
    if layout.position == "end":
        return [START_OF_TEXT, *body, END_OF_TEXT], [-1, *learned, *[-1] * (len(body) - m), -1]
    if layout.official_span:  # wrong by a token where the name merges with the full stop
        start, stop = m, m + len(tokenizer.encode(name))
    else:
        start, stop = _class_span(name, prefix, body, tokenizer.encode(words_after), layout)
    before = m // 2 if layout.position == "middle" else 0
    # learned tokens around the class name: V[:before] CLASS V[before:] rest
    ids = body[:before] + body[start:stop] + body[before:start] + body[stop:]
    slots = [-1] * len(body)
    slots[:before] = learned[:before]
    slots[before + stop - start : stop] = learned[before:]
    return [START_OF_TEXT, *ids, END_OF_TEXT], [-1, *slots, -1]


def _class_span(
    name: str, prefix: list[int], body: list[int], suffix: list[int], layout: TextLayout
) -> tuple[int, int]:
    """Where the class name's tokens stand in `body`: behind `prefix`, before what `suffix` left.

    A name that ends in punctuation may share its last token with the full stop: "foo (bar)." ends
    in the one token ").". That token moves with the name.
    """
    start = layout.tokens
    if len(prefix) != start:
        raise ClassListError(
            f"the template's words before the class name make {len(prefix)} tokens, but {start} "
            f"are learned: with the class name at the {layout.position} they must be equal"
        )
    if body[:start] != prefix:
        raise ClassListError(
            f"class name {name!r} merges with the template's word before it into one token, so it "
            f"cannot be moved to the {layout.position}. Put a blank before {{}}"
        )
    stop = len(body)
    for token in reversed(suffix):
        if body[stop - 1] != token:
            break
        stop -= 1
    return start, stop


def _split(template: str) -> tuple[str, str]:
    if template.count("{}") != 1:
        raise ClassListError(
            f"template {template!r} must hold {{}} exactly once, for the class name"
        )
    before, after = template.split("{}")
    return before, after
