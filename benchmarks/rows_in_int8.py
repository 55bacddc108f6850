"""From a float32 graph to one whose large products quantise every row of an activation by itself.

The other way to int8 in which no answer depends on its neighbours: instead of one scale fixed at
export, each row (a token) has its own, found while it runs. Written with ONNX's own operators, to
be compared with `vlp_export.quantised`; not shipped.

Legend: T tokens, d_in, d_out the shape of a matrix.
"""

import numpy as np
import onnx_ir as ir

from vlp_export.graph import Value
from vlp_export.quantised import LEAST_SCALE, UNSIGNED, rounded_matrix
from vlp_export.ranges import activation, large_products, matrix
from vlp_export.rewriting import Rewriter, constant

MIDDLE = np.uint8(128)  # stands for 0
STEPS = np.float32(127)  # of a row, on each side of 0


def rows_in_int8(model: ir.Model) -> ir.Model:
    """A copy of `model` with int8 products, whose activations are scaled row by row."""
    rewriter = Rewriter(model)
    made: dict[Value, tuple[Value, Value]] = {}
    for node in large_products(rewriter.model):
        first = activation(node)
        if first not in made:
            made[first] = _rounded_rows(rewriter, first, node)
        product = _product(rewriter, *made[first], node)
        ir.convenience.replace_all_uses_with(node.outputs[0], product)
        rewriter.model.graph.remove(node, safe=True)
    return rewriter.finished()


def _rounded_rows(rewriter: Rewriter, value: Value, before: ir.Node) -> tuple[Value, Value]:
    """An activation (…, T, d_in) in unsigned bytes, and the step of each row (…, T, 1)."""
    name = str(value.name)

    def op(kind: str, *inputs: Value, part: str, **attributes: int) -> Value:
        return rewriter.op(kind, *inputs, name=f"{name}.{part}", before=before, **attributes)

    def number(content: np.ndarray | np.generic, part: str) -> Value:
        return rewriter.weight(f"rows.{part}", np.asarray(content))

    largest = op(
        "ReduceMax", op("Abs", value, part="sizes"), number(np.array([-1]), "axis"), part="largest"
    )
    step = op("Div", largest, number(STEPS, "steps"), part="step")
    step = op("Max", step, number(np.float32(LEAST_SCALE), "least"), part="step.positive")
    units = op("Div", value, step, part="units")
    shifted = op("Add", units, number(np.float32(MIDDLE), "shift"), part="shifted")
    rounded = op("Round", shifted, part="rounded")
    return op("Cast", rounded, part="bytes", to=ir.DataType.UINT8.value), step


def _product(rewriter: Rewriter, rows: Value, step: Value, node: ir.Node) -> Value:
    """The product of rounded rows with the node's matrix (d_in, d_out), in float32."""
    array, name = constant(matrix(node)), matrix(node).name
    assert array is not None
    content, scales = rounded_matrix(array, UNSIGNED)
    own = str(node.outputs[0].name)

    def op(kind: str, *inputs: Value, part: str, **attributes: int) -> Value:
        return rewriter.op(kind, *inputs, name=f"{own}.{part}", before=node, **attributes)

    weights = rewriter.weight(f"{name}.8bit", content)
    middle = rewriter.weight("rows.middle", np.asarray(MIDDLE))
    sums = op("MatMulInteger", rows, weights, middle, part="sums")
    floats = op("Cast", sums, part="floats", to=ir.DataType.FLOAT.value)
    scaled = op("Mul", floats, rewriter.weight(f"{name}.scales", scales), part="columns")
    return op("Mul", scaled, step, part="rows")
