"""CoCoOp as one ONNX graph: image and class suffixes to logits, a text pass for every pair.

The prompts are shifted by the image's feature (arXiv:2203.05557, equation 4), so the text tower is
part of the graph. It runs once an image over what all classes share (R4) and once for every image
and class over the rest, which attends to the keys and values of the former.

Legend: B images, K classes, S suffix tokens, m learned tokens, p = 1 + m prefix tokens (start of
text and learned ones), d width of the text tower, D joint width. B, K and S are dynamic. Rows of
image and class are B·K, the classes of an image behind each other.
"""

import numpy as np
import onnx_ir as ir

from vlp_deploy.classes.conditioned import CLASS_SUFFIX, SUFFIX_END, MetaNet
from vlp_deploy.errors import CheckpointError
from vlp_deploy.formats.architecture import ClipConfig, Preprocessing, TextTower
from vlp_export.dialects import PORTABLE, Dialect, Projections
from vlp_export.folding import Floats, Weights, start_of_text_rows
from vlp_export.graph import GraphBuilder, Value
from vlp_export.image_graph import image_transformer, write_image_tower
from vlp_export.repeat import Repeater
from vlp_export.transformer import Transformer, normalised

SharedRows = tuple[Value, Value]  # keys and values of an image's prefix, (B, p, d) each


def write_conditioned_graph(
    config: ClipConfig,
    weights: Weights,
    *,
    preprocessing: Preprocessing,
    prompts: Floats,
    meta_net: MetaNet,
    dialect: Dialect = PORTABLE,
) -> ir.Model:
    """Write the graph `image`, `class_suffix`, `suffix_end` → `embedding`, `logits`.

    `image` uint8 (B, 3, S, S) of the image size; `class_suffix` (K, S, d), the embedded tokens
    behind the learned ones; `suffix_end` int64 (K,), where each suffix has its end of text;
    `embedding` (B, D), L2-normalised; `logits` (B, K), logit scale included. `prompts` (1, m, d)
    are folded in. Raises CheckpointError for prompts of more than one layer.
    """
    if len(prompts) != 1:
        raise CheckpointError(
            f"text.prompts is for {len(prompts)} layers; prompts that depend on the image stand at "
            "the input only. Train or import it again"
        )
    size, width = config.vision.image_size, config.text.width
    graph = GraphBuilder("image", opset=dialect.opset)
    image = graph.input("image", ir.DataType.UINT8, ("B", 3, size, size))
    suffix = graph.input(CLASS_SUFFIX, ir.DataType.FLOAT, ("K", "S", width))
    end = graph.input(SUFFIX_END, ir.DataType.INT64, ("K",))
    embedding = write_image_tower(
        image_transformer(graph, config, weights, dialect), image, preprocessing=preprocessing
    )
    text = Transformer(
        graph=graph,
        weights=weights,
        prefix="transformer",
        tower=config.text,
        quick_gelu=config.quick_gelu,
        dialect=dialect,
    )
    shifted = _shifted_prompts(graph, embedding, weights, prompts[0], meta_net)
    prefixes = _prefixes(text, shifted, image, tokens=prompts.shape[1])
    pairs = _Pairs(graph, image, suffix, (1 + prompts.shape[1], width))
    feature = _suffix_features(text, pairs, suffix, end, prefixes)  # (B·K, D)
    logits = _logits(graph, pairs, embedding, feature, scale=float(np.exp(weights["logit_scale"])))
    graph.output("embedding", embedding, ("B", config.embed_dim))
    graph.output("logits", logits, ("B", "K"))
    return graph.model()


def write_suffix_graph(
    config: ClipConfig, weights: Weights, *, prefix: int, dialect: Dialect = PORTABLE
) -> ir.Model:
    """Write the graph `input_ids` → `class_suffix`: tokens behind the prefix, embedded.

    `input_ids` int64 (K, L), whole rows; `class_suffix` (K, L - p, d), token plus position. All
    that new classes need: the rest of the text tower is in the image's graph.
    """
    graph = GraphBuilder(CLASS_SUFFIX, opset=dialect.opset)
    ids = graph.input("input_ids", ir.DataType.INT64, ("K", "L"))
    start, length = graph.integers(prefix), graph.op("Shape", ids, start=1, end=2)
    behind = graph.op("Slice", ids, start, length, graph.integers(1))  # (K, S)
    tokens = graph.weight("token_embedding.weight", weights["token_embedding.weight"])
    rows = graph.op("Gather", tokens, behind, axis=0)  # (K, S, d)
    positions = graph.weight("positional_embedding", weights["positional_embedding"])
    positions = graph.op("Slice", positions, start, length, graph.integers(0))  # (S, d)
    graph.output(CLASS_SUFFIX, graph.op("Add", rows, positions), ("K", "S", config.text.width))
    return graph.model()


def _shifted_prompts(
    graph: GraphBuilder, embedding: Value, weights: Weights, prompts: Floats, meta_net: MetaNet
) -> Value:
    """The learned tokens at their positions as each image has them, (B, D) → (B, m, d)."""
    weight = graph.weight
    with graph.scope("meta_net"):
        hidden = graph.op(
            "Gemm",
            embedding,
            weight("cocoop.linear1.weight", meta_net.weight_1.T),
            weight("cocoop.linear1.bias", meta_net.bias_1),
        )
        shift = graph.op(
            "Gemm",
            graph.op("Relu", hidden),
            weight("cocoop.linear2.weight", meta_net.weight_2.T),
            weight("cocoop.linear2.bias", meta_net.bias_2),
        )  # (B, d), one for all m tokens
        placed = prompts + weights["positional_embedding"][1 : 1 + len(prompts)]
        shift = graph.op("Unsqueeze", shift, graph.integers(1))
        return graph.op("Add", weight("text.prompts", placed[None]), shift)


def _prefixes(text: Transformer, x: Value, image: Value, *, tokens: int) -> list[SharedRows]:
    """What classes see of each image's prefix in every block; `x` (B, m, d) are its prompts.

    Start of text sees nothing but itself: its keys and values are constants.
    """
    graph, last = text.graph, text.tower.layers - 1
    repeat = Repeater(graph, image)
    future = np.triu(np.full((1 + tokens, 1 + tokens), -np.inf, np.float32), k=1)
    mask = graph.weight("prefix_mask", future[1:])  # (m, p)
    constants = start_of_text_rows(text.weights, text.tower, quick_gelu=text.quick_gelu)
    prefixes = []
    with graph.scope("prefix"):
        for layer, (keys, values) in enumerate(constants):
            start = (
                repeat(f"start_of_text.{layer}.keys", keys),
                repeat(f"start_of_text.{layer}.values", values),
            )
            if layer == last:  # nothing is read behind it
                prefixes.append(_joined(graph, start, text.keys_values(x, layer)))
                break
            query, *own = text.projections(x, layer)
            prefixes.append(_joined(graph, start, (own[0], own[1])))
            x = text.attend(x, Projections(query, *prefixes[-1]), layer, mask=mask)
    return prefixes


def _suffix_features(
    text: Transformer, pairs: "_Pairs", suffix: Value, end: Value, prefixes: list[SharedRows]
) -> Value:
    """The text tower over the suffix of every image and class, (K, S, d) → (B·K, D)."""
    graph, tower = text.graph, text.tower
    assert isinstance(tower, TextTower)
    x = pairs.of_classes(suffix, rank=3)  # (B·K, S, d)
    ends = pairs.of_classes(end, rank=1)  # (B·K,)
    mask = _suffix_mask(graph, suffix, tower.context_length, prefix=pairs.prefix)
    for layer, prefix in enumerate(prefixes[:-1]):
        query, *own = text.projections(x, layer)
        rows = _joined(graph, pairs.of_images(prefix), (own[0], own[1]))
        x = text.attend(x, Projections(query, *rows), layer, mask=mask)
    rows_of_ends = graph.op("Unsqueeze", ends, graph.integers(1))

    def pick(t: Value) -> Value:
        return graph.op("GatherND", t, rows_of_ends, batch_dims=1)

    query, *own = text.picked_projections(x, pick, tower.layers - 1)
    rows = _joined(graph, pairs.of_images(prefixes[-1]), (own[0], own[1]))
    seen = graph.op("Gather", mask, ends, axis=0)  # (B·K, p + S)
    seen = graph.op("Unsqueeze", seen, graph.integers(1, 2))
    x = text.attend(
        pick(x), Projections(query, *rows), tower.layers - 1, one_query=True, mask=seen
    )  # (B·K, d)
    return text.project(text.norm(x, "ln_final"), "text_projection")


def _suffix_mask(graph: GraphBuilder, suffix: Value, context: int, *, prefix: int) -> Value:
    """(S, p + S): 0 where a suffix token may look, the prefix in front; -inf ahead of it."""
    future = np.triu(np.full((context, context), -np.inf, np.float32), k=1)
    length = graph.op("Shape", suffix, start=1, end=2)
    ends = graph.op("Concat", length, graph.op("Add", length, graph.integers(prefix)), axis=0)
    mask = graph.weight("causal_mask", future[prefix:])
    return graph.op("Slice", mask, graph.integers(0, 0), ends, graph.integers(0, 1))


def _logits(
    graph: GraphBuilder, pairs: "_Pairs", embedding: Value, feature: Value, *, scale: float
) -> Value:
    """Scaled cosines of every image with its own class features, (B, D), (B·K, D) → (B, K)."""
    classes = graph.op("Reshape", normalised(graph, feature), pairs.apart())  # (B, K, D)
    images = graph.op("Mul", embedding, graph.number(scale))
    images = graph.op("Unsqueeze", images, graph.integers(2))  # (B, D, 1)
    return graph.op("Squeeze", graph.op("MatMul", classes, images), graph.integers(2))


class _Pairs:
    """Repeats what images or classes have for every pair of them, B·K rows."""

    def __init__(self, graph: GraphBuilder, image: Value, suffix: Value, shape: tuple[int, int]):
        self._graph = graph
        self.prefix, self._width = shape
        self._images = graph.op("Shape", image, start=0, end=1)
        self._classes = graph.op("Shape", suffix, start=0, end=1)
        one = graph.integers(1)
        self._over_classes = graph.op("Concat", one, self._classes, one, one, axis=0)

    def of_images(self, rows: SharedRows) -> SharedRows:
        """(B, p, d) each → (B·K, p, d) each."""
        op, integers = self._graph.op, self._graph.integers
        each = (op("Unsqueeze", row, integers(1)) for row in rows)
        each = (op("Expand", row, self._over_classes) for row in each)  # (B, K, p, d)
        keys, values = (op("Reshape", row, integers(-1, self.prefix, self._width)) for row in each)
        return keys, values

    def of_classes(self, x: Value, *, rank: int) -> Value:
        """(K, …) → (B·K, …)."""
        op, integers = self._graph.op, self._graph.integers
        shape = op("Concat", self._images, integers(*[1] * rank), axis=0)
        repeated = op("Expand", op("Unsqueeze", x, integers(0)), shape)  # (B, K, …)
        merged = op("Concat", integers(-1), op("Shape", x, start=1), axis=0)
        return op("Reshape", repeated, merged)

    def apart(self) -> Value:
        """The shape (B, K, …) of rows (B·K, …)."""
        return self._graph.op(
            "Concat", self._images, self._classes, self._graph.integers(-1), axis=0
        )


def _joined(graph: GraphBuilder, before: SharedRows, own: SharedRows) -> SharedRows:
    """Keys and values of a prefix in front of those of the tokens behind it."""
    keys, values = (graph.op("Concat", *pair, axis=1) for pair in zip(before, own, strict=True))
    return keys, values
