"""A tower's ONNX file from a checkpoint: given its head, and refused where it is something else."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from vlp_deploy.errors import CheckpointError
from vlp_deploy.formats.checkpoint import IMAGE_GRAPH
from vlp_export.flops import sum_flops
from vlp_export.graph import GraphBuilder, to_bytes
from vlp_export.graphs import GraphFile
from vlp_export.other_graph import OTHER_TOWER, write_other_graph
from vlp_export.rewriting import value_types
from vlp_export.seen_shapes import shapes_of_a_run
from vlp_export.session import Session
from vlp_export.typed import TYPES, emulated, typed

SHAPES = {"image": (1, 3, 4, 4), "class_matrix": (2, 5), "class_bias": (5,)}


def tower(kind: str = "uint8", operator: str = "Relu") -> ir.Model:
    """Two channels' means of the pixels behind a 2 x 2 convolution with stride 2."""
    graph = GraphBuilder("tower", opset=18)
    dtype = ir.DataType.UINT8 if kind == "uint8" else ir.DataType.FLOAT
    image = graph.input("image", dtype, ("B", 3, 4, 4))
    weight = graph.weight("w", np.ones((2, 3, 2, 2), np.float32))
    x = graph.op("Cast", image, to=ir.DataType.FLOAT.value)
    x = graph.op(operator, graph.op("Conv", x, weight, strides=(2, 2)))
    graph.output("embedding", graph.op("ReduceMean", x, graph.integers(2, 3), keepdims=0), ("B", 2))
    return graph.model()


def checkpoint(content: bytes) -> Any:
    config = SimpleNamespace(embed_dim=2, image_tower="a ResNet")
    header = SimpleNamespace(backbone=SimpleNamespace(config=config))
    tensors = {IMAGE_GRAPH: np.frombuffer(content, np.uint8)}
    return SimpleNamespace(header=header, tensors=tensors)


def test_the_tower_is_given_a_head() -> None:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (3, 3, 4, 4), dtype=np.uint8)
    matrix, bias = random.normal(size=(2, 5)), random.normal(size=5)

    model = write_other_graph(checkpoint(to_bytes(tower())))

    inputs = {"image": pixels, "class_matrix": matrix, "class_bias": bias}
    floats = {
        name: a if a.dtype == np.uint8 else a.astype(np.float32) for name, a in inputs.items()
    }
    answers = Session(to_bytes(model))(floats)
    assert list(answers) == ["embedding", "logits"]
    expected = answers["embedding"] @ matrix + bias
    assert np.allclose(answers["logits"], expected, rtol=1e-5)
    assert model.metadata_props[OTHER_TOWER] == "a ResNet"


def residual_tower() -> ir.Model:
    """Three convolutions of 1 x 1, the second around a shortcut; no LayerNorm, as in a ResNet."""
    random = np.random.default_rng(1)
    graph = GraphBuilder("tower", opset=18)
    image = graph.input("image", ir.DataType.UINT8, ("B", 3, 4, 4))
    first, second, third = (
        graph.weight(f"w{index}", random.normal(size=(width, 3, 1, 1)).astype(np.float32) / 3)
        for index, width in enumerate((3, 3, 2))
    )
    x = graph.op("Conv", graph.op("Cast", image, to=ir.DataType.FLOAT.value), first)
    x = graph.op("Relu", graph.op("Add", x, graph.op("Conv", x, second)))
    x = graph.op("Conv", x, third)
    graph.output("embedding", graph.op("ReduceMean", x, graph.integers(2, 3), keepdims=0), ("B", 2))
    return graph.model()


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_tower_whose_values_have_types_changes_precision(precision: str) -> None:
    told = onnx.shape_inference.infer_shapes(ir.to_proto(residual_tower()))
    assert told.graph.value_info
    model = write_other_graph(checkpoint(told.SerializeToString()))

    lowered = typed(model, precision)

    onnx.checker.check_model(ir.to_proto(lowered), full_check=True)
    assert TYPES[precision] in value_types(lowered).values()
    random = np.random.default_rng(0)
    inputs = {
        "image": random.integers(0, 256, (3, 3, 4, 4), dtype=np.uint8),
        "class_matrix": random.normal(size=(2, 5)).astype(np.float32),
        "class_bias": np.zeros(5, np.float32),
    }
    found = Session(to_bytes(emulated(lowered) if precision == "bf16" else lowered))(inputs)
    expected = Session(to_bytes(model))(inputs)
    off = np.abs(found["logits"] - expected["logits"]).max() / np.abs(expected["logits"]).max()
    assert 0 < off < (2**-8 if precision == "fp16" else 2**-5)  # three roundings in a row


def test_lines_of_code_are_left_behind() -> None:
    model = tower()
    for node in model.graph:
        node.metadata_props["stack_trace"] = "File /home/somebody/secret.py"
        node.doc_string = "File /home/somebody/secret.py"

    written = to_bytes(write_other_graph(checkpoint(to_bytes(model))))

    assert b"somebody" not in written


def external() -> bytes:
    proto = onnx.load_from_string(to_bytes(tower()))
    proto.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    content: bytes = proto.SerializeToString()
    return content


def in_opset(version: int) -> bytes:
    model = tower()
    model.graph.opset_imports[""] = version
    return to_bytes(model)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no such file", "is no ONNX file"),
        (b"", "has inputs"),
        (external(), "reads its weights from another file"),
        (to_bytes(tower("float")), "has inputs"),
        (in_opset(11), "is written in"),
    ],
)
def test_what_is_no_such_graph_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=f"image_tower.onnx {message}"):
        write_other_graph(checkpoint(content))


def test_flops_are_those_of_the_shapes_of_a_run() -> None:
    model = write_other_graph(checkpoint(to_bytes(tower())))

    shapes = shapes_of_a_run(model, SHAPES)

    convolution, head = 2 * 2 * 2 * 3 * 2 * 2, 2 * 5  # outputs x kernel; D x K
    assert sum_flops(model, shapes) == 2 * (convolution + head)


def test_operators_that_nobody_can_count_are_told_as_not_counted() -> None:
    model = write_other_graph(checkpoint(to_bytes(tower(operator="Softplus"))))

    assert GraphFile.of("image", model).info(SHAPES).flops == 0


def test_operators_of_our_own_must_be_counted() -> None:
    model = tower(operator="Softplus")

    with pytest.raises(ValueError, match="no rule to count Softplus"):
        GraphFile.of("image", model).info({"image": (1, 3, 4, 4)})
