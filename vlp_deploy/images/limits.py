"""What one file may cost: pixels, bytes of memory, seconds."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from vlp_deploy.errors import ImageError

MAX_PIXELS = 178_956_970  # where Pillow itself refuses
MAX_BYTES = 3 << 30
SECONDS = 60.0
MEMORY_WAIT_S = 600.0


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Beyond these a file is an error, not a reason to stop.

    `max_bytes` bounds what decoding takes, of one image and of all that are decoded at once in this
    process; `seconds` runs from opening a file to its pixels, None for ever.
    """

    max_pixels: int = MAX_PIXELS
    max_bytes: int = MAX_BYTES
    seconds: float | None = SECONDS

    def __post_init__(self) -> None:
        if self.max_pixels < 1 or self.max_bytes < 1 or (self.seconds or 1) <= 0:
            raise ValueError(f"{self}: expected numbers above 0")


DEFAULT_LIMITS = Limits()


class Deadline:
    """A clock that runs down from its making, except while it is `paused`."""

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._ends = self._after(seconds)

    @property
    def is_over(self) -> bool:
        """Whether the time has run out."""
        return time.monotonic() > self._ends

    def check(self) -> None:
        """Raise ImageError if the time has run out."""
        if self.is_over:
            raise ImageError(too_slow(self._seconds))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A wait that is not the file's fault."""
        left = self._ends - time.monotonic()
        self._ends = float("inf")
        try:
            yield
        finally:
            self._ends = self._after(left)

    @staticmethod
    def _after(seconds: float | None) -> float:
        return float("inf") if seconds is None else time.monotonic() + seconds


def too_slow(seconds: float | None) -> str:
    """What is said of a file that took longer than allowed."""
    return f"reading it takes longer than {seconds:g} s"


class ByteBudget:
    """Bytes that threads reserve; who would go beyond the limit waits, unless nobody has any."""

    def __init__(self) -> None:
        self._used = 0
        self._changed = threading.Condition()

    @contextmanager
    def reserve(self, size: int, *, limit: int, wait_s: float = MEMORY_WAIT_S) -> Iterator[None]:
        """Hold `size` bytes. Raises ImageError if none come free: some decoder must hang."""
        with self._changed:
            if not self._changed.wait_for(
                lambda: self._used == 0 or self._used + size <= limit, wait_s
            ):
                raise ImageError(f"other images held the memory for {wait_s:g} s")
            self._used += size
        try:
            yield
        finally:
            with self._changed:
                self._used -= size
                self._changed.notify_all()
