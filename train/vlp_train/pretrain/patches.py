"""Run the image tower on some of an image's patches only: cheaper steps in most of the training.

Legend: B images, S pixels a side, L patches, D joint width, d tower width.
"""

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from vlp_train.clip import VisionTransformer

_VISIBLE = 0.9  # spread of normalised values within a patch above which something is drawn there


def encode(tower: VisionTransformer, pixels: Tensor, keep: int, generator: Generator) -> Tensor:
    """Encode normalised pixels (B, 3, S, S) from `keep` patches each, blank ones left out first."""
    x = tower.conv1(pixels).flatten(2).transpose(1, 2)  # (B, L, d)
    position = tower.positional_embedding
    x = x + position[1:]
    if keep < x.shape[1]:
        size = tower.conv1.kernel_size[0]
        patches = F.unfold(pixels, size, stride=size)  # (B, 3 * size * size, L)
        drawn = (patches.amax(dim=1) - patches.amin(dim=1) > _VISIBLE).float()
        score = drawn + torch.rand(drawn.shape, generator=generator)
        kept = score.topk(keep, dim=1).indices
        x = x.gather(1, kept[..., None].expand(-1, -1, x.shape[2]))
    start = (tower.class_embedding + position[0]).expand(len(x), 1, -1)
    x = tower.ln_pre(torch.cat([start, x], dim=1))
    for block in tower.transformer.resblocks:
        x = block(x, causal=False)
    features: Tensor = tower.ln_post(x[:, 0]) @ tower.proj
    return features
