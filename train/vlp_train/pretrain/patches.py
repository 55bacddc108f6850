"""The image tower as training runs it: some of an image's patches, and no work nobody reads.

In most of the training only some patches are embedded (arXiv:2212.00794), and the last block
computes the class token alone. Attention over so few tokens is plain products: the fused operator
is made for many (`benchmarks/bench_pretraining.py`).

Legend: B images, S pixels a side, L patches, T tokens, n tokens that ask, D joint width, d tower
width, h heads.
"""

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from vlp_train.clip import Attention, Block, VisionTransformer

_VISIBLE = 0.9  # spread of normalised values within a patch above which something is drawn there


def encode(tower: VisionTransformer, pixels: Tensor, keep: int, generator: Generator) -> Tensor:
    """Encode normalised pixels (B, 3, S, S) from `keep` patches each, blank ones left out first.

    Returns raw features (B, D): the tower's own, if all patches are kept.
    """
    size = tower.conv1.kernel_size[0]
    patches = F.pixel_unshuffle(pixels, size).flatten(2).transpose(1, 2)  # (B, L, 3 * size * size)
    positions = tower.positional_embedding[1:]
    if keep < patches.shape[1]:
        kept = chosen_patches(patches, keep, generator)  # (B, keep)
        patches = patches.gather(1, kept[..., None].expand(-1, -1, patches.shape[2]))
        positions = F.embedding(kept, positions)  # gradients alike in any number of threads
    x = F.linear(patches, tower.conv1.weight.flatten(1)) + positions
    start = (tower.class_embedding + tower.positional_embedding[0]).expand(len(x), 1, -1)
    x = tower.ln_pre(torch.cat([start, x], dim=1))
    *blocks, last = tower.transformer.blocks
    for block in blocks:
        x = _forward(block, x, asking=x.shape[1])
    return tower.project(_forward(last, x, asking=1))


def chosen_patches(patches: Tensor, keep: int, generator: Generator) -> Tensor:
    """Choose `keep` of the patches (B, L, pixels) of each image at random, drawn ones first."""
    drawn = (patches.amax(dim=2) - patches.amin(dim=2) > _VISIBLE).float()  # (B, L)
    score = drawn + torch.rand(drawn.shape, generator=generator)
    chosen: Tensor = score.topk(keep, dim=1).indices
    return chosen


def _forward(block: Block, x: Tensor, *, asking: int) -> Tensor:
    """(B, T, d) → what the block makes of the first `asking` tokens, (B, n, d)."""
    x = x[:, :asking] + _attend(block.attn, block.ln_1(x), asking)
    after: Tensor = x + block.mlp(block.ln_2(x))
    return after


def _attend(attention: Attention, x: Tensor, asking: int) -> Tensor:
    """The first `asking` tokens of (B, T, d) attend to all: (B, n, d)."""
    width, heads = x.shape[2], attention.heads
    weights = attention.in_proj_weight.split([width, 2 * width])
    biases = attention.in_proj_bias.split([width, 2 * width])
    query = F.linear(x[:, :asking], weights[0], biases[0]).unflatten(2, (heads, -1))
    packed = F.linear(x, weights[1], biases[1]).unflatten(2, (2, heads, -1))  # (B, T, 2, h, d/h)
    keys, values = packed.permute(2, 0, 3, 1, 4)  # (B, h, T, d/h) each
    query = query.transpose(1, 2) / math.sqrt(query.shape[-1])  # (B, h, n, d/h)
    shares = (query @ keys.transpose(2, 3)).softmax(dim=-1)  # (B, h, n, T)
    attended = (shares @ values).transpose(1, 2).flatten(2)  # (B, n, d)
    merged: Tensor = attention.out_proj(attended)
    return merged
