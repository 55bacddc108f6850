"""Turn packed drawings into varied RGB training images, a whole batch at a time.

Ink drawings are coloured like a child's colouring book: every part of the ink in a colour, every
enclosed area in another, or without outlines as in flat art. All drawings are then moved, turned,
scaled, bent, mirrored, lit, recoloured and put on a background.

Legend: B images, S pixels a side, P = 32 colours of a palette (`areas`).
"""

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from vlp_train.pretrain.areas import FIRST_PART, PALETTE

_FILL_NONE, _FILL_ONE = 0.2, 0.3  # the rest: every area has its own colour
_ONE_PEN, _VANISH = 0.6, 0.4
_THICKER, _THINNER = 0.15, 0.1
_BEND = 0.06


def thicken(ink: Tensor, generator: Generator) -> Tensor:
    """Widen the lines of some images of ink (B, S, S) by a pixel each side, narrow some others."""
    luck = torch.rand(len(ink), generator=generator)
    thicker, thinner = luck < _THICKER, luck > 1 - _THINNER
    result = ink.clone()
    result[thicker] = F.max_pool2d(ink[thicker][:, None], 3, stride=1, padding=1)[:, 0]
    result[thinner] = 0.5 * (
        ink[thinner] - F.max_pool2d(-ink[thinner][:, None], 3, stride=1, padding=1)[:, 0]
    )
    return result


def palettes(count: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Draw colours (B, P, 3) of areas and parts of ink, and whether outlines vanish (B,)."""
    colours = torch.rand(count, PALETTE, 3, generator=generator)
    pens = colours[:, FIRST_PART:]
    dark = torch.rand(count, 1, 1, generator=generator) < 0.5
    one_pen = torch.rand(count, 1, 1, generator=generator) < _ONE_PEN
    pens = torch.where(one_pen, pens[:, :1], pens)
    pens = torch.where(dark & one_pen, 0.3 * pens, pens)
    fills = colours[:, :FIRST_PART].sqrt()
    choice = torch.rand(count, 1, 1, generator=generator)
    one_fill = (choice >= _FILL_NONE) & (choice < _FILL_NONE + _FILL_ONE)
    fills = torch.where(one_fill, fills[:, 1:2], fills)
    filled = (choice >= _FILL_NONE).flatten()
    vanish = filled & (torch.rand(count, generator=generator) < _VANISH)
    # Alpha: regions are covered where filled, the outside never, ink always.
    alpha = torch.ones(count, PALETTE, 1)
    alpha[:, 0] = 0.0
    alpha[~filled, :FIRST_PART] = 0.0
    return torch.cat([torch.cat([fills, pens], dim=1), alpha], dim=2), vanish


def colour_ink(ink: Tensor, areas: Tensor, generator: Generator) -> Tensor:
    """Colour ink (B, S, S) in [0, 1] by its areas (B, 3, S, S): premultiplied RGBA (B, 4, S, S)."""
    count, size = len(ink), ink.shape[-1]
    colours, vanish = palettes(count, generator)  # (B, P, 4)
    painter = torch.where(vanish[:, None, None], areas[:, 2], areas[:, 1])  # (B, S, S)
    first = (PALETTE * torch.arange(count, dtype=torch.int32))[:, None, None]
    flat = colours.flatten(0, 1)
    pen = F.embedding(painter.int() + first, flat)[..., :3]  # (B, S, S, 3)
    fill = F.embedding(areas[:, 0].int() + first, flat)  # (B, S, S, 4)
    ink = ink[..., None]
    below = (1 - ink) * fill[..., 3:]
    rgba = torch.cat([ink * pen + below * fill[..., :3], ink + below], dim=-1)
    return rgba.permute(0, 3, 1, 2).reshape(count, 4, size, size)


def move(rgba: Tensor, generator: Generator) -> Tensor:
    """Turn, scale, stretch, bend, shift and mirror premultiplied RGBA (B, 4, S, S)."""
    count, size = len(rgba), rgba.shape[-1]

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    angle = uniform(-1, 1) ** 3 * math.radians(35)
    zoom = 1 / uniform(0.72, 1.08)
    stretch = uniform(-0.15, 0.15).exp()
    mirror = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    shear = uniform(-0.12, 0.12)
    cosine, sine = angle.cos() * zoom, angle.sin() * zoom
    first = torch.stack([mirror * cosine * stretch, -sine + shear, uniform(-0.12, 0.12)], dim=1)
    second = torch.stack([mirror * sine, cosine / stretch, uniform(-0.12, 0.12)], dim=1)
    affine = torch.stack([first, second], dim=1)  # (B, 2, 3)
    grid = F.affine_grid(affine, list(rgba.shape), align_corners=False)
    pull = _BEND * uniform(0, 1)[:, None, None, None]
    bend = pull * torch.randn(count, 2, 4, 4, generator=generator)
    bend = F.interpolate(bend, size=(size, size), mode="bilinear", align_corners=True)
    return F.grid_sample(rgba, grid + bend.permute(0, 2, 3, 1), align_corners=False)


def light(rgba: Tensor, generator: Generator) -> Tensor:
    """Light premultiplied RGBA (B, 4, S, S): a linear ramp, and edges as if drawings were thick."""
    count, size = len(rgba), rgba.shape[-1]
    ramp = torch.linspace(-1, 1, size)
    slope = 0.35 * (2 * torch.rand(count, 2, 1, 1, generator=generator) - 1)
    brightness = 1 + slope[:, :1] * ramp[:, None] + slope[:, 1:] * ramp
    height = F.avg_pool2d(rgba[:, 3:], 7, stride=1, padding=3)
    down = F.pad(height[:, :, 2:] - height[:, :, :-2], (0, 0, 1, 1))
    right = F.pad(height[..., 2:] - height[..., :-2], (1, 1))
    angle = 2 * math.pi * torch.rand(count, 1, 1, 1, generator=generator)
    depth = (4 * torch.rand(count, 1, 1, 1, generator=generator) - 2).clamp(min=0)
    brightness = brightness + depth * (angle.cos() * down + angle.sin() * right)
    rgb = torch.minimum((rgba[:, :3] * brightness).clamp(min=0), rgba[:, 3:])
    return torch.cat([rgb, rgba[:, 3:]], dim=1)


def recolour(rgba: Tensor, generator: Generator) -> Tensor:
    """Mix the channels of premultiplied RGBA (B, 4, S, S): a little, one time of five a lot."""
    count = len(rgba)
    amount = torch.where(torch.rand(count, generator=generator) < 0.2, 0.4, 0.12)
    mix = torch.eye(3) + amount[:, None, None] * torch.randn(count, 3, 3, generator=generator)
    mix = mix / mix.sum(dim=2, keepdim=True).clamp(min=0.3)
    mixed = torch.einsum("bij,bjhw->bihw", mix, rgba[:, :3]).clamp(min=0)
    return torch.cat([torch.minimum(mixed, rgba[:, 3:]), rgba[:, 3:]], dim=1)


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
    chosen = torch.rand(len(images), generator=generator) < 0.2
    padded = F.pad(images[chosen], (1, 1, 1, 1), mode="replicate")
    images[chosen] = F.avg_pool2d(padded, 3, stride=1)
    return images


def augment(ink: Tensor, areas: Tensor, colour: Tensor, generator: Generator) -> Tensor:
    """Make RGB images in [0, 1] from ink drawings, then colour drawings.

    Args:
        ink: uint8 (B1, S, S).
        areas: uint8 (B1, 3, S, S), see `areas.areas_of`.
        colour: uint8 RGBA (B2, S, S, 4).
        generator: the only source of chance.

    Returns:
        float32 (B1 + B2, 3, S, S), in the order given.
    """
    coloured = colour_ink(thicken(ink.float() / 255, generator), areas, generator)
    own = colour.permute(0, 3, 1, 2).float() / 255
    own = torch.cat([own[:, :3] * own[:, 3:], own[:, 3:]], dim=1)
    rgba = move(torch.cat([coloured, own]), generator)
    rgba = recolour(light(rgba, generator), generator)
    return soften(place(rgba, generator), generator).clamp(0, 1)
