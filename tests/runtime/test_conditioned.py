"""CoCoOp's class inputs: suffixes out of names, and runs of bounded memory."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vlp_deploy.classes import conditioned
from vlp_deploy.classes.conditioned import MetaNet, class_pieces, run_in_pieces, suffix_rows
from vlp_deploy.classes.tokenizer import END_OF_TEXT, Tokenizer
from vlp_deploy.errors import CheckpointError, ClassListError
from vlp_deploy.formats.architecture import ClipConfig, TextLayout, TextTower, VisionTower

LAYOUT = TextLayout(tokens=4)
TEMPLATES = ("a photo of a {}.",)


def rows_of(
    *names: tuple[str, ...], layout: TextLayout = LAYOUT
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return suffix_rows(
        names,
        templates=TEMPLATES,
        layout=layout,
        tokenizer=Tokenizer.default(),
        context_length=77,
    )


def test_suffix_begins_behind_the_learned_tokens() -> None:
    ids, end = rows_of(("cat",), ("tree_kangaroo",))

    encode = Tokenizer.default().encode
    assert list(ids[[0, 1], 5 + end]) == [END_OF_TEXT] * 2
    np.testing.assert_array_equal(ids[0, 5 : 5 + end[0]], encode("cat."))
    np.testing.assert_array_equal(ids[1, 5 : 5 + end[1]], encode("tree kangaroo."))
    assert ids.shape[1] == 5 + end.max() + 1  # cut behind the longest


def test_words_that_are_not_learned_belong_to_the_suffix() -> None:
    ids, end = rows_of(("cat",), layout=TextLayout(tokens=2))

    np.testing.assert_array_equal(ids[0, 3 : 3 + end[0]], Tokenizer.default().encode("of a cat."))


def test_synonyms_are_refused() -> None:
    with pytest.raises(ClassListError, match=r"cannot be averaged: cat, kitty\. Give"):
        rows_of(("dog",), ("cat", "kitty"))


def test_class_name_elsewhere_than_at_the_end_is_refused() -> None:
    with pytest.raises(CheckpointError, match="stands at the front"):
        conditioned.prefix_length(TextLayout(tokens=4, position="front"))


@pytest.mark.parametrize("tokens", [1, 7, 20, 10_000])
def test_pieces_hold_every_class_once_and_few_tokens(
    tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conditioned, "TOKENS_A_RUN", tokens)
    end = np.random.default_rng(0).integers(1, 9, 40)

    pieces = list(class_pieces(end))

    assert sorted(np.concatenate(pieces)) == list(range(40))
    for piece in pieces:
        assert len(piece) == 1 or len(piece) * (end[piece].max() + 1) <= tokens
    assert len(pieces) <= max(1, 2 * (end + 1).sum() // tokens + 1)  # no needless runs


class FakeGraph:
    """Logits that tell which image met which suffix; keeps the size of every run."""

    def __init__(self) -> None:
        self.tokens: list[int] = []

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        image, suffix, end = inputs["image"], inputs["class_suffix"], inputs["suffix_end"]
        self.tokens.append(len(image) * suffix.shape[0] * suffix.shape[1])
        picture = image.mean(axis=(1, 2, 3), dtype=np.float32)  # (B,)
        word = suffix[np.arange(len(end)), end, 0]  # (K,), what stands at the end of text
        return {"embedding": picture[:, None], "logits": picture[:, None] * word}


@pytest.mark.parametrize("tokens", [1, 30, 200, 100_000])
def test_pieces_of_images_and_classes_give_what_one_run_gives(
    tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    random, graph = np.random.default_rng(1), FakeGraph()
    pixels = random.integers(0, 256, (5, 3, 2, 2), dtype=np.uint8)
    inputs = {
        "class_suffix": random.normal(size=(11, 9, 2)).astype(np.float32),
        "suffix_end": random.integers(1, 9, 11),
    }
    whole = FakeGraph()({"image": pixels, **inputs})
    monkeypatch.setattr(conditioned, "TOKENS_A_RUN", tokens)

    embeddings, logits = run_in_pieces(graph, pixels, inputs)

    np.testing.assert_array_equal(embeddings, whole["embedding"])
    np.testing.assert_array_equal(logits, whole["logits"])
    assert max(graph.tokens) <= max(tokens, 9)  # one class of 9 tokens and one image at least


def test_graph_without_suffixes_runs_once() -> None:
    pixels = np.zeros((3, 3, 2, 2), np.uint8)
    given = []

    def run(inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        given.append(sorted(inputs))
        return {"embedding": np.ones((3, 2)), "logits": np.zeros((3, 4))}

    embeddings, logits = run_in_pieces(run, pixels, {"class_matrix": np.zeros((2, 4))})

    assert (embeddings.shape, logits.shape) == ((3, 2), (3, 4))
    assert given == [["class_matrix", "image"]]


def meta_net_tensors() -> dict[str, NDArray[np.float32]]:
    shapes = {
        "cocoop.linear1.weight": (2, 6),
        "cocoop.linear1.bias": (2,),
        "cocoop.linear2.weight": (4, 2),
        "cocoop.linear2.bias": (4,),
    }
    return {name: np.ones(shape, np.float32) for name, shape in shapes.items()}


CONFIG = ClipConfig(
    embed_dim=6,
    quick_gelu=True,
    vit=VisionTower(image_size=8, patch_size=4, width=4, layers=1, heads=1, mlp_width=8),
    text=TextTower(context_length=77, vocab_size=9, width=4, layers=1, heads=1, mlp_width=8),
)


def test_network_is_read_whatever_its_hidden_width() -> None:
    assert MetaNet.of(meta_net_tensors(), CONFIG).weight_2.shape == (4, 2)


@pytest.mark.parametrize("missing", sorted(meta_net_tensors()))
def test_incomplete_network_is_refused(missing: str) -> None:
    tensors = meta_net_tensors()
    del tensors[missing]

    with pytest.raises(CheckpointError, match="the meta-network's tensors"):
        MetaNet.of(tensors, CONFIG)


def test_network_of_another_backbone_is_refused() -> None:
    tensors = meta_net_tensors() | {"cocoop.linear1.weight": np.ones((2, 5), np.float32)}

    with pytest.raises(CheckpointError, match=r"expected \[\(2, 6\), \(2,\), \(4, 2\), \(4,\)\]"):
        MetaNet.of(tensors, CONFIG)
