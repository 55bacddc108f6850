"""From a float32 graph to the same graph in float16 or bfloat16: weights, products, attention.

What stays in float32 says `vlp_export.exact`; inputs and outputs keep their types, so that whoever
runs the graph need not know. A value that is wanted in both types is cast once.

Engines without units for these types run such a graph in float32 between casts.
"""

from collections.abc import Iterable

import ml_dtypes
import numpy as np
import onnx.defs
import onnx_ir as ir

from vlp_export.exact import exact_nodes
from vlp_export.graph import Value
from vlp_export.rewriting import Rewriter, constant, value_types

TYPES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
NAMES = {"fp16": "tensor(float16)", "bf16": "tensor(bfloat16)"}
ARRAYS = {"fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}


def typed(model: ir.Model, precision: str) -> ir.Model:
    """A copy of `model` that computes in `precision`, fp16 or bf16."""
    types = value_types(model)
    rewriter = Rewriter(model)
    exact = exact_nodes(rewriter.model)
    casts = _Casts(rewriter, precision)
    opset = model.graph.opset_imports[""]
    for node in rewriter.nodes():
        floats = [
            (index, value)
            for index, value in enumerate(node.inputs)
            if value is not None and types[str(value.name)] == ir.DataType.FLOAT
        ]
        low = bool(floats) and node not in exact and _takes(node, precision, opset)
        for index, value in floats:
            node.replace_input_with(index, casts.of(value, low=low, before=node))
        if low and node.op_type == "Attention":
            node.attributes["softmax_precision"] = ir.AttrInt64(
                "softmax_precision", ir.DataType.FLOAT.value
            )
        if low:
            casts.written_low(node.outputs)
    return rewriter.finished()


def _takes(node: ir.Node, precision: str, opset: int) -> bool:
    """Whether an operator knows `precision`; convolutions learn bfloat16 in opset 22 only."""
    constraints = onnx.defs.get_schema(node.op_type, opset, "").type_constraints
    known = any(NAMES[precision] in constraint.allowed_type_strs for constraint in constraints)
    return known and node.op_type != "Cast"


class _Casts:
    """Values in the type that an operator wants them in."""

    def __init__(self, rewriter: Rewriter, precision: str) -> None:
        self._rewriter = rewriter
        self._precision = precision
        self._low: set[Value] = set()
        self._made: dict[Value, Value] = {}

    def written_low(self, values: Iterable[Value]) -> None:
        """These values are computed in the low precision."""
        self._low.update(values)

    def of(self, value: Value, *, low: bool, before: ir.Node) -> Value:
        """`value`, in the low precision or in float32."""
        if low == (value in self._low):
            return value
        if value not in self._made:
            self._made[value] = self._cast(value, low, before)
        return self._made[value]

    def _cast(self, value: Value, low: bool, before: ir.Node) -> Value:
        array, kind = constant(value), self._precision if low else "fp32"
        if array is not None:
            return self._rewriter.weight(f"{value.name}.{kind}", array.astype(ARRAYS[kind]))
        wanted = TYPES[kind] if low else ir.DataType.FLOAT
        return self._rewriter.op(
            "Cast", value, name=f"{value.name}.{kind}", before=before, to=wanted.value
        )


def emulated(model: ir.Model) -> ir.Model:
    """A copy of a bfloat16 graph for engines that know bfloat16 only as something to cast to.

    It computes in float32, of factors rounded as they are in `model`.
    """
    types = value_types(model)
    rewriter = Rewriter(model)
    made: dict[Value, Value] = {}
    for node in rewriter.nodes():
        for index, value in enumerate(node.inputs):
            if value is None or types[str(value.name)] != TYPES["bf16"]:
                continue
            if value not in made:
                made[value] = _rounded(rewriter, value, node)
            node.replace_input_with(index, made[value])
    return rewriter.finished()


def _rounded(rewriter: Rewriter, value: Value, before: ir.Node) -> Value:
    """What bfloat16 leaves of a value, in float32."""
    array, name = constant(value), value.name
    if array is not None:
        return rewriter.weight(f"{name}.wide", array.astype(np.float32))
    narrow, wide = TYPES["bf16"].value, ir.DataType.FLOAT.value
    rounded = rewriter.op("Cast", value, name=f"{name}.narrow", before=before, to=narrow)
    return rewriter.op("Cast", rounded, name=f"{name}.wide", before=before, to=wide)
