"""The text graph computes what the un-folded tower computes, at any length and depth of prompts."""

import numpy as np
import onnx
import pytest

from tests.export.tiny_clip import (
    make_clip,
    make_config,
    make_prompts,
    make_weights,
    run_text_graph,
    text_features,
    unit,
)
from vlp_deploy.classes.prompts import TextRows
from vlp_deploy.errors import CheckpointError
from vlp_export.graph import to_bytes
from vlp_export.session import Floats
from vlp_export.text_graph import write_text_graph

TOLERANCE = 1e-6  # of unit embeddings: float32 rounding; the reference is float64
CONFIG = make_config()
WEIGHTS = make_weights(CONFIG)


def make_rows(*, tokens: int, front: bool = False) -> TextRows:
    """Three rows of different lengths, at most 9 tokens, with `tokens` prompts behind the first."""
    rng = np.random.default_rng(4)
    eot = np.array([8, 4 + tokens, 6])
    ids, slots = rng.integers(1, 58, (3, 9)), np.full((3, 9), -1)
    for row, end in enumerate(eot):
        ids[row, end:] = 0
        ids[row, end] = 59
        first = end - tokens if front else 1
        slots[row, first : first + tokens] = np.arange(tokens)
    return TextRows(ids=ids, eot=eot, slots=slots)


def run(rows: TextRows, prompts: Floats) -> Floats:
    """Embeddings of a graph written for as many layers as `prompts` has."""
    model = write_text_graph(CONFIG, WEIGHTS, prompted_layers=len(prompts))
    return run_text_graph(model, rows, prompts)[1]


@pytest.mark.parametrize("front", [False, True])
@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_graph_equals_the_unfolded_tower(depth: int, tokens: int, front: bool) -> None:
    rows, prompts = make_rows(tokens=tokens, front=front), make_prompts(depth, tokens, 16)

    embeddings = run(rows, prompts)

    clip = make_clip(CONFIG, WEIGHTS)
    expected = unit(text_features(clip, rows, prompts)).numpy()
    np.testing.assert_allclose(embeddings, expected, rtol=0, atol=TOLERANCE)
    without_last = np.concatenate([prompts[:-1], 0 * prompts[-1:]])
    changed = unit(text_features(clip, rows, without_last)).numpy()
    assert np.abs(changed - expected).max() > 0.01  # the case can fail: the last layer's matter


def test_exact_gelu_equals_the_unfolded_tower() -> None:
    config = make_config(quick_gelu=False)
    weights, rows = make_weights(config), make_rows(tokens=2)
    prompts = make_prompts(2, 2, 16)
    model = write_text_graph(config, weights, prompted_layers=2)

    embeddings = run_text_graph(model, rows, prompts)[1]

    expected = unit(text_features(make_clip(config, weights), rows, prompts)).numpy()
    np.testing.assert_allclose(embeddings, expected, rtol=0, atol=TOLERANCE)


def test_rows_without_prompts_need_none() -> None:
    rows, none = make_rows(tokens=0), np.zeros((1, 0, 16), np.float32)

    embeddings = run(rows, none)

    expected = unit(text_features(make_clip(CONFIG, WEIGHTS), rows, none)).numpy()
    np.testing.assert_allclose(embeddings, expected, rtol=0, atol=TOLERANCE)


def test_padding_and_the_other_rows_have_no_influence() -> None:
    rows, prompts = make_rows(tokens=2), make_prompts(2, 2, 16)
    short = rows.eot[1] + 1
    alone = TextRows(ids=rows.ids[1:2, :short], eot=rows.eot[1:2], slots=rows.slots[1:2, :short])
    garbage = rows.ids.copy()
    garbage[1, short:] = 7

    together = run(TextRows(ids=garbage, eot=rows.eot, slots=rows.slots), prompts)

    np.testing.assert_allclose(run(alone, prompts), together[1:2], rtol=0, atol=TOLERANCE)


def test_feature_is_the_embedding_before_division() -> None:
    rows, prompts = make_rows(tokens=2), make_prompts(1, 2, 16)

    feature, embedding = run_text_graph(write_text_graph(CONFIG, WEIGHTS), rows, prompts)

    expected = text_features(make_clip(CONFIG, WEIGHTS), rows, prompts).numpy()
    np.testing.assert_allclose(feature, expected, rtol=1e-5, atol=1e-5)
    lengths = np.linalg.norm(feature, axis=1, keepdims=True)
    np.testing.assert_allclose(embedding, feature / lengths, rtol=0, atol=TOLERANCE)


def test_all_positions_can_be_used() -> None:
    length = CONFIG.text.context_length
    ids = np.random.default_rng(5).integers(1, 58, (1, length))
    rows = TextRows(ids=ids, eot=np.array([length - 1]), slots=np.full((1, length), -1))
    none = np.zeros((1, 0, 16), np.float32)

    expected = unit(text_features(make_clip(CONFIG, WEIGHTS), rows, none)).numpy()
    np.testing.assert_allclose(run(rows, none), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("layers", [0, 4])
def test_impossible_number_of_prompted_layers_is_an_error(layers: int) -> None:
    with pytest.raises(CheckpointError, match=f"for {layers} layers, but the text tower has 3"):
        write_text_graph(CONFIG, WEIGHTS, prompted_layers=layers)


def test_file_is_valid_onnx_without_argmax() -> None:
    model = onnx.load_from_string(to_bytes(write_text_graph(CONFIG, WEIGHTS, prompted_layers=3)))

    onnx.checker.check_model(model, full_check=True)
    assert (model.ir_version, model.opset_import[0].version) == (10, 18)
    assert "ArgMax" not in {node.op_type for node in model.graph.node}
    names = [value.name for value in model.graph.input]
    assert names == ["input_ids", "eot_index", "slots", "prompts"]
