"""Which operators of a graph compute in float32 whatever the precision of the others.

- The patch embedding: it multiplies raw pixels with tiny weights, for 1 % of the arithmetic.
- The tail, from the last LayerNorm on: projection, L2 norm, logits. A rounding there is an error
  of the answer; before it, LayerNorm and 512 terms of a sum even it out. Towers without LayerNorm
  (ResNet, MobileCLIP's) have the last product with weights in its place.
- All that a selection depends on (DPT's tower without prompts): a selection jumps, so a small error
  there is a large one behind it.
- Softmax and L2 norms anywhere: sums of exponentials and squares leave the range of float16.

LayerNorm stays where it is: its `stash_type` says that it takes mean and variance in float32.
"""

from collections import deque
from collections.abc import Callable, Iterable

import onnx_ir as ir

from vlp_export.graph import Value

ALWAYS_EXACT = frozenset({"ReduceL2", "Softmax", "TopK"})
NORM, PRODUCTS = "LayerNormalization", ("Conv", "Gemm", "MatMul")


def exact_nodes(model: ir.Model) -> set[ir.Node]:
    """The operators that have to stay in float32."""
    nodes = list(model.graph)
    exact = {node for node in nodes if node.op_type in ALWAYS_EXACT or _reads_pixels(node)}
    norms = any(node.op_type == NORM for node in nodes)
    exact |= _ancestors(model.graph.outputs, stop=_is_norm if norms else _has_weights)
    chosen = [output for node in nodes if node.op_type == "TopK" for output in node.outputs]
    return exact | _ancestors(chosen, stop=lambda _: False)


def _ancestors(values: Iterable[Value], *, stop: Callable[[ir.Node], bool]) -> set[ir.Node]:
    """What the values are computed by; nothing in front of the nodes to stop at, which count."""
    found: set[ir.Node] = set()
    waiting = deque(value.producer() for value in values)
    while waiting:
        node = waiting.popleft()
        if node is None or node in found:
            continue
        found.add(node)
        if not stop(node):
            waiting.extend(value.producer() for value in node.inputs if value is not None)
    return found


def _is_norm(node: ir.Node) -> bool:
    return node.op_type == NORM


def _has_weights(node: ir.Node) -> bool:
    """Whether it is a product with a constant."""
    factor = node.inputs[1] if node.op_type in PRODUCTS else None
    return factor is not None and factor.const_value is not None


def _reads_pixels(node: ir.Node) -> bool:
    """Whether it is the cast of an image of integers, or the convolution of one."""
    source = node.inputs[0] if node.inputs else None
    if source is None:
        return False
    if node.op_type == "Cast":
        return bool(source.is_graph_input() and source.dtype == ir.DataType.UINT8)
    producer = source.producer()
    return node.op_type == "Conv" and producer is not None and _reads_pixels(producer)
