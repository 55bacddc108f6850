"""The text tower as an ONNX graph: token ids and learned prompts to a class embedding.

Legend: N rows, L tokens, J prompted layers, m prompt tokens, d width, D joint width. N, L and m are
dynamic; J is written into the graph.
"""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from vlp_deploy.errors import CheckpointError
from vlp_deploy.formats.architecture import ClipConfig
from vlp_export.dialects import PORTABLE, Dialect, GatedRows
from vlp_export.folding import Weights
from vlp_export.graph import GraphBuilder, Value
from vlp_export.transformer import Transformer, normalised

Pick = Callable[[Value], Value]  # (N, L, d) → (N, d), the end of text
Read = Callable[[Value, int], GatedRows | None]  # tokens (N, L, d) and layer → keys and values
BesideTokens = Callable[[Transformer, Value, Pick], Read]  # given an input with N on its first axis


def write_text_graph(
    config: ClipConfig,
    weights: Weights,
    *,
    prompted_layers: int = 1,
    beside: BesideTokens | None = None,
    dialect: Dialect = PORTABLE,
) -> ir.Model:
    """Write the graph `input_ids`, `eot_index`, `slots`, `prompts` → `feature`, `embedding`.

    `input_ids` int64 (N, L); `eot_index` int64 (N,), where the feature is read; `slots` int64
    (N, L): -1 for the token itself, j for prompt j; `prompts` (J, m, d), m may be 0; `feature`
    (N, D); `embedding` (N, D), L2-normalised. Where the tower is not causal, L has to be its whole
    context. `beside` writes what tokens read beside each other,
    once the transformer is known. Raises CheckpointError if J exceeds the layers.
    """
    tower = config.text
    if not 1 <= prompted_layers <= tower.layers:
        raise CheckpointError(
            f"text.prompts is for {prompted_layers} layers, but the text tower has "
            f"{tower.layers}. Train or import it again for this backbone"
        )
    graph = GraphBuilder("text", opset=dialect.opset)
    ids = graph.input("input_ids", ir.DataType.INT64, ("N", "L"))
    eot = graph.input("eot_index", ir.DataType.INT64, ("N",))
    slots = graph.input("slots", ir.DataType.INT64, ("N", "L"))
    prompts = graph.input("prompts", ir.DataType.FLOAT, (prompted_layers, "m", tower.width))
    transformer = Transformer(
        graph=graph,
        weights=weights,
        prefix="transformer",
        tower=tower,
        quick_gelu=config.quick_gelu,
        dialect=dialect,
    )
    replace = _Replacement(graph, slots, prompts, (prompted_layers, tower.width))

    length = graph.op("Shape", ids, start=1, end=2)  # L
    tokens = graph.weight("token_embedding.weight", weights["token_embedding.weight"])
    x = replace(graph.op("Gather", tokens, ids, axis=0), layer=0)  # (N, L, d)
    x = graph.op("Add", x, _positions(graph, weights, length))
    mask = _causal_mask(graph, tower.context_length, length) if tower.causal else None
    rows = graph.op("Unsqueeze", eot, graph.integers(1))  # (N, 1)

    def pick(t: Value) -> Value:
        return graph.op("GatherND", t, rows, batch_dims=1)

    read = _nothing if beside is None else beside(transformer, ids, pick)
    for layer in range(tower.layers):
        if 1 <= layer < prompted_layers:
            x = replace(x, layer=layer)
        if layer < tower.layers - 1:
            x = transformer.block(x, layer, mask=mask, constants=read(x, layer))
    if mask is not None:
        mask = graph.op("Gather", mask, eot, axis=0)  # (N, L): what each end of text may see
        mask = graph.op("Unsqueeze", mask, graph.integers(1, 2))  # (N, 1, 1, L)
    constants = read(x, tower.layers - 1)
    x = transformer.last_block(x, pick, mask=mask, constants=constants)  # (N, d)

    feature = transformer.project(transformer.norm(x, "ln_final"), "text_projection")
    graph.output("feature", feature, ("N", config.embed_dim))
    graph.output("embedding", normalised(graph, feature), ("N", config.embed_dim))
    return graph.model()


def _nothing(x: Value, layer: int) -> None:
    """Tokens read each other only."""


class _Replacement:
    """Writes prompts over the tokens whose slot is not -1 (IVLP's deep text prompting)."""

    def __init__(
        self, graph: GraphBuilder, slots: Value, prompts: Value, shape: tuple[int, int]
    ) -> None:
        layers, width = shape
        self._graph = graph
        # A row of zeros in front, so that slot -1 is a row like any other and m may be 0.
        zeros = graph.weight("no_prompt", np.zeros((layers, 1, width), np.float32))
        self._prompts = graph.op("Concat", zeros, prompts, axis=1)  # (J, 1 + m, d)
        self._rows = graph.op("Add", slots, graph.integer(1))  # (N, L)
        is_prompt = graph.op("Cast", self._rows, to=ir.DataType.BOOL.value)
        self._is_prompt = graph.op("Unsqueeze", is_prompt, graph.integers(2))  # (N, L, 1)

    def __call__(self, x: Value, *, layer: int) -> Value:
        """(N, L, d) → (N, L, d) with the prompts of this layer in their slots."""
        graph = self._graph
        of_layer = graph.op("Gather", self._prompts, graph.integer(layer), axis=0)  # (1 + m, d)
        of_token = graph.op("Gather", of_layer, self._rows, axis=0)  # (N, L, d)
        return graph.op("Where", self._is_prompt, of_token, x)


def _positions(graph: GraphBuilder, weights: Weights, length: Value) -> Value:
    """The first L positional embeddings, (L, d)."""
    positions = graph.weight("positional_embedding", weights["positional_embedding"])
    zero = graph.integers(0)
    return graph.op("Slice", positions, zero, length, zero)


def _causal_mask(graph: GraphBuilder, context_length: int, length: Value) -> Value:
    """(L, L): 0 on and below the diagonal, -inf above, where no token may look."""
    mask = np.triu(np.full((context_length, context_length), -np.inf, np.float32), k=1)
    ends = graph.op("Concat", length, length, axis=0)
    return graph.op(
        "Slice",
        graph.weight("causal_mask", mask),
        graph.integers(0, 0),
        ends,
        graph.integers(0, 1),
    )
