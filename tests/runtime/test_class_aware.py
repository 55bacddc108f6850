"""DPT's class inputs, the graph they are for, and what is said about new classes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlp_deploy.classes.bank import ClassFeatures
from vlp_deploy.classes.class_aware import check_small, class_aware_bank, class_graph
from vlp_deploy.cli import run
from vlp_deploy.errors import ClassListError
from vlp_deploy.formats.bundle import NewClasses
from vlp_deploy.formats.structures import ClassAware, Plain

STRUCTURE = ClassAware(selected=3, selector_template="{} texture.")
DRAW = np.random.default_rng(0)
RAW = DRAW.normal(size=(5, 4)).astype(np.float32)  # 5 classes, D = 4
LEARNED = ClassFeatures(raw=RAW, embeddings=RAW / np.linalg.norm(RAW, axis=1, keepdims=True))
PROMPTS = {
    "cavpt.meta.weight": DRAW.normal(size=(2, 6, 4)).astype(np.float32),
    "cavpt.meta.bias": DRAW.normal(size=(2, 6)).astype(np.float32),
}


def test_queries_are_made_of_the_features_as_they_are() -> None:
    bank = class_aware_bank(LEARNED, PROMPTS, logit_scale=50.0, selector=LEARNED.embeddings[::-1])

    for layer in range(2):
        for label in range(5):
            expected = PROMPTS["cavpt.meta.weight"][layer] @ RAW[label]
            expected = expected + PROMPTS["cavpt.meta.bias"][layer]
            np.testing.assert_allclose(
                bank.inputs["class_bank"][layer, label], expected, rtol=0, atol=1e-5
            )
    np.testing.assert_allclose(bank.inputs["class_matrix"], 50 * LEARNED.embeddings.T, rtol=1e-6)
    np.testing.assert_allclose(
        bank.inputs["selector_matrix"], 50 * LEARNED.embeddings[::-1].T, rtol=1e-6
    )
    assert bank.graph == "image"
    assert {value.dtype for value in bank.inputs.values()} == {np.dtype(np.float32)}


def test_small_graph_takes_no_selector() -> None:
    bank = class_aware_bank(LEARNED, PROMPTS, logit_scale=50.0, selector=None)

    assert bank.graph == "image_small"
    assert set(bank.inputs) == {"class_matrix", "class_bias", "class_bank"}


def test_number_of_training_classes_decides_on_the_graph() -> None:
    assert [class_graph(STRUCTURE, classes) for classes in (1, 3, 4)] == [
        *("image_small", "image_small"),
        "image",
    ]
    assert class_graph(Plain(), 1) == "image"


def test_more_classes_than_the_small_graph_serves_are_refused() -> None:
    check_small(STRUCTURE, 3)

    with pytest.raises(ClassListError, match=r"at most 3 classes, got 4: .* has no selector"):
        check_small(STRUCTURE, 4)


@pytest.mark.parametrize(("names", "new"), [("red\nGREEN\n", 0), ("red\nviolet\nbrown\n", 2)])
def test_new_classes_are_warned_of_where_the_bundle_says_so(
    names: str,
    new: int,
    changed_bundle: Callable[..., Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    bundle = changed_bundle(new_classes=NewClasses(warning="it is bad at them"))
    (tmp_path / "new.txt").write_text(names)
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    words = ["classify", str(tmp_path / "red.png"), "--bundle", str(bundle)]

    assert run([*words, "--classes", str(tmp_path / "new.txt")]) == 0

    said = capfd.readouterr()
    assert (f"warning: {new} classes are new. it is bad at them" in said.err) == (new > 0)
    assert "warning" not in said.out
