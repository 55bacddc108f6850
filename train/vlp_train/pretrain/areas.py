"""Turn ink drawings into areas to colour apart: what is enclosed, what ink hangs together.

Area numbers index one palette: 0 is the outside, 1..15 are areas enclosed by ink, 16..31 are
connected parts of the ink itself. Lines that nearly close count as closed. Legend: N drawings, S
pixels a side.
"""

import os
from multiprocessing import get_context
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from vlp_train.pretrain.progress import bar

Pixels = npt.NDArray[np.uint8]

MAX_REGIONS, MAX_PARTS = 15, 15
FIRST_PART = MAX_REGIONS + 1
PALETTE = FIRST_PART + MAX_PARTS + 1
_INK = 128
_OUTLINE = 6.0  # pixels from an enclosed area within which ink counts as its outline


def areas_of(ink: Pixels) -> Pixels:
    """Number the areas of ink (S, S): maps (3, S, S) of regions, parts and owners.

    Regions are 0 on ink and outside, 1..15 in enclosed areas. Parts number the connected ink
    nearest to every pixel, 16..31. Owners say whose colour ink takes if outlines are to vanish:
    the enclosed area it borders or, far from any, its part.
    """
    regions = enclosed_regions(ink)
    parts, count = ndimage.label(ink >= _INK, structure=np.ones((3, 3)))
    if count:
        parts = parts[tuple(_nearest(parts == 0))]
    parts = FIRST_PART + np.minimum(np.maximum(parts - 1, 0), MAX_PARTS)
    owners = parts
    if regions.any():
        distance, nearest = ndimage.distance_transform_edt(regions == 0, return_indices=True)
        owners = np.where(distance <= _OUTLINE, regions[tuple(nearest)], parts)
    return np.stack([regions, parts, owners]).astype(np.uint8)


def enclosed_regions(ink: Pixels) -> Pixels:
    """Number the areas that ink (S, S) encloses: 0 outside and on ink, 1.. for each area.

    Gaps of up to two pixels in the ink count as closed, so areas that thin are none. Areas beyond
    the fifteenth share its number.
    """
    dark = ink >= _INK
    walls = np.pad(ndimage.binary_dilation(dark), 1)
    seeds, count = ndimage.label(~walls)
    outside = seeds[0, 0]
    number = np.zeros(count + 1, dtype=np.uint8)
    enclosed = [area for area in range(1, count + 1) if area != outside]
    number[enclosed] = np.minimum(np.arange(1, len(enclosed) + 1), MAX_REGIONS)
    grown = number[seeds[tuple(_nearest(seeds == 0))]][1:-1, 1:-1]
    regions: Pixels = np.where(dark, 0, grown).astype(np.uint8)
    return regions


def all_areas(ink: Pixels, *, processes: int | None = None) -> Pixels:
    """Return `areas_of` every drawing (N, S, S), in order: (N, 3, S, S)."""
    with get_context("spawn").Pool(processes or os.cpu_count()) as pool:
        found = pool.imap(areas_of, ink, chunksize=256)
        return np.stack(list(bar(found, len(ink), "enclosed areas")))


def _nearest(missing: npt.NDArray[np.bool_]) -> Any:
    """Return, for every pixel, the indices (2, S, S) of the nearest one that is not missing."""
    return ndimage.distance_transform_edt(missing, return_distances=False, return_indices=True)
