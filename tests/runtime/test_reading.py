"""Any input becomes pixels or a failure, in its place, in bounded time and memory."""

import io
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from vlp_deploy.answers import Failure
from vlp_deploy.bulk import reading
from vlp_deploy.bulk.items import Input, Item
from vlp_deploy.bulk.reading import Picture, read_pictures
from vlp_deploy.errors import ImageError
from vlp_deploy.formats.architecture import Preprocessing
from vlp_deploy.images.limits import Limits


def png(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(file, "PNG")
    return file.getvalue()


def read(items: list[Input] | Iterator[Input], limits: Limits | None = None) -> list[object]:
    pictures = read_pictures(
        items,
        Preprocessing(image_size=8),
        exact_decode=True,
        limits=limits or Limits(),
        threads=2,
        ahead=4,
    )
    return list(pictures)


class Fetched:
    """A deferred image whose bytes come as a test wants."""

    def __init__(self, fetch) -> None:
        self.read = fetch


def fail(error: Exception):
    raise error


def test_items_keep_their_names_and_places() -> None:
    failure = Failure(path="folder", error="it is locked")
    items = [Item("a", png("red")), png("lime"), failure, Item("b", Fetched(lambda: png("blue")))]

    found = read(items)

    assert [type(picture) for picture in found] == [Picture, Picture, Failure, Picture]
    assert [picture.name for picture in found if picture != failure] == ["a", None, "b"]
    assert [tuple(p.pixels[:, 0, 0]) for p in (found[0], found[1], found[3])] == [
        (255, 0, 0),
        (0, 255, 0),
        (0, 0, 255),
    ]
    assert found[0].pixels.dtype == np.uint8


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ImageError("it is damaged inside the archive"), "it is damaged inside the archive"),
        (FileNotFoundError(2, "No such file"), "the file cannot be read: No such file"),
    ],
)
def test_what_cannot_be_fetched_is_a_failure(error: Exception, reason: str) -> None:
    assert read([Item("a", Fetched(lambda: fail(error)))]) == [Failure(path="a", error=reason)]


def test_image_that_hangs_is_a_failure_and_holds_nobody_up() -> None:
    hang = threading.Event()
    limits = Limits(seconds=0.3)
    items = [Item(str(number), png("red")) for number in range(20)]
    items[5] = Item("hangs", Fetched(lambda: hang.wait(20) and b""))
    began = time.monotonic()

    found = read(items, limits)

    hang.set()
    assert found[5] == Failure(path="hangs", error="reading it takes longer than 0.3 s")
    assert sum(isinstance(picture, Picture) for picture in found) == 19
    assert time.monotonic() - began < 10


def test_encoded_images_ahead_are_bounded_by_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "ENCODED_BYTES_AHEAD", 2 * len(png("red")))
    taken: list[int] = []
    items = (taken.append(number) or Item(str(number), png("red")) for number in range(50))
    pictures = read_pictures(
        items,
        Preprocessing(image_size=8),
        exact_decode=True,
        limits=Limits(),
        threads=2,
        ahead=40,
    )

    for expected in range(3):
        assert next(pictures).name == str(expected)
        assert len(taken) <= expected + 3  # two ahead, and the one in hand
    pictures.close()
