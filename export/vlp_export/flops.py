"""Floating-point operations and operators, counted from a written graph.

Counted are the multiply-accumulates of MatMul, Gemm, Conv and Attention, two operations each.
Everything else (LayerNormalization, Softmax, activations, data movement) is not: it is below 1 % in
a CLIP tower.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import onnx
import onnx_ir as ir
from onnx import helper

Shape = tuple[int, ...]
SHAPE_CONSTANT = 64  # shape inference reads initialisers of up to this many integers


def count_flops(model: ir.Model, inputs: Mapping[str, Sequence[int]]) -> int:
    """FLOPs of one run with inputs of these shapes.

    Raises ValueError for an operator this module does not know, so that none is missed silently.
    """
    return sum_flops(model, _all_shapes(model, inputs))


def sum_flops(model: ir.Model, shapes: Mapping[str, Shape]) -> int:
    """FLOPs of a run whose values, as far as products read or make them, have these shapes.

    Raises ValueError as `count_flops` does.
    """
    total = 0
    for node in model.graph:
        formula = FORMULAS.get(node.op_type)
        if formula is not None:
            operands = [_known(shapes, value) for value in node.inputs[:2] if value is not None]
            total += 2 * formula(operands, _known(shapes, node.outputs[0]))
        elif node.op_type not in WITHOUT_PRODUCTS:
            raise ValueError(f"no rule to count {node.op_type}: add one to vlp_export.flops")
    return total


def _known(shapes: Mapping[str, Shape], value: ir.Value) -> Shape:
    name = str(value.name)
    if name not in shapes:
        raise ValueError(f"shape inference does not find the shape of {name}")
    return shapes[name]


def _conv(operands: Sequence[Shape], output: Shape) -> int:
    return math.prod(output) * math.prod(operands[1][1:])  # weight (d, channels / group, p, p)


def _matmul(operands: Sequence[Shape], output: Shape) -> int:
    return math.prod(output) * operands[0][-1]


def _attention(operands: Sequence[Shape], output: Shape) -> int:
    """S products for every element of the output (B, T, d) make scores, as many make answers."""
    keys = operands[1]  # (B, S, d)
    return 2 * math.prod(output) * keys[-2]


# operator -> multiply-accumulates from the shapes of its two factors and its output
FORMULAS: dict[str, Callable[[Sequence[Shape], Shape], int]] = {
    "Attention": _attention,
    "Conv": _conv,
    "Gemm": _matmul,
    "MatMul": _matmul,
}
WITHOUT_PRODUCTS = frozenset(
    {
        *("Add", "AveragePool", "BatchNormalization", "Cast", "Clip", "Concat"),
        *("DequantizeLinear", "Div", "Erf", "Expand", "Flatten", "Gather", "GatherND", "Gelu"),
        *("GlobalAveragePool", "HardSigmoid", "HardSwish", "Identity", "LayerNormalization"),
        *("MaxPool", "Mul", "Neg", "Pad", "Pow", "QuantizeLinear", "Range", "ReduceL2"),
        *("ReduceMax", "ReduceMean", "ReduceSum", "Relu", "Reshape", "Shape", "Sigmoid"),
        *("Slice", "Softmax", "Split", "Sqrt", "Squeeze", "Sub", "Tanh", "TopK", "Transpose"),
        *("Unsqueeze", "Where"),
    }
)


def _all_shapes(model: ir.Model, inputs: Mapping[str, Sequence[int]]) -> dict[str, Shape]:
    """Shape of every value for which ONNX's own shape inference finds one.

    Weights enter as inputs without content: their shapes are all that is needed.
    """
    typed, constants = [], []
    for value in model.graph.inputs:
        typed.append(_typed(value, inputs[str(value.name)]))
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None:
            raise ValueError(f"initialiser {value.name} has no content")
        if tensor.dtype == ir.DataType.INT64 and tensor.size <= SHAPE_CONSTANT:
            constants.append(ir.to_proto(tensor))
        else:
            typed.append(_typed(value, tensor.shape.numpy()))
    nodes = [ir.to_proto(node) for node in model.graph]
    found = _inferred(model, nodes, typed, constants)
    if any(node.op_type == "TopK" for node in nodes):  # inference wants its count as a constant
        sizes = {node.output[0]: _size(node, found) for node in nodes if node.op_type == "Shape"}
        constants += [
            helper.make_tensor(name, onnx.TensorProto.INT64, [len(size)], size)
            for name, size in sizes.items()
        ]
        rest = [node for node in nodes if node.op_type != "Shape"]
        found = _inferred(model, rest, typed, constants)
    return found


def _size(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> Shape:
    """What a Shape node gives."""
    bounds = {attribute.name: attribute.i for attribute in node.attribute}
    return shapes[node.input[0]][bounds.get("start") : bounds.get("end")]


def _inferred(
    model: ir.Model,
    nodes: Sequence[onnx.NodeProto],
    typed: Sequence[onnx.ValueInfoProto],
    constants: Sequence[onnx.TensorProto],
) -> dict[str, Shape]:
    graph = helper.make_graph(
        nodes,
        model.graph.name or "graph",
        typed,
        [helper.make_empty_tensor_value_info(str(value.name)) for value in model.graph.outputs],
        constants,
    )
    opsets = [helper.make_opsetid(domain, v) for domain, v in model.graph.opset_imports.items()]
    skeleton = helper.make_model(graph, opset_imports=opsets, ir_version=model.ir_version)
    inferred = onnx.shape_inference.infer_shapes(skeleton, strict_mode=True, data_prop=True).graph
    found = {tensor.name: tuple(tensor.dims) for tensor in constants}
    for info in (*inferred.input, *inferred.value_info, *inferred.output):
        sizes = info.type.tensor_type.shape.dim
        if all(size.HasField("dim_value") for size in sizes):
            found[info.name] = tuple(size.dim_value for size in sizes)
    return found


def _typed(value: ir.Value, shape: Sequence[int]) -> onnx.ValueInfoProto:
    dtype = value.dtype if value.dtype is not None else ir.DataType.FLOAT
    return helper.make_tensor_value_info(str(value.name), dtype.value, list(shape))
