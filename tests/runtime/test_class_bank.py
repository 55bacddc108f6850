"""Class embeddings against their definition, spelled out one row at a time."""

import numpy as np
import pytest
from numpy.typing import NDArray

from vlp_deploy.classes.bank import ROWS_A_RUN, build_class_features
from vlp_deploy.classes.prompts import text_rows
from vlp_deploy.classes.tokenizer import Tokenizer
from vlp_deploy.errors import ClassListError
from vlp_deploy.formats.architecture import TextLayout

TOKENIZER = Tokenizer.default()
PROMPTS = np.zeros((1, 0, 4), np.float32)
TABLE = np.random.default_rng(0).standard_normal((49408, 6)).astype(np.float32)
TEMPLATES = ("a photo of a {}.", "a small drawing of one {} on paper.")


class FakeText:
    """A text tower whose feature is the sum of the token vectors up to the end of text."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, int]] = []
        self.padding = 0

    def __call__(self, ids, eot, slots, prompts) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        self.shapes.append(ids.shape)
        self.padding += int((ids.shape[1] - 1 - eot).sum())
        raw = np.stack([TABLE[row[: end + 1]].sum(0) for row, end in zip(ids, eot, strict=True)])
        return raw, raw / np.linalg.norm(raw, axis=1, keepdims=True)


def build(class_names, **options) -> NDArray[np.float32]:
    return build_class_features(
        options.pop("run_text", FakeText()),
        class_names,
        templates=options.pop("templates", TEMPLATES),
        prompts=PROMPTS,
        tokenizer=TOKENIZER,
        **options,
    ).embeddings


def expected(synonyms: list[str]) -> NDArray[np.float64]:
    total = np.zeros(6)
    for template in TEMPLATES:
        for name in synonyms:
            rows = text_rows([name], template, TOKENIZER)
            feature = TABLE[rows.ids[0]].astype(float).sum(0)
            total += feature / np.linalg.norm(feature)
    return total / np.linalg.norm(total)


def test_embeddings_average_normalised_rows_over_synonyms_and_templates() -> None:
    classes = [["dog"], ["lesser panda", "red panda", "firefox"], ["cat", "house cat"]]

    embeddings = build(classes)

    assert embeddings.dtype == np.float32
    # float32 sums of a dozen terms near 1
    np.testing.assert_allclose(embeddings, [expected(c) for c in classes], atol=1e-6)


def test_rows_run_in_chunks_of_like_length() -> None:
    long_name = "animal with a very long and tedious descriptive name"
    classes = [[long_name if 7 * i % 296 < 40 else f"dog {i % 10}"] for i in range(296)]
    run_text, seen = FakeText(), []

    build(
        classes,
        run_text=run_text,
        templates=TEMPLATES[:1],
        progress=lambda done, total: seen.append((done, total)),
    )

    assert [shape[0] for shape in run_text.shapes] == [ROWS_A_RUN, 40]
    assert run_text.padding == 0  # the 40 long rows, scattered over the list, run together
    assert seen == [(ROWS_A_RUN, ROWS_A_RUN + 40), (ROWS_A_RUN + 40, ROWS_A_RUN + 40)]


def test_order_of_classes_changes_nothing_but_the_order() -> None:
    classes = [["dog"], ["an extraordinarily long class name"], ["cat"]]

    np.testing.assert_array_equal(build(classes[::-1]), build(classes)[::-1])


def test_learned_prompts_reach_the_text_graph() -> None:
    seen = {}

    def run_text(ids, eot, slots, prompts) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        seen.update(slots=slots, prompts=prompts)
        return np.ones((len(ids), 6), np.float32), np.ones((len(ids), 6), np.float32)

    build_class_features(
        run_text,
        [["dog"]],
        templates=["X X {}."],
        prompts=np.ones((1, 2, 4), np.float32),
        tokenizer=TOKENIZER,
        layout=TextLayout(tokens=2),
    )

    assert seen["slots"].tolist() == [[-1, 0, 1, -1, -1, -1]]
    assert seen["prompts"].shape == (1, 2, 4)


@pytest.mark.parametrize(
    ("classes", "templates", "complaint"),
    [
        ([], TEMPLATES, "no classes"),
        ([["dog"]], [], "no templates"),
        ([["dog"], []], TEMPLATES, "class 1 is"),
        (["dog"], TEMPLATES, "expected a list"),
        ([["dog"], ["\u00a0"]], TEMPLATES, "no readable characters"),
        ([["dog " * 90]], TEMPLATES, "this model reads 77"),
        ([["dog"]], ["a photo"], "exactly once"),
    ],
)
def test_unusable_input_is_refused(classes, templates, complaint: str) -> None:
    with pytest.raises(ClassListError, match=complaint):
        build(classes, templates=templates)
