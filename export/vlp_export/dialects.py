"""The ways to write attention in ONNX. Everything else in a graph is the same in every dialect.

Legend: B rows, h heads, d width, T queries, S keys, m constant rows.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from vlp_export.folding import KeysValues
from vlp_export.graph import GraphBuilder, Value
from vlp_export.repeat import Repeater


class Projections(NamedTuple):
    """What attention works on. The query carries the factor 1/sqrt(d/h) already."""

    query: Value  # (B, T, d), or (B, d) for one query a row
    keys: Value  # (B, S, d)
    values: Value  # (B, S, d)


class ConstantRows(NamedTuple):
    """Further keys and values, the same for every row of the batch (R1)."""

    name: str
    keys_values: KeysValues  # (1, h, m, d/h) each
    repeat: Repeater


class Attend(Protocol):
    """Writes attention of `projections`, merged over the heads to the query's shape."""

    def __call__(
        self,
        graph: GraphBuilder,
        projections: Projections,
        *,
        heads: int,
        one_query: bool = False,
        mask: Value | None = None,
        constants: ConstantRows | None = None,
    ) -> Value: ...


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """An opset and how attention is written in it."""

    opset: int
    attend: Attend


def decomposed(
    graph: GraphBuilder,
    projections: Projections,
    *,
    heads: int,
    one_query: bool = False,
    mask: Value | None = None,
    constants: ConstantRows | None = None,
) -> Value:
    """MatMul, Softmax, MatMul: every engine reads it. The keys are written transposed at once."""
    split_heads = graph.integers(0, 0, heads, -1)
    if one_query:
        query = graph.op("Reshape", projections.query, graph.integers(0, heads, 1, -1))
    else:
        query = graph.op("Reshape", projections.query, split_heads)
        query = graph.op("Transpose", query, perm=[0, 2, 1, 3])  # (B, h, T, d/h)
    keys = graph.op("Reshape", projections.keys, split_heads)
    keys = graph.op("Transpose", keys, perm=[0, 2, 3, 1])  # (B, h, d/h, S)
    values = graph.op("Reshape", projections.values, split_heads)
    values = graph.op("Transpose", values, perm=[0, 2, 1, 3])  # (B, h, S, d/h)
    if constants is not None:
        name, (more_keys, more_values), repeat = constants
        more = repeat(f"{name}.keys", more_keys.swapaxes(2, 3))
        keys = graph.op("Concat", keys, more, axis=3)  # (B, h, d/h, S + m)
        more = repeat(f"{name}.values", more_values)
        values = graph.op("Concat", values, more, axis=2)  # (B, h, S + m, d/h)
    scores = graph.op("MatMul", query, keys)  # (B, h, T, S)
    if mask is not None:
        scores = graph.op("Add", scores, mask)
    attended = graph.op("MatMul", graph.op("Softmax", scores, axis=-1), values)  # (B, h, T, d/h)
    if one_query:
        return graph.op("Reshape", attended, graph.integers(0, -1))
    attended = graph.op("Transpose", attended, perm=[0, 2, 1, 3])
    return graph.op("Reshape", attended, graph.integers(0, 0, -1))


PORTABLE = Dialect(opset=18, attend=decomposed)
