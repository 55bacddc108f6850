"""The ways to write attention in ONNX. Everything else in a graph is the same in every dialect.

`PORTABLE` says it in products and a softmax, which every engine reads. `FUSED` says it in one
operator, so that an engine with a kernel for attention need not recognise it.

Legend: B rows, h heads, d width, T queries, S keys, m constant rows.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from vlp_deploy.errors import EngineError
from vlp_export.folding import Floats, KeysValues
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


class GatedRows(NamedTuple):
    """Further keys and values whose weight beside the tokens' a gate decides (DPL).

    `bias` (1, h, 1, 1) is added to their scores; or `share` is what they have of the answer and
    `rest` what the tokens have.
    """

    keys: Value  # (1 or B, h, d/h, m)
    values: Value  # (B, h, m, d/h)
    bias: Value | None = None
    share: Value | None = None
    rest: Value | None = None


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
        constants: ConstantRows | GatedRows | None = None,
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
    constants: ConstantRows | GatedRows | None = None,
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
    if isinstance(constants, ConstantRows):
        name, (more_keys, more_values), repeat = constants
        more = repeat(f"{name}.keys", more_keys.swapaxes(2, 3))
        keys = graph.op("Concat", keys, more, axis=3)  # (B, h, d/h, S + m)
        more = repeat(f"{name}.values", more_values)
        values = graph.op("Concat", values, more, axis=2)  # (B, h, S + m, d/h)
    scores = graph.op("MatMul", query, keys)  # (B, h, T, S)
    if mask is not None:
        scores = graph.op("Add", scores, mask)
    if isinstance(constants, GatedRows):
        attended = _gated(graph, query, scores, values, constants)
    else:
        attended = _read(graph, scores, values)  # (B, h, T, d/h)
    if one_query:
        return graph.op("Reshape", attended, graph.integers(0, -1))
    attended = graph.op("Transpose", attended, perm=[0, 2, 1, 3])
    return graph.op("Reshape", attended, graph.integers(0, 0, -1))


def one_operator(
    graph: GraphBuilder,
    projections: Projections,
    *,
    heads: int,
    one_query: bool = False,
    mask: Value | None = None,
    constants: ConstantRows | GatedRows | None = None,
) -> Value:
    """The operator Attention of opset 23, on rows (B, T, d) whose heads it splits itself.

    Its scale is 1, since the query is scaled already. Gates are beyond it: they act on the scores
    of single heads, and are written as in `decomposed`.
    """
    if isinstance(constants, GatedRows):
        return decomposed(
            graph,
            projections,
            heads=heads,
            one_query=one_query,
            mask=mask,
            constants=constants,
        )
    query, keys, values = projections
    if one_query:
        query = graph.op("Unsqueeze", query, graph.integers(1))
    if constants is not None:
        more_keys, more_values = (  # (B, m, d)
            constants.repeat(f"{constants.name}.{kind}", _merged_heads(part))
            for kind, part in zip(("keys", "values"), constants.keys_values, strict=True)
        )
        keys = graph.op("Concat", keys, more_keys, axis=1)  # (B, S + m, d)
        values = graph.op("Concat", values, more_values, axis=1)
    inputs = (query, keys, values) if mask is None else (query, keys, values, mask)
    attended = graph.op("Attention", *inputs, q_num_heads=heads, kv_num_heads=heads, scale=1.0)
    return graph.op("Squeeze", attended, graph.integers(1)) if one_query else attended


def _merged_heads(rows: Floats) -> Floats:
    """(1, h, m, d/h) → (1, m, d)."""
    return rows.swapaxes(1, 2).reshape(1, rows.shape[2], -1)


def _gated(
    graph: GraphBuilder, query: Value, scores: Value, values: Value, rows: GatedRows
) -> Value:
    """One softmax over tokens and further rows, or two that are mixed by a fixed share.

    Queries (B, h, T, d/h), scores (B, h, T, S), values (B, h, S, d/h) → (B, h, T, d/h).
    """
    others = graph.op("MatMul", query, rows.keys)  # (B, h, T, m)
    if rows.share is not None and rows.rest is not None:
        own = graph.op("Mul", _read(graph, scores, values), rows.rest)
        return graph.op("Add", own, graph.op("Mul", _read(graph, others, rows.values), rows.share))
    if rows.bias is not None:
        others = graph.op("Add", others, rows.bias)
    scores = graph.op("Concat", scores, others, axis=3)  # (B, h, T, S + m)
    return _read(graph, scores, graph.op("Concat", values, rows.values, axis=2))


def _read(graph: GraphBuilder, scores: Value, values: Value) -> Value:
    return graph.op("MatMul", graph.op("Softmax", scores, axis=-1), values)


PORTABLE = Dialect(opset=18, attend=decomposed)
FUSED = Dialect(opset=23, attend=one_operator)

# By engine. No processor's engine is faster with the operator, see benchmarks/bench_dialects.py.
# TensorRT for RTX 1.7 finds attention in products and a softmax and fuses the same layers; as an
# operator it refuses `softmax_precision`, and of one image in float32, 17 tokens and heads of 32,
# its builder fails.
DIALECTS = {
    "onnx": PORTABLE,
    "openvino": PORTABLE,
    "tensorrt": PORTABLE,
    "tensorrt-rtx": PORTABLE,
}


def dialect_of(engine: str) -> Dialect:
    """What an engine reads best. Raises EngineError for one that graphs are not written for."""
    if engine not in DIALECTS:
        raise EngineError(
            f"engine {engine!r} cannot be exported for. This version exports for "
            f"{', '.join(DIALECTS)}"
        )
    return DIALECTS[engine]
