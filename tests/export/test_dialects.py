"""The seam between dialects: another way to write attention needs an opset and one function."""

import numpy as np
import pytest

from tests.export.tiny_clip import (
    image_embeddings,
    make_clip,
    make_config,
    make_pixels,
    make_prompts,
    make_weights,
    run_image_graph,
    run_text_graph,
    text_features,
    unit,
)
from vlp_deploy.classes.prompts import TextRows
from vlp_deploy.formats.architecture import Preprocessing, VisualLayout
from vlp_export.dialects import ConstantRows, Dialect, Projections
from vlp_export.graph import GraphBuilder, Value, node_count
from vlp_export.image_graph import write_image_graph
from vlp_export.text_graph import write_text_graph

CONFIG = make_config()
WEIGHTS = make_weights(CONFIG)


def one_operator(
    graph: GraphBuilder,
    projections: Projections,
    *,
    heads: int,
    one_query: bool = False,
    mask: Value | None = None,
    constants: ConstantRows | None = None,
) -> Value:
    """The operator Attention of opset 23, on (B, T, d) without splitting heads."""
    query, keys, values = projections
    if one_query:
        query = graph.op("Unsqueeze", query, graph.integers(1))
    if constants is not None:
        flat = [
            part.transpose(0, 2, 1, 3).reshape(1, part.shape[2], -1)  # (1, m, d)
            for part in constants.keys_values
        ]
        more_keys, more_values = (
            constants.repeat(f"{constants.name}.{name}", part)
            for name, part in zip(("keys", "values"), flat, strict=True)
        )
        keys = graph.op("Concat", keys, more_keys, axis=1)
        values = graph.op("Concat", values, more_values, axis=1)
    inputs = (query, keys, values) if mask is None else (query, keys, values, mask)
    merged = graph.op("Attention", *inputs, q_num_heads=heads, kv_num_heads=heads, scale=1.0)
    return graph.op("Squeeze", merged, graph.integers(1)) if one_query else merged


ONNX_23 = Dialect(opset=23, attend=one_operator)


@pytest.mark.parametrize("survive_last", [False, True])
def test_image_graph_of_another_dialect_gives_the_same(survive_last: bool) -> None:
    prompts, pixels = make_prompts(2, 3, 32), make_pixels()
    layout = VisualLayout(tokens=3, survive_last=survive_last)
    model = write_image_graph(
        CONFIG,
        WEIGHTS,
        preprocessing=Preprocessing(image_size=32),
        prompts=prompts,
        layout=layout,
        dialect=ONNX_23,
    )
    matrix, bias = np.zeros((24, 2), np.float32), np.zeros(2, np.float32)

    embeddings, _ = run_image_graph(model, pixels, matrix, bias)

    expected = image_embeddings(make_clip(CONFIG, WEIGHTS), pixels, prompts, layout).numpy()
    np.testing.assert_allclose(embeddings, expected, rtol=0, atol=1e-6)  # float32 rounding
    assert node_count(model) < 80  # 3 x 17 + 7 + 5 and a few for the prompts


def test_text_graph_of_another_dialect_gives_the_same() -> None:
    rng = np.random.default_rng(6)
    rows = TextRows(
        ids=rng.integers(1, 60, (2, 7)),
        eot=np.array([6, 4]),
        slots=np.array([[-1, 0, 1, -1, -1, -1, -1]] * 2),
    )
    prompts = make_prompts(2, 2, 16)
    model = write_text_graph(CONFIG, WEIGHTS, prompted_layers=2, dialect=ONNX_23)

    embeddings = run_text_graph(model, rows, prompts)[1]

    expected = unit(text_features(make_clip(CONFIG, WEIGHTS), rows, prompts)).numpy()
    np.testing.assert_allclose(embeddings, expected, rtol=0, atol=1e-6)
