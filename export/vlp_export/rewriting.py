"""From a written graph to another one with the same inputs and outputs: the tool of every rewrite.

A rewrite works on a copy, which shares its weights with the graph it came from.
"""

from collections.abc import Iterator
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import ShapeInferencePass

from vlp_export.graph import Attribute, Value


class Rewriter:
    """Puts operators in front of others, and new weights beside the old ones."""

    def __init__(self, model: ir.Model) -> None:
        self._model = model.clone()
        self._graph = self._model.graph

    @property
    def model(self) -> ir.Model:
        """The copy, in the state it is in."""
        return self._model

    def nodes(self) -> Iterator[ir.Node]:
        """The operators as they are now; adding others on the way is allowed."""
        yield from list(self._graph)

    def require_opset(self, least: int) -> None:
        """Write in a newer opset if the graph's is older; operators here mean the same in it."""
        opsets = self._graph.opset_imports
        opsets[""] = max(opsets[""], least)

    def weight(self, name: str, array: NDArray[Any]) -> Value:
        """The initialiser of this name, made of `array` if there is none yet."""
        if name not in self._graph.initializers:
            value = ir.val(name, const_value=ir.tensor(array, name=name))
            self._graph.register_initializer(value)
        return self._graph.initializers[name]

    def op(
        self, op_type: str, *inputs: Value, name: str, before: ir.Node, **attributes: Attribute
    ) -> Value:
        """One node in front of another; it and its output are called `name`."""
        node = ir.node(op_type, inputs, attributes, name=name)
        node.outputs[0].name = name
        self._graph.insert_before(before, node)
        return node.outputs[0]

    def finished(self) -> ir.Model:
        """The copy, without the weights that nothing reads any more."""
        unread = [name for name, value in self._graph.initializers.items() if not value.uses()]
        for name in unread:
            del self._graph.initializers[name]
        return self._model


def constant(value: Value | None) -> NDArray[Any] | None:
    """What an initialiser holds; None for what is computed."""
    if value is None or value.const_value is None:
        return None
    return value.const_value.numpy()


def value_types(model: ir.Model) -> dict[str, ir.DataType]:
    """The type of every value by its name, as ONNX infers them."""
    inferred = model.clone()
    ShapeInferencePass()(inferred)
    graph = inferred.graph
    values = [*graph.inputs, *graph.initializers.values()]
    values += [output for node in graph for output in node.outputs]
    return {str(value.name): value.dtype for value in values if value.dtype is not None}
