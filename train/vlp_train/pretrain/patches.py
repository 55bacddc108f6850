"""Start the image tower from patch statistics and run it on some of the patches only.

Legend: B images, S pixels a side, L patches, D joint width, d tower width.
"""

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from vlp_train.clip import VisionTransformer


@torch.no_grad()
def initialise(tower: VisionTransformer, pixels: Tensor) -> None:
    """Start from patch statistics: principal components as filters, sines as positions."""
    size, width = tower.conv1.kernel_size[0], tower.conv1.out_channels
    patches = F.unfold(pixels, size, stride=size).transpose(1, 2).flatten(0, 1)
    centred = patches - patches.mean(dim=0)
    variances, axes = torch.linalg.eigh(centred.T @ centred / len(centred))
    top = variances.argsort(descending=True)[:width]
    filters = (axes[:, top] * (variances[top] + 0.02 * variances[top[0]]) ** -0.5).T
    tower.conv1.weight.copy_(filters.unflatten(1, (3, size, size)))
    side = math.isqrt(len(tower.positional_embedding) - 1)
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    wave = 10.0 ** -torch.linspace(0, 1, width // 4)
    angles = [axis.flatten()[:, None] * wave for axis in (row, column)]
    tower.positional_embedding[1:] = 0.5 * torch.cat(
        [wave_of(angle) for angle in angles for wave_of in (torch.sin, torch.cos)], dim=1
    )
    depth = len(tower.transformer.resblocks)
    for block in tower.transformer.resblocks:
        for last in (block.attn.out_proj, block.mlp.c_proj):
            last.weight.mul_((2 * depth) ** -0.5)
            last.bias.zero_()


def encode(tower: VisionTransformer, pixels: Tensor, keep: int, generator: Generator) -> Tensor:
    """Encode normalised pixels (B, 3, S, S) from `keep` patches each, blank ones left out first."""
    x = tower.conv1(pixels).flatten(2).transpose(1, 2)  # (B, L, d)
    position = tower.positional_embedding
    x = x + position[1:]
    if keep < x.shape[1]:
        size = tower.conv1.kernel_size[0]
        patches = F.unfold(pixels, size, stride=size)  # (B, 3 * size * size, L)
        drawn = (patches.amax(dim=1) - patches.amin(dim=1) > 0.9).float()
        score = drawn + torch.rand(drawn.shape, generator=generator)
        kept = score.topk(keep, dim=1).indices
        x = x.gather(1, kept[..., None].expand(-1, -1, x.shape[2]))
    start = (tower.class_embedding + position[0]).expand(len(x), 1, -1)
    x = tower.ln_pre(torch.cat([start, x], dim=1))
    for block in tower.transformer.resblocks:
        x = block(x, causal=False)
    features: Tensor = tower.ln_post(x[:, 0]) @ tower.proj
    return features
