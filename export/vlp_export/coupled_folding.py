"""What of DCP's coupling is constant, in NumPy: the questions that text prompts ask in every block.

With start-of-text in front and causal attention, text prompts never see a class name or an image,
so their states are constants, and so are the queries that are made of them (arXiv:2305.17903, the
CMPA module of the released code). CMPA has the shape of a transformer block whose queries come from
elsewhere, and is given the names of one here.

Legend: n prompts, J coupled blocks, d_t and d_v the towers' widths, d one of them, h heads.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from vlp_deploy.classes.tokenizer import START_OF_TEXT
from vlp_deploy.errors import CheckpointError
from vlp_deploy.formats.architecture import ClipConfig
from vlp_deploy.formats.checkpoint import PromptCheckpoint
from vlp_deploy.formats.structures import Coupled
from vlp_export.folding import Floats, Weights, gelu, layer_norm, linear, scaled_input_projection

Numbers = NDArray[np.floating]

PREFIX = "cmpa"
VISUAL_PROMPTS, PROJECTION = "cmpa.visual_prompts", "cmpa.text_to_visual"
BLOCK_NAMES = {  # in a checkpoint -> in a transformer block
    "attention.in_proj_weight": "attn.in_proj_weight",
    "attention.in_proj_bias": "attn.in_proj_bias",
    "attention.out_proj_weight": "attn.out_proj.weight",
    "attention.out_proj_bias": "attn.out_proj.bias",
    "norm_1.weight": "ln_1.weight",
    "norm_1.bias": "ln_1.bias",
    "norm_2.weight": "ln_2.weight",
    "norm_2.bias": "ln_2.bias",
    "mlp.c_fc_weight": "mlp.c_fc.weight",
    "mlp.c_fc_bias": "mlp.c_fc.bias",
    "mlp.c_proj_weight": "mlp.c_proj.weight",
    "mlp.c_proj_bias": "mlp.c_proj.bias",
}


def coupling_weights(checkpoint: PromptCheckpoint) -> Weights:
    """The coupling as blocks `cmpa.resblocks.0`, …: one that all share, or J.

    Raises CheckpointError if tensors are missing, or there are other than 1 or J of one.
    """
    structure, tensors = checkpoint.header.structure, checkpoint.tensors
    assert isinstance(structure, Coupled)
    _check_depth(checkpoint.header.backbone.config, structure.depth)
    kinds = [*BLOCK_NAMES, "text_to_visual.weight", "text_to_visual.bias"]
    if missing := [kind for kind in kinds if f"{PREFIX}.{kind}" not in tensors]:
        raise CheckpointError(
            f"prompt checkpoint: {PREFIX}.{missing[0]} is missing, without which prompts cannot be "
            "coupled. Train or import it again"
        )
    counts = {len(tensors[f"{PREFIX}.{kind}"]) for kind in kinds}
    if counts not in ({1}, {structure.depth}):
        raise CheckpointError(
            f"prompt checkpoint: {PREFIX}.* are for {sorted(counts)} blocks; expected 1, shared by "
            f"all, or {structure.depth}. Train or import it again"
        )
    weights: dict[str, Floats] = {}
    for kind, name in BLOCK_NAMES.items():
        for index, tensor in enumerate(tensors[f"{PREFIX}.{kind}"]):
            weights[f"{PREFIX}.resblocks.{index}.{name}"] = tensor
    for kind in ("weight", "bias"):
        for index, tensor in enumerate(tensors[f"{PROJECTION}.{kind}"]):
            weights[f"{PREFIX}.resblocks.{index}.text_to_visual.{kind}"] = tensor
    return weights


def coupling_block(weights: Weights, layer: int) -> int:
    """Which of the coupling's blocks is in front of block `layer` of the tower, 1 or more."""
    return layer - 1 if f"{PREFIX}.resblocks.{layer - 1}.ln_1.weight" in weights else 0


def text_queries(checkpoint: PromptCheckpoint, weights: Weights, coupling: Weights) -> list[Floats]:
    """J times (n, d_v): `W_q LN₁(T W + b) + b_q`, divided by √(d/h), T each block's states.

    `coupling` are the `coupling_weights`.
    """
    config = checkpoint.header.backbone.config
    structure = checkpoint.header.structure
    assert isinstance(structure, Coupled)
    start = weights["token_embedding.weight"][START_OF_TEXT][None]
    x = np.concatenate([start, checkpoint.tensors["text.prompts"][0]])  # (1 + n, d_t)
    x = x + weights["positional_embedding"][: len(x)]
    queries = []
    for layer in range(1, structure.depth + 1):
        x = _text_block(x, weights, layer - 1, config)
        block = f"{PREFIX}.resblocks.{coupling_block(coupling, layer)}"
        asked = linear(x[1:], coupling, f"{block}.text_to_visual")
        matrix, bias = scaled_input_projection(coupling, block, heads=config.vision.heads)
        width = len(matrix)
        normed = layer_norm(asked, coupling, f"{block}.ln_1")
        queries.append((normed @ matrix[:, :width] + bias[:width]).astype(np.float32))
    return queries


def couple(states: Floats, queries: Floats, coupling: Weights, layer: int, heads: int) -> Floats:
    """CMPA's visual half in front of block `layer`: states (n, d_v) and queries → (n, d_v)."""
    block = f"{PREFIX}.resblocks.{coupling_block(coupling, layer)}"
    matrix, bias = scaled_input_projection(coupling, block, heads=heads)
    width = len(matrix)
    normed = layer_norm(states, coupling, f"{block}.ln_1").astype(np.float64)
    packed = normed @ matrix[:, width:] + bias[width:]  # (n, 2d)
    attended = _attention(queries, packed[:, :width], packed[:, width:], heads=heads)
    return _residuals(states, attended, coupling, block, quick_gelu=True)


def _text_block(x: Floats, weights: Weights, layer: int, config: ClipConfig) -> Floats:
    """A causal block of the text tower, (1 + n, d_t) → (1 + n, d_t)."""
    block, heads = f"transformer.resblocks.{layer}", config.text.heads
    matrix, bias = scaled_input_projection(weights, block, heads=heads)
    normed = layer_norm(x, weights, f"{block}.ln_1").astype(np.float64)
    queries, keys, values = np.split(normed @ matrix + bias, 3, axis=1)
    attended = _attention(queries, keys, values, heads=heads, causal=True)
    return _residuals(x, attended, weights, block, quick_gelu=config.quick_gelu)


def _attention(
    queries: Numbers, keys: Numbers, values: Numbers, *, heads: int, causal: bool = False
) -> Floats:
    """Scaled queries, keys and values (n, d) each → (n, d)."""
    query, key, value = (
        x.astype(np.float64).reshape(len(x), heads, -1).swapaxes(0, 1)
        for x in (queries, keys, values)
    )  # (h, n, d/h)
    scores = query @ key.swapaxes(1, 2)  # (h, n, n)
    if causal:
        scores[:, np.triu(np.ones(scores.shape[1:], np.bool_), k=1)] = -np.inf
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    attended = (shares @ value).swapaxes(0, 1).reshape(len(queries), -1)
    return np.asarray(attended, np.float32)


def _residuals(
    x: Floats, attended: Floats, weights: Mapping[str, Floats], block: str, *, quick_gelu: bool
) -> Floats:
    """The rest of a block, (n, d) → (n, d)."""
    x = x + linear(attended, weights, f"{block}.attn.out_proj")
    hidden = linear(layer_norm(x, weights, f"{block}.ln_2"), weights, f"{block}.mlp.c_fc")
    return x + linear(gelu(hidden, quick=quick_gelu), weights, f"{block}.mlp.c_proj")


def _check_depth(config: ClipConfig, depth: int) -> None:
    most = min(config.vision.layers - 1, config.text.layers)
    if depth > most:
        raise CheckpointError(
            f"prompt checkpoint: {depth} coupled blocks; this backbone has at most {most}. Train "
            "or import it again"
        )
