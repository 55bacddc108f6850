"""A small writer of ONNX graphs: inputs, weights and operators in, an `onnx_ir.Model` out.

One node for every call of `op`; nothing is added behind the caller's back, so that the node count
of a graph is what its code says.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vlp_deploy import __version__
from vlp_deploy.errors import EngineError

IR_VERSION = 10  # the newest that onnxruntime 1.20 reads
PROTOBUF_LIMIT = 2**31 - 1

Value = ir.Value
Attribute = int | float | Sequence[int]


class GraphBuilder:
    """Writes nodes in the order of execution; names them by scope and operator."""

    def __init__(self, name: str, *, opset: int) -> None:
        self._graph = ir.Graph([], [], nodes=[], opset_imports={"": opset}, name=name)
        self._scope = ""
        self._counts: dict[str, int] = {}

    @classmethod
    def onto(cls, model: ir.Model) -> "GraphBuilder":
        """Writes behind the nodes of a model, which is used up; its names must not be in use."""
        builder = cls(model.graph.name or "graph", opset=model.graph.opset_imports[""])
        builder._graph = model.graph
        return builder

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> Value:
        """A graph input; a size given as text is dynamic."""
        value = ir.val(name, dtype=dtype, shape=list(shape))
        self._graph.inputs.append(value)
        return value

    def output(self, name: str, value: Value, shape: Sequence[int | str]) -> None:
        """Make a float32 value an output of the graph, under this name."""
        value.name = name
        value.dtype, value.shape = ir.DataType.FLOAT, ir.Shape(list(shape))
        self._graph.outputs.append(value)

    def weight(self, name: str, array: NDArray[Any]) -> Value:
        """An initialiser; the name is the tensor's key in the state dict where there is one.

        Written once, however often it is asked for: a tower may run twice in a graph. Raises
        ValueError for other content under a name that is taken.
        """
        if name in self._graph.initializers:
            return self._same_weight(name, array)
        value = ir.val(name, const_value=ir.tensor(array, name=name))
        self._graph.register_initializer(value)
        return value

    def integers(self, *values: int) -> Value:
        """An int64 vector."""
        return self._constant(f"integers_{'_'.join(map(str, values))}", values, np.int64)

    def integer(self, value: int) -> Value:
        """An int64 scalar."""
        return self._constant(f"integer_{value}", value, np.int64)

    def number(self, value: float) -> Value:
        """A float32 scalar."""
        return self._constant(f"number_{value:.9g}", value, np.float32)

    def op(self, op_type: str, *inputs: Value, **attributes: Attribute) -> Value:
        """One node with one output."""
        (value,) = self._node(op_type, inputs, attributes, outputs=1)
        return value

    def split(self, value: Value, sizes: Sequence[int], *, axis: int) -> tuple[Value, ...]:
        """One Split node: `value` cut along `axis` into pieces of these sizes."""
        inputs = (value, self.integers(*sizes))
        return self._node("Split", inputs, {"axis": axis}, outputs=len(sizes))

    def largest(self, value: Value, count: Value) -> Value:
        """One TopK node: where the `count` (1,) largest of the last axis are, in no order."""
        attributes = {"axis": -1, "largest": 1, "sorted": 0}
        return self._node("TopK", (value, count), attributes, outputs=2)[1]

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Prefix the names of the nodes written inside with `name/`."""
        outer, self._scope = self._scope, f"{self._scope}{name}/"
        try:
            yield
        finally:
            self._scope = outer

    def model(self) -> ir.Model:
        """The finished model."""
        return ir.Model(
            self._graph,
            ir_version=IR_VERSION,
            producer_name="vlp-deploy",
            producer_version=__version__,
        )

    def _same_weight(self, name: str, array: NDArray[Any]) -> Value:
        value = self._graph.initializers[name]
        if value.const_value is None or not np.array_equal(value.const_value.numpy(), array):
            raise ValueError(f"the graph has a weight {name!r} already, with other content")
        return value

    def _constant(self, name: str, value: object, dtype: type[np.generic]) -> Value:
        """An initialiser named by its content: equal constants are one."""
        if name in self._graph.initializers:
            return self._graph.initializers[name]
        return self.weight(name, np.array(value, dtype))

    def _node(
        self, op_type: str, inputs: Sequence[Value], attributes: dict[str, Any], *, outputs: int
    ) -> tuple[Value, ...]:
        name = f"{self._scope}{op_type}"
        count = self._counts[name] = self._counts.get(name, 0) + 1
        name = name if count == 1 else f"{name}_{count}"
        node = ir.node(op_type, inputs, attributes, num_outputs=outputs, name=name)
        for index, value in enumerate(node.outputs):
            value.name = name if outputs == 1 else f"{name}:{index}"
        self._graph.append(node)
        return tuple(node.outputs)


def to_bytes(model: ir.Model) -> bytes:
    """The ONNX file. Raises EngineError if it would pass protobuf's limit of 2 GiB."""
    tensors = (value.const_value for value in model.graph.initializers.values())
    size = sum(tensor.nbytes for tensor in tensors if tensor is not None)
    if size > PROTOBUF_LIMIT:
        raise EngineError(
            f"graph {model.graph.name!r} holds {size / 2**30:.1f} GiB of weights; one ONNX file "
            "holds at most 2 GiB, and bundles have no external data. Use a smaller backbone"
        )
    content: bytes = ir.to_proto(model).SerializeToString()
    return content


def node_count(model: ir.Model) -> int:
    """How many operators the graph has."""
    return len(model.graph)
