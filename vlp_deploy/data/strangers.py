"""A folder or list of images becomes samples of no known class, to say 'none of these' to."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from vlp_deploy.classes.class_list import name_key
from vlp_deploy.data.dataset import Dataset, Sample, load_dataset
from vlp_deploy.errors import DataError
from vlp_deploy.images.loading import IMAGE_SUFFIXES


def unknown_samples(source: Path, classes: Sequence[str]) -> tuple[Sample, ...]:
    """Images of none of `classes`, each with the number of its own class.

    `source` is a folder of images, or labelled images in any form. Raises DataError if it has one
    of the classes.
    """
    flat = tuple(_images_in(source))
    dataset = Dataset(class_names=("unknown",), splits={"all": flat}, source=source)
    if not flat:
        dataset = load_dataset(source)
    known = {name_key(name) for name in classes}
    if shared := [name for name in dataset.class_names if name_key(name) in known]:
        raise DataError(
            f"--unknown {source} has {len(shared)} classes that the bundle knows, first "
            f"{shared[0]!r}. Unknown images must be of none of its classes"
        )
    return dataset.split("test")


def _images_in(folder: Path) -> Iterator[Sample]:
    """The image files right in a folder."""
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
                yield Sample(path=path, label=0)
