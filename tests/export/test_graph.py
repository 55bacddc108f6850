"""The graph writer: names, shared constants, limits."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from vlp_deploy.errors import EngineError
from vlp_export import graph as module
from vlp_export.graph import GraphBuilder, node_count, to_bytes


def builder() -> tuple[GraphBuilder, ir.Value]:
    graph = GraphBuilder("sums", opset=18)
    return graph, graph.input("x", ir.DataType.FLOAT, ("B", 2))


def test_nodes_are_named_by_scope_and_operator() -> None:
    graph, x = builder()
    with graph.scope("outer"), graph.scope("inner"):
        x = graph.op("Add", graph.op("Add", x, x), x)
    graph.output("y", graph.op("Add", x, x), ("B", 2))

    names = [node.name for node in graph.model().graph]

    assert names == ["outer/inner/Add", "outer/inner/Add_2", "Add"]


def test_equal_constants_are_one_initialiser() -> None:
    graph, x = builder()
    one, two = graph.integers(0, -1), graph.integers(0, -1)
    graph.output("y", graph.op("Reshape", graph.op("Reshape", x, one), two), ("B", 2))

    assert one is two
    assert len(graph.model().graph.initializers) == 1


def test_scalars_stay_scalars() -> None:
    graph, x = builder()
    graph.output("y", graph.op("Mul", x, graph.number(0.5)), ("B", 2))

    model = onnx.load_from_string(to_bytes(graph.model()))

    assert list(model.graph.initializer[0].dims) == []
    assert node_count(graph.model()) == len(model.graph.node) == 1


def test_bytes_are_the_same_every_time() -> None:
    def write() -> bytes:
        graph, x = builder()
        weight = graph.weight("w", np.arange(4, dtype=np.float32).reshape(2, 2).T)
        graph.output("y", graph.op("MatMul", x, weight), ("B", 2))
        return to_bytes(graph.model())

    assert write() == write()


def test_graph_too_large_for_one_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROTOBUF_LIMIT", 15)
    graph, x = builder()
    weight = graph.weight("w", np.zeros((2, 2), np.float32))
    graph.output("y", graph.op("MatMul", x, weight), ("B", 2))

    with pytest.raises(EngineError, match="at most 2 GiB"):
        to_bytes(graph.model())


def test_two_weights_of_one_name_are_refused() -> None:
    graph, _ = builder()
    graph.weight("w", np.zeros(2, np.float32))

    with pytest.raises(ValueError, match="a weight 'w' already"):
        graph.weight("w", np.ones(2, np.float32))


def test_weight_that_is_needed_twice_is_written_once() -> None:
    graph, _ = builder()

    first, second = (graph.weight("w", np.arange(2, dtype=np.float32)) for _ in range(2))

    assert first is second
