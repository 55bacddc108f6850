"""The image graph, whatever was folded into it, computes what the un-folded tower computes."""

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from tests.export.tiny_clip import (
    image_embeddings,
    make_clip,
    make_config,
    make_pixels,
    make_prompts,
    make_weights,
    run_image_graph,
)
from vlp_deploy.errors import CheckpointError
from vlp_deploy.formats.architecture import Preprocessing, VisualLayout
from vlp_export.graph import to_bytes
from vlp_export.image_graph import write_image_graph
from vlp_export.session import Floats, Session

Runner = Callable[[NDArray[np.uint8], Floats, Floats], tuple[Floats, Floats]]

PREPROCESSING = Preprocessing(image_size=32)
# float32 rounding at a logit scale of 100; the reference is float64. Half of it is seen.
LOGIT_TOLERANCE = 1e-4
EMBEDDING_TOLERANCE = 1e-6

TRAVELS = VisualLayout(tokens=3, survive_last=True)
DROPPED = VisualLayout(tokens=3, survive_last=False)


def class_inputs(classes: int = 5) -> tuple[Floats, Floats]:
    """Random unit classes times 100, (D, K), and a bias (K,)."""
    matrix = np.random.default_rng(3).standard_normal((24, classes))
    matrix *= 100 / np.linalg.norm(matrix, axis=0)
    return matrix.astype(np.float32), np.arange(classes, dtype=np.float32)


def runner(prompts: Floats | None = None, layout: VisualLayout | None = None) -> Runner:
    """A graph with 17 tokens and 3 layers."""
    config = make_config()
    model = write_image_graph(
        config,
        make_weights(config),
        preprocessing=PREPROCESSING,
        prompts=prompts,
        layout=layout,
    )
    session = Session(to_bytes(model))

    def run(pixels: NDArray[np.uint8], matrix: Floats, bias: Floats) -> tuple[Floats, Floats]:
        outputs = session({"image": pixels, "class_matrix": matrix, "class_bias": bias})
        return outputs["embedding"], outputs["logits"]

    return run


@pytest.mark.parametrize("survive_last", [False, True])
@pytest.mark.parametrize("pre_ln", [False, True])
@pytest.mark.parametrize("depth", [0, 1, 2, 3])
@pytest.mark.parametrize(("quick_gelu", "patch_size"), [(True, 8), (False, 16)])
def test_graph_equals_the_unfolded_tower(
    quick_gelu: bool, patch_size: int, depth: int, pre_ln: bool, survive_last: bool
) -> None:
    config = make_config(quick_gelu=quick_gelu, patch_size=patch_size)
    weights, pixels = make_weights(config), make_pixels()
    prompts = make_prompts(depth, 3, config.vision.width)
    layout = VisualLayout(tokens=3, pre_ln=pre_ln, survive_last=survive_last)
    model = write_image_graph(
        config, weights, preprocessing=PREPROCESSING, prompts=prompts, layout=layout
    )
    matrix, bias = class_inputs()

    embeddings, logits = run_image_graph(model, pixels, matrix, bias)

    clip = make_clip(config, weights)
    expected = image_embeddings(clip, pixels, prompts, layout).numpy()
    np.testing.assert_allclose(embeddings, expected, rtol=0, atol=EMBEDDING_TOLERANCE)
    np.testing.assert_allclose(logits, expected @ matrix + bias, rtol=0, atol=LOGIT_TOLERANCE)
    if depth:  # the case can fail: the prompts matter a lot
        plain = image_embeddings(clip, pixels).numpy()
        assert np.abs((plain - expected) @ matrix).max() > 1


@pytest.mark.parametrize("survive_last", [False, True])
def test_one_layer_tower_folds_its_only_prompts(survive_last: bool) -> None:
    config = make_config(layers=1)
    weights, pixels = make_weights(config), make_pixels()
    prompts = make_prompts(1, 2, config.vision.width)
    layout = VisualLayout(tokens=2, survive_last=survive_last)
    model = write_image_graph(
        config, weights, preprocessing=PREPROCESSING, prompts=prompts, layout=layout
    )

    embeddings, _ = run_image_graph(model, pixels, *class_inputs())

    expected = image_embeddings(make_clip(config, weights), pixels, prompts, layout).numpy()
    np.testing.assert_allclose(embeddings, expected, rtol=0, atol=EMBEDDING_TOLERANCE)


@pytest.mark.parametrize(
    ("depth", "layout", "constant", "travelling"),
    [
        (1, DROPPED, [0], False),
        (1, TRAVELS, [], True),
        (2, DROPPED, [0, 1], False),
        (2, TRAVELS, [0], True),
        (3, TRAVELS, [0, 1, 2], False),
    ],
)
def test_discarded_prompts_are_keys_and_values_and_nothing_else(
    depth: int, layout: VisualLayout, constant: list[int], travelling: bool
) -> None:
    config = make_config()
    model = write_image_graph(
        config,
        make_weights(config),
        preprocessing=PREPROCESSING,
        prompts=make_prompts(depth, 3, 32),
        layout=layout,
    )

    shapes = {
        str(name): value.const_value.shape.numpy()
        for name, value in model.graph.initializers.items()
        if str(name).startswith("visual.prompts") and value.const_value is not None
    }

    expected = {f"visual.prompts.{layer}.keys": (1, 2, 16, 3) for layer in constant}
    expected |= {f"visual.prompts.{layer}.values": (1, 2, 3, 16) for layer in constant}
    assert shapes == expected | ({"visual.prompts": (1, 3, 32)} if travelling else {})


def test_more_prompted_layers_than_layers_is_an_error() -> None:
    with pytest.raises(CheckpointError, match=r"for 4 layers, but the image tower has 3"):
        runner(make_prompts(4, 3, 32), DROPPED)


@pytest.mark.parametrize("layout", [DROPPED, TRAVELS])
def test_answers_do_not_depend_on_the_batch(layout: VisualLayout) -> None:
    run, pixels = runner(make_prompts(2, 3, 32), layout), make_pixels()
    inputs = class_inputs()

    together, _ = run(pixels, *inputs)
    others = np.concatenate([pixels[:1], 255 - pixels[1:]])
    among_others, _ = run(others, *inputs)

    assert np.array_equal(together[0], among_others[0])  # same place and size: same bits
    for batch in (1, 2, 5):
        alone, _ = run(pixels[:batch], *inputs)
        # other batch sizes may add in another order
        np.testing.assert_allclose(alone, together[:batch], rtol=0, atol=EMBEDDING_TOLERANCE)


@pytest.mark.parametrize("classes", [1, 7])
def test_any_number_of_classes_fits(classes: int) -> None:
    matrix, bias = class_inputs(classes)

    embeddings, logits = runner()(make_pixels(count=2), matrix, bias)

    assert logits.shape == (2, classes)
    np.testing.assert_allclose(logits, embeddings @ matrix + bias, rtol=0, atol=LOGIT_TOLERANCE)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=0, atol=1e-6)


def test_file_is_valid_onnx_of_the_promised_version() -> None:
    config = make_config()
    written = write_image_graph(
        config,
        make_weights(config),
        preprocessing=PREPROCESSING,
        prompts=make_prompts(2, 3, 32),
        layout=TRAVELS,
    )

    model = onnx.load_from_string(to_bytes(written))

    onnx.checker.check_model(model, full_check=True)
    assert (model.ir_version, model.opset_import[0].version) == (10, 18)
    assert {node.domain for node in model.graph.node} == {""}
    inputs = {value.name: value.type.tensor_type for value in model.graph.input}
    assert inputs["image"].elem_type == ir.DataType.UINT8
    assert list(inputs) == ["image", "class_matrix", "class_bias"]
    assert [value.name for value in model.graph.output] == ["embedding", "logits"]
