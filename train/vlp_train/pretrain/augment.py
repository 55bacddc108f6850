"""Turn packed drawings into varied RGB training images, a whole batch at a time.

Ink drawings are coloured like a child's colouring book: ink in one colour, every enclosed area in
another. All drawings are then moved, turned, scaled, mirrored, recoloured and put on a background.

Legend: B images, S pixels a side, R = 16 areas (0 = outside).
"""

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from vlp_train.pretrain.pack import MAX_REGIONS

_FILL_NONE, _FILL_ONE, _FILL_EACH = 0.25, 0.35, 0.4


def colour_ink(ink: Tensor, regions: Tensor, generator: Generator) -> Tensor:
    """Colour ink (B, S, S) in [0, 1] and its enclosed areas: premultiplied RGBA (B, 4, S, S)."""
    count = len(ink)
    pen = torch.rand(count, 3, generator=generator)
    dark = torch.rand(count, 1, generator=generator) < 0.5
    pen = torch.where(dark, 0.3 * pen, pen)
    fills = torch.rand(count, MAX_REGIONS + 1, 3, generator=generator).sqrt()
    choice = torch.rand(count, generator=generator)
    one = (choice >= _FILL_NONE) & (choice < _FILL_NONE + _FILL_ONE)
    fills = torch.where(one[:, None, None], fills[:, 1:2], fills)
    covered = torch.ones(count, MAX_REGIONS + 1)
    covered[:, 0] = 0.0
    covered[choice < _FILL_NONE] = 0.0
    areas = regions.flatten(1).long()  # (B, S*S)
    fill = fills.gather(1, areas[..., None].expand(-1, -1, 3)).transpose(1, 2)
    cover = covered.gather(1, areas)[:, None]  # (B, 1, S*S)
    ink = ink.flatten(1)[:, None]  # (B, 1, S*S)
    alpha = ink + (1 - ink) * cover
    rgb = ink * pen[..., None] + (1 - ink) * cover * fill
    coloured: Tensor = torch.cat([rgb, alpha], dim=1).unflatten(2, regions.shape[1:])
    return coloured  # (B, 4, S, S)


def move(rgba: Tensor, generator: Generator) -> Tensor:
    """Turn, scale, stretch, shift and mirror premultiplied RGBA (B, 4, S, S)."""
    count = len(rgba)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    angle = uniform(-1, 1) ** 3 * math.radians(35)
    zoom = 1 / uniform(0.72, 1.08)
    stretch = uniform(-0.12, 0.12).exp()
    mirror = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    shear = uniform(-0.12, 0.12)
    cosine, sine = angle.cos() * zoom, angle.sin() * zoom
    first = torch.stack([mirror * cosine * stretch, -sine + shear, uniform(-0.12, 0.12)], dim=1)
    second = torch.stack([mirror * sine, cosine / stretch, uniform(-0.12, 0.12)], dim=1)
    affine = torch.stack([first, second], dim=1)  # (B, 2, 3)
    grid = F.affine_grid(affine, list(rgba.shape), align_corners=False)
    return F.grid_sample(rgba, grid, align_corners=False)


def shade(rgba: Tensor, generator: Generator) -> Tensor:
    """Light premultiplied RGBA (B, 4, S, S) by a linear ramp and mix its channels a little."""
    count, size = len(rgba), rgba.shape[-1]
    ramp = torch.linspace(-1, 1, size)
    slope = 0.35 * (2 * torch.rand(count, 2, 1, 1, generator=generator) - 1)
    light = 1 + slope[:, :1] * ramp[:, None] + slope[:, 1:] * ramp
    rgb, alpha = rgba[:, :3] * light, rgba[:, 3:]
    mix = torch.eye(3) + 0.12 * torch.randn(count, 3, 3, generator=generator)
    mix = mix / mix.sum(dim=2, keepdim=True)
    mixed = torch.einsum("bij,bjhw->bihw", mix, rgb)
    return torch.cat([torch.minimum(mixed.clamp(min=0), alpha), alpha], dim=1)


def place(rgba: Tensor, generator: Generator) -> Tensor:
    """Put premultiplied RGBA (B, 4, S, S) on a plain background, white three times of five."""
    count = len(rgba)
    paper = torch.rand(count, 3, generator=generator)
    kind = torch.rand(count, 1, generator=generator)
    paper = torch.where(kind < 0.85, 0.75 + 0.25 * paper, paper)
    paper = torch.where(kind < 0.6, torch.ones(1), paper)
    return rgba[:, :3] + (1 - rgba[:, 3:]) * paper[..., None, None]


def soften(images: Tensor, generator: Generator) -> Tensor:
    """Blur one image in five of (B, 3, S, S) over three pixels."""
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    chosen = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.2
    return torch.where(chosen, blurred, images)


def augment(ink: Tensor, regions: Tensor, colour: Tensor, generator: Generator) -> Tensor:
    """Make RGB images in [0, 1] from ink drawings, then colour drawings.

    Args:
        ink: uint8 (B1, S, S).
        regions: uint8 (B1, S, S), areas enclosed by the ink.
        colour: uint8 RGBA (B2, S, S, 4).
        generator: the only source of chance.

    Returns:
        float32 (B1 + B2, 3, S, S), in the order given.
    """
    coloured = colour_ink(ink.float() / 255, regions, generator)
    own = colour.permute(0, 3, 1, 2).float() / 255
    own = torch.cat([own[:, :3] * own[:, 3:], own[:, 3:]], dim=1)
    rgba = shade(move(torch.cat([coloured, own]), generator), generator)
    return soften(place(rgba, generator), generator).clamp(0, 1)
