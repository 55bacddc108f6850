"""An image together with the name that its answer will bear, where that is not just its path."""

import os
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from vlp_deploy.answers import Failure
from vlp_deploy.images.loading import ImageSource


@runtime_checkable
class Deferred(Protocol):
    """Encoded bytes that are fetched by the thread that decodes them."""

    def read(self) -> bytes:
        """The bytes. Raises ImageError."""
        ...


@dataclass(frozen=True, slots=True)
class Item:
    """`name` is what the answer gives as its path."""

    name: str
    image: ImageSource | Deferred


Input = ImageSource | Item | Failure


def name_of(given: Input) -> str | None:
    """What the answer will give as its path; None for an image without a name."""
    if isinstance(given, Item):
        return given.name
    if isinstance(given, Failure):
        return given.path
    return os.fspath(given) if isinstance(given, str | os.PathLike) else None
