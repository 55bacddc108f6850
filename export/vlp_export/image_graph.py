"""The image tower as an ONNX graph: uint8 pixels to an embedding and logits.

Legend: B images, S image size, p patch size, T tokens (class token, patches, travelling prompts),
d width, D joint width, K classes, m prompt tokens. B and K are dynamic.
"""

import onnx_ir as ir

from vlp_deploy.formats.architecture import ClipConfig, Preprocessing, VisionTower, VisualLayout
from vlp_export.dialects import PORTABLE, ConstantRows, Dialect
from vlp_export.folding import (
    Floats,
    Weights,
    constant_keys_values,
    patch_convolution,
    place_visual_prompts,
    token_offsets,
)
from vlp_export.graph import GraphBuilder, Value
from vlp_export.repeat import Repeater
from vlp_export.transformer import Transformer, normalised

PREFIX = "visual.transformer"
PROMPTS = "visual.prompts"


def write_image_graph(
    config: ClipConfig,
    weights: Weights,
    *,
    preprocessing: Preprocessing,
    prompts: Floats | None = None,
    layout: VisualLayout | None = None,
    dialect: Dialect = PORTABLE,
) -> ir.Model:
    """Write the graph `image`, `class_matrix`, `class_bias` → `embedding`, `logits`.

    `image` uint8 (B, 3, S, S); `class_matrix` (D, K), logit scale included; `class_bias` (K,);
    `embedding` (B, D), L2-normalised; `logits` (B, K) = embedding · class_matrix + class_bias.
    `prompts` (J, m, d) are folded in. Raises CheckpointError if there are more sets than layers.
    """
    graph = GraphBuilder("image", opset=dialect.opset)
    size = config.vision.image_size
    image = graph.input("image", ir.DataType.UINT8, ("B", 3, size, size))
    tower = image_transformer(graph, config, weights, dialect)
    embedding = write_image_tower(
        tower, image, preprocessing=preprocessing, prompts=prompts, layout=layout
    )
    write_head(graph, embedding, joint_width=config.embed_dim)
    return graph.model()


def write_head(
    graph: GraphBuilder, embedding: Value, *, joint_width: int, batch: int | str = "B"
) -> None:
    """R5: the inputs `class_matrix` and `class_bias`, the outputs `embedding` and `logits`."""
    class_matrix = graph.input("class_matrix", ir.DataType.FLOAT, (joint_width, "K"))
    class_bias = graph.input("class_bias", ir.DataType.FLOAT, ("K",))
    logits = graph.op("Gemm", embedding, class_matrix, class_bias)  # (B, K)
    graph.output("embedding", embedding, (batch, joint_width))
    graph.output("logits", logits, (batch, "K"))


def image_transformer(
    graph: GraphBuilder, config: ClipConfig, weights: Weights, dialect: Dialect = PORTABLE
) -> Transformer:
    """The blocks of the image tower, to be written into `graph`."""
    return Transformer(
        graph=graph,
        weights=weights,
        prefix=PREFIX,
        tower=config.vision,
        quick_gelu=config.quick_gelu,
        dialect=dialect,
    )


def write_image_tower(
    transformer: Transformer,
    image: Value,
    *,
    preprocessing: Preprocessing,
    prompts: Floats | None = None,
    layout: VisualLayout | None = None,
) -> Value:
    """The whole image tower, uint8 (B, 3, S, S) → L2-normalised embeddings (B, D)."""
    graph, weights, tower = transformer.graph, transformer.weights, transformer.tower
    assert isinstance(tower, VisionTower)
    placed = place_visual_prompts(prompts, layout or VisualLayout(), tower, weights)
    x = image_tokens(transformer, image, preprocessing)
    repeat = Repeater(graph, image)
    for layer in range(tower.layers):
        if placed.travelling is not None and placed.travelling[0] == layer:
            tokens = repeat(PROMPTS, placed.travelling[1][None])
            x = graph.op("Concat", x, tokens, axis=1)  # (B, T, d)
        constants = None
        if layer in placed.constant:
            block = transformer.name_of(layer)
            keys_values = constant_keys_values(
                placed.constant[layer], weights, block, heads=tower.heads
            )
            constants = ConstantRows(f"{PROMPTS}.{layer}", keys_values, repeat)
        if layer < tower.layers - 1:
            x = transformer.block(x, layer, constants=constants)
        else:
            x = transformer.last_block(x, lambda t: class_token(graph, t), constants=constants)
    return image_embedding(transformer, x)


def image_embedding(transformer: Transformer, x: Value) -> Value:
    """What the last block made of the class token, (B, d) → L2-normalised (B, D)."""
    feature = transformer.project(transformer.norm(x, "visual.ln_post"), "visual.proj")
    return normalised(transformer.graph, feature)


def image_tokens(transformer: Transformer, image: Value, preprocessing: Preprocessing) -> Value:
    """Class token and patches as the first block reads them, uint8 (B, 3, S, S) → (B, T, d)."""
    graph, weights, tower = transformer.graph, transformer.weights, transformer.tower
    assert isinstance(tower, VisionTower)
    kernel, patch_offset = patch_convolution(weights, preprocessing)
    pixels = graph.op("Cast", image, to=ir.DataType.FLOAT.value)
    patches = graph.op(
        "Conv",
        pixels,
        graph.weight("visual.conv1.weight", kernel),
        strides=(tower.patch_size, tower.patch_size),
    )  # (B, d, S/p, S/p)
    patches = graph.op("Reshape", patches, graph.integers(0, 0, -1))
    patches = graph.op("Transpose", patches, perm=[0, 2, 1])
    # a row of zeros in front, to which the class token is added with the positions
    rows = graph.op("Pad", patches, graph.integers(0, 1, 0, 0, 0, 0))  # (B, T, d)
    offsets = graph.weight("visual.token_offsets", token_offsets(weights, patch_offset))
    return transformer.norm(graph.op("Add", rows, offsets), "visual.ln_pre")


def class_token(graph: GraphBuilder, x: Value) -> Value:
    """(B, T, d) → (B, d)."""
    return graph.op("Gather", x, graph.integer(0), axis=1)
