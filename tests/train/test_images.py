"""Batches: a function of seed, epoch and sample alone."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from vlp_deploy.data.dataset import Sample, few_shot, load_dataset
from vlp_deploy.errors import DataError
from vlp_deploy.formats.architecture import Preprocessing
from vlp_deploy.images.preprocess import preprocess
from vlp_train.images import ImageSet

PREPROCESSING = Preprocessing(image_size=16)


@pytest.fixture
def samples(toy_data: Path) -> tuple[Sample, ...]:
    return load_dataset(toy_data).split("train")  # 18


def image_set(samples: tuple[Sample, ...], *, seed: int = 1, augment: bool = True) -> ImageSet:
    return ImageSet(samples, PREPROCESSING, seed=seed, augment=augment)


def test_an_epoch_is_the_same_whatever_was_drawn_before(samples: tuple[Sample, ...]) -> None:
    one, other = image_set(samples), image_set(samples)
    for _ in one.epoch(0, 4):
        pass

    pairs = zip(one.epoch(3, 4), other.epoch(3, 4), strict=True)

    for first, second in pairs:
        assert np.array_equal(first.indices, second.indices)
        assert first.pixels.equal(second.pixels)
        assert first.labels.equal(second.labels)


def test_seeds_and_epochs_differ(samples: tuple[Sample, ...]) -> None:
    first = next(image_set(samples).epoch(0, 18))
    later = next(image_set(samples).epoch(1, 18))
    seeded = next(image_set(samples, seed=2).epoch(0, 18))

    assert not np.array_equal(first.indices, later.indices)
    assert not np.array_equal(first.indices, seeded.indices)
    by_index = [batch.pixels[np.argsort(batch.indices)] for batch in (first, later)]
    assert not by_index[0].equal(by_index[1])


@pytest.mark.parametrize(
    ("batch_size", "sizes"), [(4, [4, 4, 4, 4]), (6, [6, 6, 6]), (18, [18]), (32, [18])]
)
def test_an_incomplete_batch_is_dropped_unless_it_is_the_only_one(
    samples: tuple[Sample, ...], batch_size: int, sizes: list[int]
) -> None:
    batches = list(image_set(samples).epoch(0, batch_size))

    assert [len(batch.labels) for batch in batches] == sizes
    seen = np.concatenate([batch.indices for batch in batches])
    assert len(set(seen.tolist())) == len(seen)


def test_labels_belong_to_their_images(samples: tuple[Sample, ...]) -> None:
    for batch in image_set(samples).epoch(0, 4):
        assert batch.labels.tolist() == [samples[index].label for index in batch.indices]


def test_without_augmentation_pixels_are_those_that_are_served(
    samples: tuple[Sample, ...],
) -> None:
    (batch,) = image_set(samples, augment=False).in_order(18)

    for pixels, sample in zip(batch.pixels, samples, strict=True):
        assert np.array_equal(pixels.numpy(), preprocess(sample.path, PREPROCESSING))


def test_an_unreadable_image_is_named(samples: tuple[Sample, ...], tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")

    with pytest.raises(DataError, match=r"broken\.png"):
        list(image_set((*samples, Sample(broken, 0))).in_order(4))


def test_batches_can_be_left_early(samples: tuple[Sample, ...]) -> None:
    assert len(list(islice(image_set(samples).epoch(0, 2), 2))) == 2


def test_few_shots_are_a_function_of_the_seed(samples: tuple[Sample, ...]) -> None:
    one, again, other = (few_shot(samples, shots=2, seed=seed) for seed in (1, 1, 2))

    assert one == again != other
    assert [sample.label for sample in one] == [0, 0, 1, 1, 2, 2]
