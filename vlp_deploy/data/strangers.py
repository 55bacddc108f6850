"""A folder or list of images becomes samples of no known class, to say 'none of these' to."""

from collections.abc import Sequence
from pathlib import Path

from vlp_deploy.classes.class_list import name_key
from vlp_deploy.data.dataset import Dataset, Sample, load_dataset
from vlp_deploy.errors import DataError
from vlp_deploy.images.loading import IMAGE_SUFFIXES


def unknown_samples(source: Path, classes: Sequence[str]) -> tuple[Sample, ...]:
    """Images of none of `classes`, each with the number of its own class.

    `source` is a folder of images, or labelled images in any form, of one class at least. Raises
    DataError if it has no image, or one of the classes.
    """
    if flat := _images_right_in(source):
        return flat
    dataset = load_dataset(source, least_classes=1)
    _refuse_known(dataset, classes)
    return dataset.split("test")


def _refuse_known(dataset: Dataset, classes: Sequence[str]) -> None:
    known = {name_key(name) for name in classes}
    if shared := [name for name in dataset.class_names if name_key(name) in known]:
        raise DataError(
            f"--unknown {dataset.source} has {len(shared)} classes that the bundle knows, first "
            f"{shared[0]!r}. Unknown images must be of none of its classes"
        )


def _images_right_in(source: Path) -> tuple[Sample, ...]:
    """The images of a folder without folders; none of class folders or a list."""
    if not source.is_dir():
        return ()
    entries = sorted(path for path in source.iterdir() if not path.name.startswith("."))
    folders = [path for path in entries if path.is_dir()]
    images = [path for path in entries if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
    if images and folders:
        raise DataError(
            f"--unknown {source} has images, first {images[0].name!r}, beside folders, first "
            f"{folders[0].name!r}. Expected one or the other: name one of its folders, or put the "
            "images into one"
        )
    if not images and not folders:
        raise DataError(
            f"--unknown {source} holds no images: neither in it nor in class folders. Images end "
            f"in {', '.join(sorted(IMAGE_SUFFIXES))}"
        )
    return tuple(Sample(path=path, label=0) for path in images)
