"""Turn packed drawings into varied RGB training images, a whole batch at a time.

Ink drawings are coloured like a child's colouring book: every part of the ink in a colour, every
enclosed area in another, or without outlines as in flat art. Colour drawings are painted over, part
by part: a little, or wholly where their colours mean nothing. All drawings are then moved, turned,
scaled, bent, mirrored, lit, recoloured and put on a background.

Legend: B images, S pixels a side, P = 32 colours of a palette (`areas`), L = S * S.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from vlp_train.pretrain.areas import FIRST_PART, PALETTE

_FILL_NONE, _FILL_ONE = 0.2, 0.3  # the rest: every area has its own colour
_ONE_PEN, _VANISH = 0.6, 0.4
_THICKER, _THINNER = 0.15, 0.1
_BEND = 0.06
_PAINTED, _TINT = 0.8, 0.3
_PARTS, _CONTRAST = 4, 30.0


@dataclass(frozen=True, kw_only=True)
class Sheets:
    """Drawings to make images from, B1 in ink and then B2 in colour, with what to paint them with.

    Attributes:
        ink: uint8 (B1, S, S).
        areas: uint8 (B1, 3, S, S), see `areas.areas_of`.
        colour: uint8 RGBA (B2, S, S, 4).
        paints: palettes (B1 + B2, P, 3) in [0, 1].
        borrowed: (B1 + B2,), whether they are a namesake's.
        telling: (B2,), whether a drawing's own colours are its subject's.
    """

    ink: Tensor
    areas: Tensor
    colour: Tensor
    paints: Tensor
    borrowed: Tensor
    telling: Tensor


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


def palettes(paints: Tensor, borrowed: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Give paints (B, P, 3) to areas and parts of ink: RGBA (B, P, 4), and if outlines vanish (B,).

    Random paints are made lighter for areas; borrowed ones (B,) stay as they are.
    """
    count = len(paints)
    pens = paints[:, FIRST_PART:]
    dark = torch.rand(count, 1, 1, generator=generator) < 0.5
    one_pen = torch.rand(count, 1, 1, generator=generator) < _ONE_PEN
    pens = torch.where(one_pen, pens[:, :1], pens)
    pens = torch.where(dark & one_pen, 0.3 * pens, pens)
    fills = paints[:, :FIRST_PART]
    fills = torch.where(borrowed[:, None, None], fills, fills.sqrt())
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


def colour_ink(ink: Tensor, areas: Tensor, colours: Tensor, vanish: Tensor) -> Tensor:
    """Colour ink in [0, 1] by its areas.

    Args:
        ink: (B, S, S).
        areas: (B, 3, S, S), see `areas.areas_of`.
        colours: RGBA (B, P, 4) of areas and parts.
        vanish: (B,), whether ink takes the colour of the area it borders.

    Returns:
        premultiplied RGBA (B, 4, S, S).
    """
    count, size = len(ink), ink.shape[-1]
    painter = torch.where(vanish[:, None, None], areas[:, 2], areas[:, 1])  # (B, S, S)
    first = (PALETTE * torch.arange(count, dtype=torch.int32))[:, None, None]
    flat = colours.flatten(0, 1)
    pen = F.embedding(painter.int() + first, flat)[..., :3]  # (B, S, S, 3)
    fill = F.embedding(areas[:, 0].int() + first, flat)  # (B, S, S, 4)
    ink = ink[..., None]
    below = (1 - ink) * fill[..., 3:]
    rgba = torch.cat([ink * pen + below * fill[..., :3], ink + below], dim=-1)
    return rgba.permute(0, 3, 1, 2).reshape(count, 4, size, size)


def repaint(
    rgb: Tensor, alpha: Tensor, paints: Tensor, amount: Tensor, generator: Generator
) -> Tensor:
    """Move the colours of drawings part by part towards paints.

    A part is what is near one of four colours of the drawing, each that of a random opaque pixel;
    pixels between two, as at edges, move with both.

    Args:
        rgb: straight colours (B, L, 3) in [0, 1].
        alpha: (B, L).
        paints: (B, P, 3) in [0, 1].
        amount: (B,), 0 for none of the way, 1 for all.

    Returns:
        straight colours (B, 3, L).
    """
    chosen = torch.multinomial(alpha + 1e-6, _PARTS, generator=generator)  # (B, parts)
    centres = rgb.gather(1, chosen[..., None].expand(-1, -1, 3))  # (B, parts, 3)
    distance = torch.cdist(centres, rgb).square()  # (B, parts, L)
    shift = amount[:, None, None] * (paints[:, :_PARTS] - centres)
    moved = shift.mT @ F.softmax(-_CONTRAST * distance, dim=1)  # (B, 3, L)
    return (rgb.mT + moved).clamp(0, 1)


def paint_colours(sheets: Sheets, generator: Generator) -> Tensor:
    """Paint the drawings in colour over: premultiplied RGBA (B2, 4, S, S)."""
    count, size = sheets.colour.shape[:2]
    if not count:
        return torch.zeros(0, 4, size, size)
    rgba = sheets.colour.flatten(1, 2).float() / 255  # (B2, L, 4)
    wholly = ~sheets.telling & (torch.rand(count, generator=generator) < _PAINTED)
    tint = _TINT * torch.rand(count, generator=generator)
    amount = torch.where(wholly, 1.0, tint)
    rgb, alpha = rgba[..., :3], rgba[..., 3]
    rgb = repaint(rgb, alpha, sheets.paints[-count:], amount, generator)
    painted = torch.cat([rgb * alpha[:, None], alpha[:, None]], dim=1)  # (B2, 4, L)
    return painted.view(count, 4, size, size)


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
    blur = torch.full((1, 1, 1, 7), 1 / 7)
    height = F.conv2d(F.conv2d(rgba[:, 3:], blur, padding=(0, 3)), blur.mT, padding=(3, 0))
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


def augment(sheets: Sheets, generator: Generator) -> Tensor:
    """Make RGB images (B1 + B2, 3, S, S) in [0, 1]; the generator is the only source of chance."""
    inks = len(sheets.ink)
    ink = thicken(sheets.ink.float() / 255, generator)
    colours, vanish = palettes(sheets.paints[:inks], sheets.borrowed[:inks], generator)
    coloured = colour_ink(ink, sheets.areas, colours, vanish)
    rgba = move(torch.cat([coloured, paint_colours(sheets, generator)]), generator)
    rgba = recolour(light(rgba, generator), generator)
    return soften(place(rgba, generator), generator).clamp(0, 1)
