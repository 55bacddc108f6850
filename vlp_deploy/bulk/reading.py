"""From inputs of any kind to named pixels, read ahead by threads, in order and in bounded memory.

S image size.
"""

import os
from collections.abc import Generator, Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlp_deploy.answers import Failure
from vlp_deploy.bulk.items import Deferred, Input, Item, name_of
from vlp_deploy.bulk.pipeline import Bounds, ordered_map
from vlp_deploy.errors import ImageError
from vlp_deploy.formats.architecture import Preprocessing
from vlp_deploy.images.limits import Deadline, Limits, too_slow
from vlp_deploy.images.loading import ImageSource
from vlp_deploy.images.preprocess import preprocess

READ_THREADS = min(8, len(os.sched_getaffinity(0)))
ENCODED_BYTES_AHEAD = 256 << 20  # of images that came as bytes; those on disk are not read early


class Picture(NamedTuple):
    """Pixels uint8 (3, S, S) of an input, and its name if it has one."""

    name: str | None
    pixels: NDArray[np.uint8]


def read_pictures(
    items: Iterable[Input],
    preprocessing: Preprocessing,
    *,
    exact_decode: bool,
    limits: Limits,
    threads: int,
    ahead: int,
) -> Generator[Picture | Failure]:
    """One for every input; a Failure for what cannot be read, and for a Failure itself.

    At most `ahead` + `threads` are read and not yet asked for.
    """

    def read(item: Input, deadline: Deadline) -> Picture | Failure:
        if isinstance(item, Failure):
            return item
        name = name_of(item)
        try:
            pixels = preprocess(
                source_of(item), preprocessing, exact=exact_decode, limits=limits, deadline=deadline
            )
        except ImageError as error:
            return Failure(path=name, error=str(error))
        return Picture(name, pixels)

    bounds: Bounds[Input, Picture | Failure] = Bounds(
        workers=threads,
        ahead=ahead + threads,
        weigh=_encoded_bytes,
        max_weight=ENCODED_BYTES_AHEAD,
        seconds=limits.seconds,
        late=lambda item: Failure(path=name_of(item), error=too_slow(limits.seconds)),
    )
    return ordered_map(read, items, bounds)


def source_of(item: ImageSource | Item) -> ImageSource:
    """The image itself, fetched if that was deferred. Raises ImageError."""
    source = item.image if isinstance(item, Item) else item
    if isinstance(source, Deferred):
        try:
            return source.read()
        except OSError as error:
            raise ImageError(f"the file cannot be read: {error.strerror}") from error
    return source


def _encoded_bytes(item: Input) -> int:
    source = item.image if isinstance(item, Item) else item
    return len(source) if isinstance(source, bytes) else 0
