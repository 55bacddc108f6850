"""Exact rewrites of weights and prompts, in NumPy, before a graph is written.

Legend: S image size, p patch size, d width, h heads, J prompted layers, m prompt tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import erf

import numpy as np
from numpy.typing import NDArray

from vlp_deploy.classes.tokenizer import START_OF_TEXT
from vlp_deploy.errors import CheckpointError
from vlp_deploy.formats.architecture import Preprocessing, TextTower, VisionTower, VisualLayout

Floats = NDArray[np.float32]
KeysValues = tuple[Floats, Floats]
Weights = Mapping[str, Floats]

LAYER_NORM_EPSILON = 1e-5


@dataclass(frozen=True, kw_only=True)
class PlacedPrompts:
    """Where each set of visual prompts goes; `layer` is the block that reads it first."""

    constant: Mapping[int, Floats]  # layer -> (m, d), seen by that layer alone
    travelling: tuple[int, Floats] | None  # layer and (m, d), tokens from there to the end


def place_visual_prompts(
    prompts: Floats | None, layout: VisualLayout, tower: VisionTower, weights: Weights
) -> PlacedPrompts:
    """R1: which prompts (J, m, d) can be constants and which have to travel as tokens.

    A set that is replaced or dropped after its layer is read by that layer's attention only. So is
    a set of the last layer, behind which only the class token is read. The first set is taken
    through `ln_pre` here if the layout says that it was trained before it.
    """
    if prompts is None or prompts.size == 0:
        return PlacedPrompts(constant={}, travelling=None)
    depth = len(prompts)
    if depth > tower.layers:
        raise CheckpointError(
            f"visual.prompts is for {depth} layers, but the image tower has {tower.layers}. "
            "Train or import it again for this backbone"
        )
    sets = dict(enumerate(prompts))
    if layout.pre_ln:
        sets[0] = layer_norm(prompts[0], weights, "visual.ln_pre")
    if layout.survive_last and depth < tower.layers:
        return PlacedPrompts(constant=sets, travelling=(depth - 1, sets.pop(depth - 1)))
    return PlacedPrompts(constant=sets, travelling=None)


def constant_keys_values(
    prompts: Floats, weights: Weights, block: str, *, heads: int
) -> KeysValues:
    """R1: keys and values (1, h, m, d/h) of prompts (m, d) in a block: `W · LN1(P) + b`."""
    width = prompts.shape[-1]
    normed = layer_norm(prompts, weights, f"{block}.ln_1").astype(np.float64)
    matrix = weights[f"{block}.attn.in_proj_weight"][width:]  # (2d, d): keys, values
    bias = weights[f"{block}.attn.in_proj_bias"][width:]
    packed = normed @ matrix.T + bias  # (m, 2d)
    split = packed.reshape(len(prompts), 2, heads, width // heads).transpose(1, 2, 0, 3)
    keys, values = split[:, None].astype(np.float32)
    return keys, values


def start_of_text_rows(
    weights: Weights, tower: TextTower | VisionTower, *, quick_gelu: bool
) -> list[KeysValues]:
    """R4: keys and values (1, 1, d) of the start-of-text token in every block of the text tower.

    The first token sees nothing but itself, so attention gives it its own values: whatever follows,
    it is a constant.
    """
    x = weights["token_embedding.weight"][START_OF_TEXT] + weights["positional_embedding"][0]
    rows = []
    for layer in range(tower.layers):
        block = f"transformer.resblocks.{layer}"
        split = constant_keys_values(x[None], weights, block, heads=tower.heads)
        keys, values = (part.reshape(1, 1, -1) for part in split)
        rows.append((keys, values))
        x = x + linear(values[0, 0], weights, f"{block}.attn.out_proj")
        hidden = linear(layer_norm(x, weights, f"{block}.ln_2"), weights, f"{block}.mlp.c_fc")
        x = x + linear(gelu(hidden, quick=quick_gelu), weights, f"{block}.mlp.c_proj")
    return rows


def scaled_input_projection(weights: Weights, block: str, *, heads: int) -> tuple[Floats, Floats]:
    """The packed projection (d, 3d) and bias (3d,), the query's part divided by sqrt(d/h)."""
    matrix = weights[f"{block}.attn.in_proj_weight"].T.copy()  # (d, 3d)
    bias = weights[f"{block}.attn.in_proj_bias"].copy()
    width = len(matrix)
    scale = np.float32((width // heads) ** -0.5)
    matrix[:, :width] *= scale
    bias[:width] *= scale
    return matrix, bias


def patch_convolution(weights: Weights, preprocessing: Preprocessing) -> tuple[Floats, Floats]:
    """Kernel (d, 3, p, p) for raw pixels 0…255, and what it leaves to be added to every patch (d,).

    `W * (x / 255 - mean) / std = (W / (255 std)) * x - sum(W mean / std)`, exact because the
    patches of a ViT tile the image without padding.
    """
    kernel = weights["visual.conv1.weight"].astype(np.float64)
    mean = np.array(preprocessing.mean).reshape(3, 1, 1)
    std = np.array(preprocessing.std).reshape(3, 1, 1)
    offset = -(kernel * (mean / std)).sum(axis=(1, 2, 3))
    return (kernel / (255.0 * std)).astype(np.float32), offset.astype(np.float32)


def token_offsets(weights: Weights, patch_offset: Floats) -> Floats:
    """What is added to the row of zeros and the patches (1, 1 + patches, d).

    Row 0 becomes the class token with its position; the others are positions and `patch_offset`.
    """
    offsets = weights["visual.positional_embedding"].copy()
    offsets[0] += weights["visual.class_embedding"]
    offsets[1:] += patch_offset
    return offsets[None]


def layer_norm(x: Floats, weights: Weights, name: str) -> Floats:
    """LayerNorm over the last axis."""
    wide = x.astype(np.float64)
    centred = wide - wide.mean(axis=-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + LAYER_NORM_EPSILON)
    normed = centred / deviation * weights[f"{name}.weight"] + weights[f"{name}.bias"]
    return np.asarray(normed, np.float32)


def linear(x: Floats, weights: Weights, name: str) -> Floats:
    """A linear layer over the last axis, in float64 inside."""
    wide = x.astype(np.float64) @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
    return np.asarray(wide, np.float32)


def gelu(x: Floats, *, quick: bool) -> Floats:
    """`x σ(1.702 x)`, or `x (1 + erf(x / √2)) / 2`."""
    wide = x.astype(np.float64)
    if quick:
        return np.asarray(wide / (1 + np.exp(-1.702 * wide)), np.float32)
    half = [(1 + erf(value / 2**0.5)) / 2 for value in wide.flat]
    return np.asarray(wide * np.reshape(half, wide.shape), np.float32)
