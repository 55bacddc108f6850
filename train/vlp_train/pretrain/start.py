"""Starting weights that know something: patch statistics, positions, what tokens mean, or more.

Legend: B images, S pixels a side, L patches, K texts, D joint width, d tower width.
"""

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from vlp_deploy.classes.tokenizer import Tokenizer
from vlp_train.clip import Block, Clip, Transformer, VisionTransformer
from vlp_train.pretrain.text_tower import tokenise

_TEXTS = 1024  # that are embedded at once


@torch.no_grad()
def turn_joint_space(clip: Clip, texts: list[str], targets: Tensor, tokenizer: Tokenizer) -> None:
    """Turn the joint space of a trained CLIP into that of `targets` (K, D), unit vectors of texts.

    A joint space is fixed up to a rotation, which the CLIP's own features of `texts` tell: the
    orthogonal matrix that brings them nearest to the targets (Schönemann 1966).
    """
    rows = [texts[at : at + _TEXTS] for at in range(0, len(texts), _TEXTS)]
    features = [clip.encode_text_fast(*tokenise(some, tokenizer)) for some in rows]
    left, _, right = torch.linalg.svd(F.normalize(torch.cat(features), dim=1).T @ targets)
    rotation = left @ right  # (D, D)
    clip.visual.proj.copy_(clip.visual.proj @ rotation)
    clip.text_projection.copy_(clip.text_projection @ rotation)


@torch.no_grad()
def start_image_tower(tower: VisionTransformer, pixels: Tensor) -> None:
    """Start from patch statistics: principal components as filters, sines as positions."""
    size, width = tower.conv1.kernel_size[0], tower.conv1.out_channels
    patches = F.unfold(pixels, size, stride=size).transpose(1, 2).flatten(0, 1)
    centred = patches - patches.mean(dim=0)
    variances, axes = torch.linalg.eigh(centred.T @ centred / len(centred))
    top = variances.argsort(descending=True)[:width]
    filters = (axes[:, top] * (variances[top] + 0.02 * variances[top[0]]) ** -0.5).T
    tower.conv1.weight[: len(filters)] = filters.unflatten(1, (3, size, size))
    side = math.isqrt(len(tower.positional_embedding) - 1)
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    wave = 10.0 ** -torch.linspace(0, 1, width // 4)
    angles = [axis.flatten()[:, None] * wave for axis in (row, column)]
    tower.positional_embedding[1:] = 0.5 * torch.cat(
        [wave_of(angle) for angle in angles for wave_of in (torch.sin, torch.cos)], dim=1
    )
    quieten(tower.transformer)


@torch.no_grad()
def start_text_tower(clip: Clip, texts: list[str], targets: Tensor, tokenizer: Tokenizer) -> None:
    """Give every token the mean target of the texts that contain it, in the tower's width.

    Targets (K, D) come with their strongest axes first, so cutting to d keeps the most. Tokens no
    text contains keep their random start.
    """
    width = min(clip.config.text.width, targets.shape[1])
    sums = torch.zeros(clip.config.text.vocab_size, width)
    weight = torch.zeros(len(sums))
    for text, target in zip(texts, targets[:, :width], strict=True):
        ids = torch.tensor(tokenizer.encode(text))
        share = 1.0 / len(ids) ** 2  # a word alone says more about itself than in company
        sums.index_add_(0, ids, (share * target).expand(len(ids), -1))
        weight.index_add_(0, ids, torch.full((len(ids),), share))
    known = weight > 0
    means = F.normalize(sums[known] / weight[known, None], dim=-1)
    clip.token_embedding.weight[known, :width] = 0.05 * math.sqrt(width) * means
    quieten(clip.transformer)


@torch.no_grad()
def quieten(transformer: Transformer) -> None:
    """Scale what every block adds by (2 layers)^(-1/2), so that the sum of all has unit size."""
    blocks = [cast(Block, block) for block in transformer.resblocks]
    for block in blocks:
        for last in (block.attn.out_proj, block.mlp.c_proj):
            last.weight.mul_((2 * len(blocks)) ** -0.5)
            last.bias.zero_()
