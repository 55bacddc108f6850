"""Long class lists: made by chunks, kept as they are finished, the same as in one piece."""

from pathlib import Path

import numpy as np
import pytest

from vlp_deploy import Classifier
from vlp_deploy.cache import cache_folder
from vlp_deploy.classes import chunks
from vlp_deploy.classes.bank import ClassFeatures
from vlp_deploy.classes.chunks import features_in_chunks

NAMES = [(f"thing {index}",) for index in range(10)]


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for chunks of three classes."""
    monkeypatch.setattr(chunks, "CLASSES_A_CHUNK", 3)
    return tmp_path / "kept"


class Builder:
    """Features that tell names apart; `built` are the first names of its chunks."""

    def __init__(self, *, stop_at: int | None = None) -> None:
        self.built: list[str] = []
        self.stop_at = stop_at

    def __call__(self, names, progress) -> ClassFeatures:
        if len(self.built) == self.stop_at:
            raise KeyboardInterrupt
        self.built.append(names[0][0])
        if progress:
            progress(len(names), len(names))
        numbers = np.array([float(name.split()[1]) for (name,) in names], np.float32)
        return ClassFeatures(raw=numbers[:, None] * [1, 2], embeddings=numbers[:, None] * [3, 4])


def in_chunks(build: Builder, kept: Path, *, how: object = "", progress=None) -> ClassFeatures:
    return features_in_chunks(build, NAMES, rows_each=2, progress=progress, kept=kept, how=how)


def test_chunks_are_put_together_in_order(kept: Path) -> None:
    found = in_chunks(Builder(), kept)

    whole = Builder()(NAMES, None)
    np.testing.assert_array_equal(found.raw, whole.raw)
    np.testing.assert_array_equal(found.embeddings, whole.embeddings)


def test_a_list_that_was_interrupted_goes_on_behind_its_last_whole_chunk(kept: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        in_chunks(Builder(stop_at=2), kept)
    again = Builder()

    found = in_chunks(again, kept)

    assert again.built == ["thing 6", "thing 9"]
    np.testing.assert_array_equal(found.raw, Builder()(NAMES, None).raw)


def test_damaged_chunk_is_made_anew(kept: Path) -> None:
    in_chunks(Builder(), kept)
    for path in kept.iterdir():
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    again = Builder()

    in_chunks(again, kept)

    assert len(again.built) == 4


def test_chunks_made_in_another_way_are_not_used(kept: Path) -> None:
    in_chunks(Builder(), kept, how="a photo of a {}.")
    again = Builder()

    in_chunks(again, kept, how="a drawing of a {}.")

    assert len(again.built) == 4


def test_progress_counts_rows_of_the_whole_list(kept: Path) -> None:
    steps: list[tuple[int, int]] = []

    in_chunks(Builder(), kept, progress=lambda done, total: steps.append((done, total)))

    assert steps[-1] == (20, 20)
    assert steps == sorted(steps)


def test_folder_that_cannot_be_written_costs_nothing_but_time(kept: Path) -> None:
    kept.write_text("no folder")

    assert len(in_chunks(Builder(), kept).raw) == 10


def test_twenty_thousand_classes(fake_bundle: Path) -> None:
    classifier = Classifier.load(fake_bundle)
    names = [f"kind {index}" for index in range(20_000)]
    pixels = classifier.bundle.golden().pixels

    large = classifier.with_classes(names)
    small = classifier.with_classes(names[19_000:19_010])

    assert large.class_embeddings.shape == (20_000, 16)
    # float32 sums of 16 terms up to 100, in another order
    np.testing.assert_allclose(
        large.logits(pixels)[:, 19_000:19_010], small.logits(pixels), rtol=0, atol=1e-4
    )
    assert list((cache_folder() / "classes").glob("*.chunks")) == []  # the whole is kept


def test_interrupted_class_list_goes_on(fake_bundle: Path, kept: Path, monkeypatch) -> None:
    names = [name for (name,) in NAMES]
    classifier = Classifier.load(fake_bundle)
    expected = classifier.with_classes(names, ["the {}."]).class_embeddings
    rows: list[int] = []

    def stop(done: int, total: int) -> None:
        rows.append(done)
        if done > 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        classifier.with_classes(names, ["one {}."], progress=stop)
    assert len(list((cache_folder() / "classes").glob("*.chunks/*.chunk"))) == 1
    found = classifier.with_classes(names, ["one {}."])

    assert not np.array_equal(found.class_embeddings, expected)
    fresh = Classifier.load(fake_bundle)
    monkeypatch.setenv("VLP_CACHE", str(fake_bundle.parent / "another"))
    np.testing.assert_array_equal(
        fresh.with_classes(names, ["one {}."]).class_embeddings, found.class_embeddings
    )
