"""A DATA argument becomes labelled samples in splits, without opening an image.

DATA is one of

    folder/             class folders with images; or train/, val/, test/ with class folders in each
    list.csv .tsv       columns `path` and `label` (the class name), optionally `split`
    list.jsonl          one object a line, with the same keys
    list.parquet        the same columns; needs the `parquet` extra
    split_zhou_*.json   CoOp's {"train" | "val" | "test": [[path, label number, class name], ...]}

Paths in a list are relative to its own folder, or to `image_root`; absolute ones are taken as they
are. Label numbers follow the sorted folder names or labels; a CoOp file brings its own. In class
names underscores become blanks. Files that are hidden, lie outside class folders or do not end in
IMAGE_SUFFIXES are left out of a folder; a list is taken at its word.
"""

import math
import os
import random
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from vlp_deploy.data.list_files import Row, read_classnames, read_list
from vlp_deploy.errors import DataError, ImageError
from vlp_deploy.images.loading import IMAGE_SUFFIXES, check_header

SPLIT_NAMES = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
UNSPLIT = "all"
NAMED_IN_ERRORS = 10

Subset = Literal["all", "base", "new"]  # of the classes


class Sample(NamedTuple):
    """One image file and the index of its class."""

    path: Path
    label: int


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Samples by split: "train", "val", "test"; or "all" alone where the source has no splits."""

    class_names: tuple[str, ...]
    splits: Mapping[str, tuple[Sample, ...]]
    source: Path

    def __post_init__(self) -> None:
        classes = range(len(self.class_names))
        for split, samples in self.splits.items():
            wrong = next((sample for sample in samples if sample.label not in classes), None)
            if wrong is not None:
                raise DataError(
                    f"{self.source}, split {split}: {wrong.path} has label {wrong.label}, but"
                    f" there are {len(classes)} class names. Give every label from 0 on a name."
                )

    def split(self, name: str) -> tuple[Sample, ...]:
        """The samples of one split; all samples where the source has no splits.

        Raises:
            DataError: the source has splits, but not this one.
        """
        if name in self.splits:
            return self.splits[name]
        if UNSPLIT in self.splits:
            return self.splits[UNSPLIT]
        raise DataError(
            f"{self.source} has no split {name!r}, only {_enumerate(self.splits)}."
            f" Add one named {name!r}, or pass data without splits to use all of it."
        )


def load_dataset(
    source: Path,
    *,
    image_root: Path | None = None,
    classnames: Path | None = None,
    least_classes: int = 2,
) -> Dataset:
    """List a DATA argument; see the module's description for its forms.

    Args:
        source: a folder or a list file.
        image_root: what the paths in a list file are relative to; its own folder by default.
        classnames: a file of lines `folder name`, parted by a tab or else by the first blank or
            comma (CoOp's classnames.txt): the class name for each folder or label.
        least_classes: with fewer there is nothing to tell apart.

    Raises:
        DataError: whatever keeps the data from being used; the message names the file.
        MissingExtraError: a Parquet list without pyarrow.
    """
    if image_root is not None and not os.path.isdir(image_root):
        raise DataError(f"The image root {image_root} is not a folder. Check the path.")
    if os.path.isdir(source):
        if image_root is not None:
            raise DataError(f"{source} is a folder: an image root is for list files. Drop it.")
        labels, splits = _list_folder(source)
    elif os.path.exists(source):
        labels, splits = _list_file(source, image_root or source.parent)
    else:
        raise DataError(f"{source} does not exist. Expected a folder of class folders or a list.")
    names = read_classnames(classnames) if classnames else None
    if len(labels) < least_classes:
        raise DataError(
            f"{source} has one class only, {labels[0]!r}: there is nothing to tell apart."
            " Expected at least two classes."
        )
    class_names = _class_names(labels, source=source, names=names, names_file=classnames)
    _check_training_covers(splits, class_names, source)
    return Dataset(class_names=class_names, splits=splits, source=source)


def subset(dataset: Dataset, which: Subset) -> Dataset:
    """Half of a data set's classes, labels counted from 0 again: the base-to-new protocol.

    With K classes in the order of their labels, "base" are the first ⌈K/2⌉ and "new" the rest
    (CoCoOp's protocol, `subsample_classes` in its code). `few_shot` draws the same images for the
    base classes as it draws for them from the whole.

    Raises:
        DataError: a half of fewer than two classes, or a split without images of that half (but
            for "val", which nothing is measured on).
    """
    if which == "all":
        return dataset
    middle = math.ceil(len(dataset.class_names) / 2)
    if len(dataset.class_names) - middle < 2:
        raise DataError(
            f"{dataset.source} has {len(dataset.class_names)} classes, which cannot be parted into"
            " base and new ones. Expected at least 4: two to tell apart in each half."
        )
    labels = slice(middle) if which == "base" else slice(middle, None)
    kept = range(len(dataset.class_names))[labels]
    splits = {
        split: tuple(Sample(s.path, s.label - kept.start) for s in samples if s.label in kept)
        for split, samples in dataset.splits.items()
    }
    empty = [split for split, samples in splits.items() if not samples and split != "val"]
    if empty:
        raise DataError(
            f"{dataset.source} has no {_enumerate(empty)} images of the {which} classes"
            f" {_enumerate(dataset.class_names[labels])}. Add some, or use all classes."
        )
    return Dataset(class_names=dataset.class_names[labels], splits=splits, source=dataset.source)


def few_shot(samples: Sequence[Sample], *, shots: int, seed: int) -> tuple[Sample, ...]:
    """`shots` random samples of each class, class after class (CoOp's protocol: seeds 1, 2, 3).

    One `random.Random(seed)` serves the classes in label order. A class with fewer images gives all
    that it has, once each.

    Raises:
        DataError: `shots` below 1, no samples, or a class before the last one without any.
    """
    if shots < 1:
        raise DataError(f"Few-shot training needs at least 1 shot a class, got {shots}.")
    by_label: dict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_label[sample.label].append(sample)
    absent = sorted(set(range(max(by_label, default=-1) + 1)) - by_label.keys())
    if absent or not by_label:
        raise DataError(
            f"No samples to draw {shots} shots from for label {_enumerate(map(str, absent)) or 0}."
            " Every class needs an image in the training split."
        )
    generator = random.Random(seed)
    drawn: list[Sample] = []
    for label in sorted(by_label):
        pool = by_label[label]
        drawn += generator.sample(pool, min(shots, len(pool)))
    return tuple(drawn)


def check_readable(samples: Collection[Sample]) -> None:
    """Open the header of every image, which finds what is no image before hours of training.

    A file that is cut off further down passes here and fails when it is decoded.

    Raises:
        DataError: the unreadable files, all counted, the first ten named with the reason.
    """
    unreadable = []
    for sample in samples:
        try:
            check_header(sample.path)
        except ImageError as error:
            unreadable.append(f"{sample.path}: {error}")
    if unreadable:
        raise DataError(
            f"{len(unreadable)} of {len(samples)} images cannot be read."
            f" Replace or remove them:\n{_enumerate(unreadable, separator=chr(10))}"
        )


_Splits = dict[str, tuple[Sample, ...]]


def _list_folder(folder: Path) -> tuple[list[str], _Splits]:
    """Class folders, in splits or not -> labels in order, samples by split."""
    inside = _sub_folders(folder)
    # A class may be called "train", too: only where nothing else is there, they are splits.
    if not inside or not {name.lower() for name in inside} <= SPLIT_NAMES.keys():
        return _list_splits({UNSPLIT: folder})
    folders: dict[str, Path] = {}
    for name in inside:
        split = SPLIT_NAMES[name.lower()]
        if split in folders:
            raise DataError(
                f"{folders[split]} and {folder / name} are both the {split} split. Keep one."
            )
        folders[split] = folder / name
    return _list_splits(folders)


def _list_splits(folders: Mapping[str, Path]) -> tuple[list[str], _Splits]:
    classes = {split: _class_folders(folder) for split, folder in folders.items()}
    labels = sorted({name for names in classes.values() for name in names})
    index = {name: label for label, name in enumerate(labels)}
    splits = {
        split: tuple(
            Sample(path, index[name])
            for name in names
            for path in _images_in(folders[split] / name)
        )
        for split, names in classes.items()
    }
    return labels, splits


def _class_folders(folder: Path) -> list[str]:
    names = _sub_folders(folder)
    if not names:
        raise DataError(
            f"{folder} has no class folders."
            " Expected one sub-folder per class, with its images inside."
        )
    return names


def _sub_folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in _visible(folder) if entry.is_dir())


def _images_in(folder: Path) -> list[Path]:
    """The images of one class, sorted by name."""
    names = []
    others = 0
    for entry in _visible(folder):
        if os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:
            names.append(entry.name)
        elif entry.is_dir():
            raise DataError(
                f"{folder} is a class folder, but holds the folder {entry.name!r}."
                " Put images directly into class folders; splits are called train, val and test."
            )
        else:
            others += 1
    if not names:
        raise DataError(
            f"Class folder {folder} holds no images ({others} other files)."
            f" Images end in {', '.join(sorted(IMAGE_SUFFIXES))}. Add some or remove the folder."
        )
    return [folder / name for name in sorted(names)]


def _visible(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from (entry for entry in entries if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder} cannot be listed: {error.strerror}.") from error


def _list_file(file: Path, root: Path) -> tuple[list[str], _Splits]:
    """A list file -> labels in order, samples by split."""
    rows, labels = read_list(file)
    if not rows:
        raise DataError(f"{file} lists no images.")
    return labels, _samples(rows, labels, file=file, root=root)


def _samples(rows: Iterable[Row], labels: Sequence[str], *, file: Path, root: Path) -> _Splits:
    index = {label: number for number, label in enumerate(labels)}
    splits: dict[str, list[Sample]] = defaultdict(list)
    seen: dict[str, Row] = {}
    missing = []
    for row in rows:
        if ".." in row.path.split("/"):
            raise DataError(
                f"{file}, {row.where}: {row.path} leaves the image root {root}."
                " Pass the folder above as image root and write paths from there."
            )
        path = root / row.path
        written = str(path)  # hashed and looked up faster than a Path, which counts with a million
        if written in seen:
            raise _listed_twice(file, seen[written], row)
        seen[written] = row
        if not os.path.isfile(written):
            missing.append(f"{written} ({row.where})")
        splits[_split_name(row.split, file, row.where)].append(Sample(path, index[row.label]))
    if missing:
        raise DataError(
            f"{file}: {len(missing)} of {len(seen)} images do not exist. Correct the paths, or the"
            f" image root, which is {root}:\n{_enumerate(missing, separator=chr(10))}"
        )
    if UNSPLIT in splits and len(splits) > 1:
        raise DataError(
            f"{file}: {len(splits[UNSPLIT])} images have no split while the others do."
            " Fill the column split in every row, or leave it out."
        )
    return {split: tuple(samples) for split, samples in splits.items()}


def _listed_twice(file: Path, first: Row, second: Row) -> DataError:
    if first.label != second.label:
        what = f"labelled both {first.label!r} and {second.label!r}"
    elif first.split != second.split:
        what = f"in both splits {first.split} and {second.split}, which makes the accuracy untrue"
    else:
        what = "listed twice"
    return DataError(f"{file}: {second.path} is {what} ({first.where}, {second.where}). Keep one.")


def _split_name(split: str, file: Path, where: str) -> str:
    if not split:
        return UNSPLIT
    try:
        return SPLIT_NAMES[split.lower()]
    except KeyError:
        raise DataError(
            f"{file}, {where}: unknown split {split!r}. Expected one of {', '.join(SPLIT_NAMES)}."
        ) from None


def _class_names(
    labels: Sequence[str],
    *,
    source: Path,
    names: Mapping[str, str] | None,
    names_file: Path | None,
) -> tuple[str, ...]:
    """Labels as written -> class names: renamed, underscores as blanks, all different."""
    if names is not None:
        absent = [label for label in labels if label not in names]
        if absent:
            raise DataError(
                f"{names_file} has no name for {_enumerate(absent)} of {source}."
                " Add a line for each."
            )
        labels = [names[label] for label in labels]
    readable: dict[str, str] = {}  # compared form -> label as written
    class_names = []
    for label in labels:
        name = unicodedata.normalize("NFC", " ".join(label.replace("_", " ").split()))
        if not name or not name.isprintable():
            raise DataError(f"{source}: class {label!r} has no readable name. Rename it.")
        if name.casefold() in readable:
            raise DataError(
                f"{source}: {readable[name.casefold()]!r} and {label!r} are both class {name!r}."
                f" Merge them or give them different names in {names_file or 'a class names file'}."
            )
        readable[name.casefold()] = label
        class_names.append(name)
    return tuple(class_names)


def _check_training_covers(splits: _Splits, class_names: Sequence[str], source: Path) -> None:
    if "train" not in splits:
        return
    absent = set(range(len(class_names))) - {sample.label for sample in splits["train"]}
    if absent:
        raise DataError(
            f"{source}: no training images for"
            f" {_enumerate(class_names[label] for label in sorted(absent))}."
            " Every class of val and test must be in train."
        )


def _enumerate(items: Iterable[str], *, separator: str = ", ") -> str:
    """The first few items, and how many more there are."""
    items = list(items)
    text = separator.join(items[:NAMED_IN_ERRORS])
    more = len(items) - NAMED_IN_ERRORS
    return f"{text}{separator}and {more} more" if more > 0 else text
