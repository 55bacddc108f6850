"""The shapes of a graph's values as a run has them, where shape inference cannot follow."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from vlp_export.flops import FORMULAS, Shape
from vlp_export.session import Session


def shapes_of_a_run(model: ir.Model, inputs: Mapping[str, Sequence[int]]) -> dict[str, Shape]:
    """Shape of every value that an operator with products reads or makes.

    The graph is run once, on zeros of the shapes of `inputs`.
    """
    counted = [node for node in model.graph if node.op_type in FORMULAS]
    values = [value for node in counted for value in (*node.inputs, *node.outputs) if value]
    known: dict[str, Shape] = {name: tuple(shape) for name, shape in inputs.items()}
    for name, value in model.graph.initializers.items():
        if value.const_value is not None:
            known[name] = tuple(value.const_value.shape.numpy())
    asked = {str(value.name) for value in values} - known.keys()
    proto = ir.to_proto(model)
    outputs = {output.name for output in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(asked - outputs))
    zeros = {
        str(value.name): np.zeros(inputs[str(value.name)], _dtype(value))
        for value in model.graph.inputs
    }
    answers = Session(proto.SerializeToString())(zeros)
    return known | {name: answers[name].shape for name in asked}


def _dtype(value: ir.Value) -> "np.dtype[Any]":
    return (value.dtype or ir.DataType.FLOAT).numpy()
