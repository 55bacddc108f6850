"""Forms of DATA, each way in which they can be wrong, few-shot drawing."""

import csv
import errno
import json
import os
import random
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vlp_deploy.bulk.inputs import Inputs
from vlp_deploy.data.dataset import Dataset, Sample, check_readable, few_shot, load_dataset, subset
from vlp_deploy.errors import DataError, MissingExtraError
from vlp_deploy.images.loading import IMAGE_SUFFIXES


def touch(root: Path, *names: str) -> Path:
    for name in names:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return root


def write(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


def relative(dataset: Dataset, split: str, root: Path) -> list[tuple[str, str]]:
    """(path below root, class name) of each sample."""
    return [
        (sample.path.relative_to(root).as_posix(), dataset.class_names[sample.label])
        for sample in dataset.split(split)
    ]


# Folders


def test_class_folders_become_one_unsplit_set_in_sorted_order(tmp_path: Path) -> None:
    touch(tmp_path, "red_apple/2.JPG", "red_apple/1.png", "guitar/a.webp")
    dataset = load_dataset(tmp_path)
    assert dataset.class_names == ("guitar", "red apple")
    assert dataset.source == tmp_path
    assert relative(dataset, "all", tmp_path) == [
        ("guitar/a.webp", "guitar"),
        ("red_apple/1.png", "red apple"),
        ("red_apple/2.JPG", "red apple"),
    ]


def test_split_of_an_unsplit_set_is_all_of_it(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "b/1.png")
    dataset = load_dataset(tmp_path)
    assert dataset.split("test") == dataset.split("train") == dataset.splits["all"]


def test_split_folders_share_labels(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/1.png", "train/b/2.png", "Validation/b/3.png", "test/b/4.png")
    dataset = load_dataset(tmp_path)
    assert set(dataset.splits) == {"train", "val", "test"}
    assert relative(dataset, "val", tmp_path) == [("Validation/b/3.png", "b")]
    assert dataset.split("test") == (Sample(tmp_path / "test/b/4.png", 1),)


def test_class_called_train_beside_others_is_a_class(tmp_path: Path) -> None:
    touch(tmp_path, "train/1.png", "tram/1.png")
    assert load_dataset(tmp_path).class_names == ("train", "tram")


def test_hidden_and_other_files_are_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "a/.hidden.png", "a/notes.txt", "b/1.png", ".git/c.png", "READ.png")
    assert [name for name, _ in relative(load_dataset(tmp_path), "all", tmp_path)] == [
        "a/1.png",
        "b/1.png",
    ]


def test_linked_class_folder_is_followed(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/1.png", "data/a/1.png")
    (tmp_path / "data/b").symlink_to(tmp_path / "elsewhere")
    assert load_dataset(tmp_path / "data").class_names == ("a", "b")


def test_class_name_in_another_script_is_composed(tmp_path: Path) -> None:
    touch(tmp_path, "cafe\u0301/1.png", "りんご/1.png")  # e + combining accent, as macOS writes it
    assert load_dataset(tmp_path).class_names == ("caf\u00e9", "りんご")


def test_folder_without_images_names_the_class(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "empty/notes.txt")
    with pytest.raises(DataError, match=r"Class folder .*empty holds no images \(1 other files\)"):
        load_dataset(tmp_path)


def test_folder_inside_a_class_folder_is_an_error(tmp_path: Path) -> None:
    touch(tmp_path, "cats/tabby/1.png", "dogs/1.png")
    with pytest.raises(DataError, match=r"cats is a class folder, but holds the folder 'tabby'"):
        load_dataset(tmp_path)


@pytest.mark.parametrize("inside", ["1.png", "train/1.png"])
def test_folder_without_class_folders_is_an_error(tmp_path: Path, inside: str) -> None:
    touch(tmp_path, inside)
    with pytest.raises(DataError, match=r"has no class folders\. Expected one sub-folder"):
        load_dataset(tmp_path)


def test_two_folders_for_one_split_are_an_error(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/1.png", "val/a/1.png", "valid/a/1.png")
    with pytest.raises(DataError, match="are both the val split"):
        load_dataset(tmp_path)


def test_one_class_is_an_error(tmp_path: Path) -> None:
    touch(tmp_path, "only/1.png")
    with pytest.raises(DataError, match="has one class only, 'only'"):
        load_dataset(tmp_path)


@pytest.mark.parametrize("twin", ["Red_Apple", "red apple", "red__apple"])
def test_folders_with_one_class_name_are_an_error(tmp_path: Path, twin: str) -> None:
    touch(tmp_path, "red_apple/1.png", f"{twin}/1.png")
    with pytest.raises(DataError, match=r"(?i)'red.*' and 'red.*' are both class 'red apple'"):
        load_dataset(tmp_path)


def test_folder_without_a_name_is_an_error(tmp_path: Path) -> None:
    touch(tmp_path, "___/1.png", "b/1.png")
    with pytest.raises(DataError, match="class '___' has no readable name"):
        load_dataset(tmp_path)


def test_class_absent_from_training_is_an_error(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/1.png", "train/b/1.png", "test/a/1.png", "test/c/1.png")
    with pytest.raises(DataError, match=r"no training images for c\. Every class"):
        load_dataset(tmp_path)


def test_absent_split_names_those_there_are(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/1.png", "train/b/1.png", "val/a/1.png")
    with pytest.raises(DataError, match="has no split 'test', only train, val"):
        load_dataset(tmp_path).split("test")


def test_source_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere does not exist\. Expected a folder"):
        load_dataset(tmp_path / "nowhere")


def test_image_root_for_a_folder_is_an_error(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "b/1.png")
    with pytest.raises(DataError, match="an image root is for list files"):
        load_dataset(tmp_path, image_root=tmp_path)


def test_folder_that_may_not_be_listed_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder)

    monkeypatch.setattr(os, "scandir", refuse)  # chmod stops nobody who runs as root
    with pytest.raises(DataError, match="cannot be listed: Permission denied"):
        load_dataset(tmp_path)


# Class names files


@pytest.mark.parametrize(
    "text",
    [
        "n01 tench\nn02 great white shark, man-eater\n",
        "n01,tench\nn02,great white shark, man-eater\n",
        "\ufeff# ImageNet\n\nn02\tgreat white shark, man-eater\r\nn01\ttench\r\nn03\tunused\n",
    ],
)
def test_class_names_file_renames_folders(tmp_path: Path, text: str) -> None:
    touch(tmp_path / "data", "n01/1.png", "n02/1.png")
    names = write(tmp_path / "classnames.txt", text)
    dataset = load_dataset(tmp_path / "data", classnames=names)
    assert dataset.class_names == ("tench", "great white shark, man-eater")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n01 tench\n", r"classnames.txt has no name for n02 of .*data"),
        ("n01 tench\nn02\n", r"classnames.txt, line 2: expected 'folder name', got 'n02'"),
        ("n01 tench\nn01 shark\n", r"classnames.txt, line 2: 'n01' has a name already"),
        ("n01 missile\nn02 Missile\n", r"'missile' and 'Missile' .*classnames.txt"),
    ],
)
def test_wrong_class_names_file_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    touch(tmp_path / "data", "n01/1.png", "n02/1.png")
    names = write(tmp_path / "classnames.txt", text)
    with pytest.raises(DataError, match=message):
        load_dataset(tmp_path / "data", classnames=names)


def test_absent_class_names_file_is_an_error(tmp_path: Path) -> None:
    touch(tmp_path / "data", "a/1.png", "b/1.png")
    with pytest.raises(DataError, match=r"names.txt cannot be read: No such file"):
        load_dataset(tmp_path / "data", classnames=tmp_path / "names.txt")


# Tables

Record = dict[str, object]
RECORDS: list[Record] = [
    {"path": "x/1.png", "label": "red_apple", "split": "train"},
    {"path": "x/2.png", "label": "guitar", "split": "train"},
    {"path": "x/3.png", "label": "guitar", "split": "test"},
]


def write_csv(file: Path, records: Iterable[Record]) -> None:
    records = list(records)
    with open(file, "w", encoding="utf-8-sig", newline="") as stream:
        dialect = "excel-tab" if file.suffix == ".tsv" else "excel"
        writer = csv.DictWriter(stream, list(records[0]), dialect=dialect)
        writer.writeheader()
        writer.writerows(records)


def write_jsonl(file: Path, records: Iterable[Record]) -> None:
    write(file, "\n\n".join(json.dumps(record) for record in records))


def write_parquet(file: Path, records: Iterable[Record]) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(records)), file)


@pytest.mark.parametrize(
    ("name", "writer"),
    [
        ("list.csv", write_csv),
        ("list.tsv", write_csv),
        ("list.jsonl", write_jsonl),
        ("list.PARQUET", write_parquet),
    ],
)
def test_tables_agree(
    tmp_path: Path, name: str, writer: Callable[[Path, Iterable[Record]], None]
) -> None:
    touch(tmp_path, "x/1.png", "x/2.png", "x/3.png")
    writer(tmp_path / name, RECORDS)
    dataset = load_dataset(tmp_path / name)
    assert dataset.class_names == ("guitar", "red apple")
    assert relative(dataset, "train", tmp_path) == [("x/1.png", "red apple"), ("x/2.png", "guitar")]
    assert relative(dataset, "test", tmp_path) == [("x/3.png", "guitar")]


def test_table_without_splits_keeps_its_order_and_extra_columns_do_no_harm(tmp_path: Path) -> None:
    touch(tmp_path, "1.png", "2.png")
    table = write(tmp_path / "t.csv", "id,label,path\n7,b,2.png\n8,a,1.png\n")
    assert relative(load_dataset(table), "all", tmp_path) == [("2.png", "b"), ("1.png", "a")]


def test_image_root_and_absolute_paths(tmp_path: Path) -> None:
    touch(tmp_path, "images/1.png", "other/2.png")
    table = write(tmp_path / "lists/t.csv", f"path,label\n1.png,a\n{tmp_path}/other/2.png,b\n")
    dataset = load_dataset(table, image_root=tmp_path / "images")
    assert [sample.path for sample in dataset.split("all")] == [
        tmp_path / "images/1.png",
        tmp_path / "other/2.png",
    ]


def test_integer_labels_take_names_from_the_class_names_file(tmp_path: Path) -> None:
    touch(tmp_path, "1.png", "2.png")
    table = write(
        tmp_path / "t.jsonl", '{"path": "1.png", "label": 0}\n{"path": "2.png", "label": 1}\n'
    )
    names = write(tmp_path / "names.txt", "0 cat\n1 dog\n")
    assert load_dataset(table, classnames=names).class_names == ("cat", "dog")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "file,label\n", r"t.csv has no column path\. .* found file, label"),
        ("t.csv", "path;label\n1.png;a\n", r"no column path, label\. .* found path;label"),
        ("t.csv", "", r"no column path, label\. .* found none"),
        ("t.csv", "path,label\n", r"t.csv lists no images"),
        ("t.csv", "path,label\n1.png,a\n2.png\n", r"t.csv, line 3: label is None"),
        ("t.csv", "path,label\n,a\n", r"t.csv, line 2: path is ''"),
        ("t.csv", "path,label\n1.png,a,b\n", r"t.csv, line 2: more fields than the header"),
        ("t.csv", "path,label\n1.png,a\n2.png,a\n", r"t.csv has one class only, 'a'"),
        (
            "t.csv",
            "path,label\n1.png,a\n9.png,b\n",
            r"1 of 2 images do not exist(?s:.)*9.png \(line 3\)",
        ),
        (
            "t.csv",
            "path,label\n1.png,a\n1.png,b\n",
            r"1.png is labelled both 'a' and 'b'",
        ),
        ("t.csv", "path,label\n1.png,a\n./1.png,a\n", r"1.png is listed twice \(line 2, line 3\)"),
        (
            "t.csv",
            "path,label,split\n1.png,a,train\n1.png,a,test\n",
            r"1.png is in both splits train and test",
        ),
        ("t.csv", "path,label,split\n1.png,a,dev\n", r"t.csv, line 2: unknown split 'dev'"),
        ("t.csv", "path,label,split\n1.png,a,train\n2.png,b,\n", r"1 images have no split"),
        ("t.csv", "path,label\n../1.png,a\n", r"line 2: ../1.png leaves the image root"),
        ("t.jsonl", '{"path": "1.png", "label": "a"}\n{oops\n', r"t.jsonl, line 2: not JSON"),
        ("t.jsonl", '["1.png", "a"]\n', r"t.jsonl, line 1: expected an object, got \["),
        ("t.jsonl", '{"path": "1.png"}\n', r"t.jsonl has no column label\. .* found path"),
        ("t.jsonl", '{"path": "1.png", "label": true}\n', r"line 1: label is True"),
        ("t.parquet", "path,label", r"t.parquet is no readable Parquet file"),
        ("t.txt", "1.png a", r"t.txt is no list that is known here"),
    ],
)
def test_wrong_table_is_an_error(tmp_path: Path, name: str, text: str, message: str) -> None:
    touch(tmp_path, "1.png", "2.png")
    with pytest.raises(DataError, match=message):
        load_dataset(write(tmp_path / name, text))


def test_table_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes("path,label\ncafé.png,a\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"t.csv is not UTF-8"):
        load_dataset(tmp_path / "t.csv")


def test_only_ten_missing_images_are_named(tmp_path: Path) -> None:
    rows = "".join(f"{i}.png,{i % 2}\n" for i in range(12))
    with pytest.raises(DataError, match=r"12 of 12 images") as caught:
        load_dataset(write(tmp_path / "t.csv", f"path,label\n{rows}"))
    assert str(caught.value).count(".png") == 10
    assert str(caught.value).endswith("and 2 more")


def test_image_root_that_is_no_folder_is_an_error(tmp_path: Path) -> None:
    table = write(tmp_path / "t.csv", "path,label\n")
    with pytest.raises(DataError, match=r"image root .*nowhere is not a folder"):
        load_dataset(table, image_root=tmp_path / "nowhere")


def test_parquet_without_pyarrow_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'vlp-deploy\[parquet\]'"):
        load_dataset(write(tmp_path / "t.parquet", ""))


# CoOp's split files


def test_coop_split_keeps_its_label_numbers(tmp_path: Path) -> None:
    touch(tmp_path, "images/1.jpg", "images/2.jpg", "images/3.jpg")
    content = {
        "train": [["1.jpg", 1, "abyssinian_cat"], ["2.jpg", 0, "zebra"]],
        "val": [],
        "test": [["3.jpg", 1, "abyssinian_cat"]],
    }
    split = write(tmp_path / "split_zhou_Pets.json", json.dumps(content))
    dataset = load_dataset(split, image_root=tmp_path / "images")
    assert dataset.class_names == ("zebra", "abyssinian cat")
    assert set(dataset.splits) == {"train", "test"}
    assert relative(dataset, "train", tmp_path / "images") == [
        ("1.jpg", "abyssinian cat"),
        ("2.jpg", "zebra"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{\n,", r"s.json, line 2: not JSON"),
        ("[1, 2]", r"s.json is no CoOp split"),
        ('{"train": 1}', r"s.json is no CoOp split"),
        ('{"train": []}', r"s.json lists no images"),
        ('{"train": [["1.jpg", "0", "a"]]}', r"s.json, train\[0\]: expected \[path, label number"),
        ('{"train": [["1.jpg", true, "a"]]}', r"train\[0\]: expected"),
        (
            '{"train": [["1.jpg", 0, "a"], ["2.jpg", 0, "b"]]}',
            r"train\[1\]: label 0 is 'b' here and 'a' before",
        ),
        (
            '{"train": [["1.jpg", 0, "a"], ["2.jpg", 1, "a"]]}',
            r"'a' and 'a' are both class 'a'",
        ),
        (
            '{"train": [["1.jpg", 0, "a"], ["2.jpg", 2, "b"]]}',
            r"found 2 labels from 0 to 2 without 1",
        ),
        ('{"train": [["1.jpg", -1, "a"], ["2.jpg", 0, "b"]]}', r"from -1 to 0 without 1"),
        ('{"train": [["1.jpg", 0, "a"]], "dev": [["2.jpg", 1, "b"]]}', r"unknown split 'dev'"),
    ],
)
def test_wrong_coop_split_is_an_error(tmp_path: Path, content: str, message: str) -> None:
    touch(tmp_path, "1.jpg", "2.jpg")
    with pytest.raises(DataError, match=message):
        load_dataset(write(tmp_path / "s.json", content))


# Few-shot drawing

labelled = st.lists(st.integers(0, 4), min_size=1, max_size=60).map(
    lambda labels: [Sample(Path(f"{i}.png"), label) for i, label in enumerate([*range(5), *labels])]
)


@given(samples=labelled, shots=st.integers(1, 20), seed=st.integers())
def test_few_shot_draws_each_class_without_repeats(
    samples: list[Sample], shots: int, seed: int
) -> None:
    drawn = few_shot(samples, shots=shots, seed=seed)
    assert drawn == few_shot(samples, shots=shots, seed=seed)
    assert len(set(drawn)) == len(drawn)
    assert set(drawn) <= set(samples)
    assert [sample.label for sample in drawn] == sorted(sample.label for sample in drawn)
    for label in range(5):
        there = sum(sample.label == label for sample in samples)
        assert sum(sample.label == label for sample in drawn) == min(shots, there)


def test_few_shot_is_the_specified_draw() -> None:
    samples = [Sample(Path(f"{i}.png"), i % 2) for i in range(20)]
    generator = random.Random(3)
    expected = generator.sample(samples[0::2], 4) + generator.sample(samples[1::2], 4)
    assert list(few_shot(samples, shots=4, seed=3)) == expected


def test_few_shot_seeds_differ() -> None:
    samples = [Sample(Path(f"{i}.png"), 0) for i in range(100)]
    assert few_shot(samples, shots=4, seed=1) != few_shot(samples, shots=4, seed=2)


@pytest.mark.parametrize(
    ("labels", "shots", "message"),
    [
        ([0, 1], 0, "at least 1 shot a class, got 0"),
        ([0, 2, 2], 4, "No samples to draw 4 shots from for label 1"),
        ([], 1, "No samples to draw 1 shots from for label 0"),
    ],
)
def test_impossible_few_shot_is_an_error(labels: list[int], shots: int, message: str) -> None:
    samples = [Sample(Path(f"{i}.png"), label) for i, label in enumerate(labels)]
    with pytest.raises(DataError, match=message):
        few_shot(samples, shots=shots, seed=1)


# Base and new classes


def lettered(classes: int, *, images: int = 3) -> Dataset:
    """Classes a, b, c, … with images in train and test."""
    names = tuple(chr(ord("a") + label) for label in range(classes))
    splits = {
        split: tuple(
            Sample(Path(f"{split}/{names[label]}/{i}.png"), label)
            for i in range(images)
            for label in range(classes)
        )
        for split in ("train", "test")
    }
    return Dataset(class_names=names, splits=splits, source=Path("letters"))


@pytest.mark.parametrize(("classes", "base"), [(4, "ab"), (5, "abc"), (7, "abcd"), (8, "abcd")])
def test_base_are_the_first_half_rounded_up_and_new_the_rest(classes: int, base: str) -> None:
    whole = lettered(classes)
    first, rest = subset(whole, "base"), subset(whole, "new")
    assert "".join(first.class_names) == base
    assert first.class_names + rest.class_names == whole.class_names
    for half in (first, rest):
        for split, samples in half.splits.items():
            assert {sample.label for sample in samples} == set(range(len(half.class_names)))
            for path, label in samples:
                assert path.parent == Path(split) / half.class_names[label]
            there = [s.path for s in whole.splits[split]]
            assert [path for path, _ in samples] == [
                path for path in there if path.parent.name in half.class_names
            ]


def test_subset_of_all_classes_is_the_data_itself() -> None:
    whole = lettered(3)
    assert subset(whole, "all") is whole


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_base_classes_get_the_shots_that_they_get_in_the_whole(seed: int) -> None:
    whole = lettered(5, images=9)
    everything = few_shot(whole.split("train"), shots=2, seed=seed)
    base = few_shot(subset(whole, "base").split("train"), shots=2, seed=seed)
    assert list(base) == [sample for sample in everything if sample.label < 3]


@pytest.mark.parametrize("source", ["folder", "splits", "list.csv", "coop.json"])
def test_every_form_of_data_is_parted(tmp_path: Path, source: str) -> None:
    names = [f"{letter}/{i}.png" for letter in "abcde" for i in range(2)]
    parts = ("train/", "test/") if source == "splits" else ("",)
    data = touch(tmp_path, *(part + name for part in parts for name in names))
    if source == "list.csv":
        lines = [f"{name},{name[0]}" for name in reversed(names)]
        data = write(tmp_path / source, "\n".join(["path,label", *lines]))
    if source == "coop.json":
        entries = [[name, "abcde".index(name[0]), name[0]] for name in names]
        data = write(tmp_path / source, json.dumps({"train": entries}))

    new = subset(load_dataset(data), "new")

    assert new.class_names == ("d", "e")
    found = {(sample.path.parent.name, sample.label) for sample in new.split("train")}
    assert found == {("d", 0), ("e", 1)}


@pytest.mark.parametrize("which", ["base", "new"])
def test_three_classes_have_no_two_halves(which: Literal["base", "new"]) -> None:
    with pytest.raises(DataError, match="has 3 classes, which cannot be parted"):
        subset(lettered(3), which)


def test_a_half_without_test_images_is_an_error() -> None:
    whole = lettered(4)
    test = tuple(sample for sample in whole.split("test") if sample.label < 2)
    lopsided = Dataset(
        class_names=whole.class_names, splits={**whole.splits, "test": test}, source=whole.source
    )
    assert subset(lopsided, "base").split("test") == test
    with pytest.raises(DataError, match="no test images of the new classes c, d"):
        subset(lopsided, "new")


@pytest.mark.parametrize("label", [-1, 2, 1000])
def test_a_label_without_a_class_name_is_an_error(label: int) -> None:
    samples = (Sample(Path("a.png"), 0), Sample(Path("b.png"), label))
    with pytest.raises(DataError, match=rf"b\.png has label {label}, but there are 2 class names"):
        Dataset(class_names=("a", "b"), splits={"test": samples}, source=Path("data"))


# Readable images


def test_readable_images_pass_whatever_their_extension(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "really_png.jpg", "PNG")
    check_readable([Sample(tmp_path / "really_png.jpg", 0)])


def test_unreadable_images_are_all_counted_and_named_with_the_reason(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "good.png")
    write(tmp_path / "text.png", "no image")
    touch(tmp_path, "empty.jpg")
    (tmp_path / "dangling.png").symlink_to(tmp_path / "gone.png")
    names = ["good.png", "text.png", "empty.jpg", "dangling.png"]
    with pytest.raises(DataError, match="3 of 4 images cannot be read") as caught:
        check_readable([Sample(tmp_path / name, 0) for name in names])
    message = str(caught.value)
    assert "good.png" not in message
    assert "text.png: this is not an image: the file holds text" in message
    assert "empty.jpg: the file is empty" in message
    assert "dangling.png: this is a link to a file that does not exist" in message


def test_pipes_and_formats_that_classify_refuses_are_unreadable(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")  # opening it would wait for ever
    Image.new("L", (4, 4)).save(tmp_path / "drawing.png", "PCX")
    with pytest.raises(DataError, match="2 of 2 images cannot be read") as caught:
        check_readable([Sample(tmp_path / name, 0) for name in ("pipe.png", "drawing.png")])
    assert "a pipe, a socket or a device" in str(caught.value)
    assert "drawing.png: this is not an image in a known format" in str(caught.value)


def test_folders_take_what_classify_takes(tmp_path: Path) -> None:
    names = [f"1{suffix}" for suffix in IMAGE_SUFFIXES]
    touch(tmp_path, "b/1.png", *(f"a/{name}" for name in names))
    found = list(Inputs([tmp_path / "a"]))
    assert [sample.path.name for sample in load_dataset(tmp_path).splits["all"][:-1]] == [
        os.path.basename(str(path)) for path in found
    ]
    assert len(found) == len(IMAGE_SUFFIXES) >= 25


def test_only_ten_unreadable_images_are_named(tmp_path: Path) -> None:
    samples = [Sample(tmp_path / f"{i}.png", 0) for i in range(25)]
    with pytest.raises(DataError, match="25 of 25") as caught:
        check_readable(samples)
    assert str(caught.value).count(".png") == 10
    assert str(caught.value).endswith("and 15 more")
