"""DPT's image tower as an ONNX graph: classes are selected for an image, and make prompts for it.

Nothing in it depends on the number of classes but the sizes of axes. The un-prompted tower that
selects classes shares everything with the prompted one up to the first block's attention. Where
there are no more classes than would be selected, the graph has no selector.

Source: DPT with CAVPT (arXiv:2208.08340), section 3.3.

Legend: B images, T tokens (class token, patches), K classes, c classes selected for an image, n
class-aware layers, r learned keys, q width of the attention that makes prompts, m prompt tokens,
d width of the image tower, D joint width, S image size.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vlp_deploy.errors import CheckpointError
from vlp_deploy.formats.architecture import ClipConfig, Preprocessing, VisionTower, VisualLayout
from vlp_deploy.formats.bundle import CLASS_BANK, SELECTOR_LOGITS, SELECTOR_MATRIX
from vlp_export.dialects import PORTABLE, ConstantRows, Dialect, Projections
from vlp_export.folding import (
    LAYER_NORM_EPSILON,
    Floats,
    Weights,
    constant_keys_values,
    place_visual_prompts,
)
from vlp_export.graph import GraphBuilder, Value
from vlp_export.image_graph import (
    PROMPTS,
    class_token,
    image_embedding,
    image_tokens,
    image_transformer,
    write_head,
)
from vlp_export.repeat import Repeater
from vlp_export.transformer import Transformer


@dataclass(frozen=True, kw_only=True)
class Generator:
    """What makes the prompts of one layer; the meta networks run where class inputs are made."""

    query: Floats  # (q, d)
    key: Floats  # (q, d)
    value: Floats  # (d, d)
    context: Floats  # (r, d)
    norm_weight: Floats  # (d,)
    norm_bias: Floats  # (d,)


def generators(tensors: Mapping[str, NDArray[Any]], tower: VisionTower) -> list[Generator]:
    """One for each class-aware layer. Raises CheckpointError for tensors that do not fit."""
    names = {
        "query": "cavpt.query.weight",
        "key": "cavpt.key.weight",
        "value": "cavpt.value.weight",
        "context": "cavpt.context",
        "norm_weight": "cavpt.norm.weight",
        "norm_bias": "cavpt.norm.bias",
    }
    if missing := [name for name in names.values() if name not in tensors]:
        raise CheckpointError(f"prompt checkpoint: {missing[0]} is missing; DPT needs it")
    layers = len(tensors["cavpt.context"])
    for name in names.values():
        shape = tensors[name].shape
        if shape[0] != layers or shape[-1] != tower.width:
            raise CheckpointError(
                f"prompt checkpoint: {name} is {shape}; expected {layers} layers of width "
                f"{tower.width}. Train or import it again"
            )
    plain = len(tensors.get(PROMPTS, ()))
    if plain + layers != tower.layers:
        raise CheckpointError(
            f"prompt checkpoint: {plain} layers with visual prompts and {layers} class-aware ones "
            f"are not the image tower's {tower.layers}. Train or import it again"
        )
    return [
        Generator(**{field: tensors[name][layer] for field, name in names.items()})
        for layer in range(layers)
    ]


def write_class_aware_graph(
    config: ClipConfig,
    weights: Weights,
    *,
    preprocessing: Preprocessing,
    tensors: Mapping[str, NDArray[Any]],
    selected: int | None,
    dialect: Dialect = PORTABLE,
) -> ir.Model:
    """Write the graph `image`, `class_bank` and the head's inputs → `embedding`, `logits`.

    `class_bank` (n, K, d) are the queries of `vlp_deploy.classes.class_aware`. With `selected`
    there are also the input `selector_matrix` (D, K), logit scale included, and the output
    `selector_logits` (B, K): the c = min(selected, K) largest choose the classes. Without, all
    classes are chosen.
    Raises CheckpointError.
    """
    tower = config.vision
    made = generators(tensors, tower)
    graph = GraphBuilder("image", opset=dialect.opset)
    size = tower.image_size
    image = graph.input("image", ir.DataType.UINT8, ("B", 3, size, size))
    queries = graph.input(CLASS_BANK, ir.DataType.FLOAT, (len(made), "K", tower.width))
    transformer = image_transformer(graph, config, weights, dialect)
    x = image_tokens(transformer, image, preprocessing)
    # both towers begin with the same tokens
    first = transformer.projections(x, 0) if tower.layers > 1 else None
    if selected is not None:
        with graph.scope("selector"):
            queries = _selected(transformer, x, first, queries, selected, config.embed_dim)
    stream = _Stream(transformer, Repeater(graph, image), first)
    layout = VisualLayout(pre_ln=False, survive_last=False)
    placed = place_visual_prompts(tensors.get(PROMPTS), layout, tower, weights).constant
    for layer in range(tower.layers):
        if layer in placed:
            x = stream.plain(x, layer, prompts=placed[layer])
        else:
            index = layer - len(placed)
            of_layer = graph.op("Gather", queries, graph.integer(index), axis=0)
            x = stream.class_aware(x, layer, made[index], of_layer)
    write_head(graph, image_embedding(transformer, x), joint_width=config.embed_dim)
    return graph.model()


def _selected(
    transformer: Transformer,
    x: Value,
    first: Projections | None,
    queries: Value,
    selected: int,
    joint_width: int,
) -> Value:
    """The queries (n, B, c, d) of each image's likely classes, by the un-prompted tower."""
    graph, last = transformer.graph, transformer.tower.layers - 1
    for layer in range(last):
        projections = first if layer == 0 and first else transformer.projections(x, layer)
        x = transformer.attend(x, projections, layer)
    x = transformer.last_block(x, lambda tokens: class_token(graph, tokens))
    matrix = graph.input(SELECTOR_MATRIX, ir.DataType.FLOAT, (joint_width, "K"))
    logits = graph.op("MatMul", image_embedding(transformer, x), matrix)  # (B, K)
    graph.output(SELECTOR_LOGITS, logits, ("B", "K"))
    # a slice ends where the axis ends, so its length is min(selected, K)
    zero, end, axis = graph.integers(0), graph.integers(selected), graph.integers(1)
    count = graph.op("Shape", graph.op("Slice", queries, zero, end, axis), start=1, end=2)
    return graph.op("Gather", queries, graph.largest(logits, count), axis=1)


@dataclass(frozen=True)
class _Stream:
    """Writes the blocks of the prompted tower."""

    transformer: Transformer
    repeat: Repeater
    first: Projections | None  # the first block's, as the un-prompted tower has them

    def plain(self, x: Value, layer: int, *, prompts: Floats) -> Value:
        """A block that sees prompts (m, d), which are constants (R1)."""
        block, tower = self.transformer.name_of(layer), self.transformer
        keys_values = constant_keys_values(prompts, tower.weights, block, heads=tower.tower.heads)
        constants = ConstantRows(f"{PROMPTS}.{layer}", keys_values, self.repeat)
        return tower.attend(x, self._projections(x, layer), layer, constants=constants)

    def class_aware(self, x: Value, layer: int, generator: Generator, queries: Value) -> Value:
        """A block that sees the prompts made of `queries` (B, c, d), or (K, d) for all images.

        The last block computes the class token only (R2).
        """
        graph, tower = self.transformer.graph, self.transformer
        with graph.scope(f"cavpt.{layer}"):
            prompts = self._prompts(x, layer, generator, queries)
        if layer < tower.tower.layers - 1:
            own = self._projections(x, layer)
            more = tower.projections(prompts, layer)[1:]
            return tower.attend(x, _joined(graph, own, *more), layer)
        own = tower.picked_projections(x, self._pick, layer)
        more = tower.keys_values(prompts, layer)
        return tower.attend(
            self._pick(x), _joined(graph, own, *more), layer, one_query=True
        )  # (B, d)

    def _projections(self, x: Value, layer: int) -> Projections:
        shared = self.first if layer == 0 else None
        return shared or self.transformer.projections(x, layer)

    def _pick(self, tokens: Value) -> Value:
        return class_token(self.transformer.graph, tokens)

    def _prompts(self, x: Value, layer: int, made: Generator, queries: Value) -> Value:
        """What classes find in the image, added to their queries and normalised, (B, c, d)."""
        op, weight = self.transformer.graph.op, self.transformer.graph.weight
        name = f"cavpt.{layer}"
        context = self.repeat(f"{name}.context", made.context[None])
        tokens = op("Concat", x, context, axis=1)  # (B, T + r, d)
        scale = np.float32(len(made.query) ** -0.5)
        asked = op("MatMul", queries, weight(f"{name}.query.weight", scale * made.query.T))
        keys = op("MatMul", tokens, weight(f"{name}.key.weight", made.key.T))  # (B, T + r, q)
        scores = op("MatMul", asked, op("Transpose", keys, perm=[0, 2, 1]))  # (B, c, T + r)
        found = op("MatMul", op("Softmax", scores, axis=-1), tokens)  # (B, c, d)
        found = op("MatMul", found, weight(f"{name}.value.weight", made.value.T))
        return op(
            "LayerNormalization",
            op("Add", found, queries),
            weight(f"{name}.norm.weight", made.norm_weight),
            weight(f"{name}.norm.bias", made.norm_bias),
            axis=-1,
            epsilon=LAYER_NORM_EPSILON,
        )


def _joined(graph: GraphBuilder, own: Projections, keys: Value, values: Value) -> Projections:
    """More tokens to attend to."""
    return Projections(
        own.query,
        graph.op("Concat", own.keys, keys, axis=1),
        graph.op("Concat", own.values, values, axis=1),
    )
