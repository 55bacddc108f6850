"""Both ways to write attention compute the same; the fused one in fewer operators."""

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
from vlp_export.dialects import FUSED, PORTABLE
from vlp_export.flops import count_flops
from vlp_export.graph import node_count
from vlp_export.image_graph import write_image_graph
from vlp_export.text_graph import write_text_graph

CONFIG = make_config()
WEIGHTS = make_weights(CONFIG)


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
        dialect=FUSED,
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
    model = write_text_graph(CONFIG, WEIGHTS, prompted_layers=2, dialect=FUSED)

    embeddings = run_text_graph(model, rows, prompts)[1]

    expected = unit(text_features(make_clip(CONFIG, WEIGHTS), rows, prompts)).numpy()
    np.testing.assert_allclose(embeddings, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("layers", [1, 3])
def test_both_dialects_count_the_same_arithmetic(layers: int) -> None:
    prompts = make_prompts(1, 3, 32)
    shapes = {"image": (2, 3, 32, 32), "class_matrix": (24, 5), "class_bias": (5,)}

    portable, fused = (
        count_flops(
            write_image_graph(
                CONFIG,
                WEIGHTS,
                preprocessing=Preprocessing(image_size=32),
                prompts=prompts.repeat(layers, axis=0),
                dialect=dialect,
            ),
            shapes,
        )
        for dialect in (PORTABLE, FUSED)
    )

    assert fused == portable
