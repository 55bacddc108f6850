"""`--copy-to` and `--symlink`: every image under its label, nothing replaced, nothing twice."""

import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from vlp_deploy import cli
from vlp_deploy.bulk.items import Item
from vlp_deploy.bulk.outputs.sorted_images import SortedImages, safe_name
from vlp_deploy.bulk.results import Row
from vlp_deploy.errors import DataError

Sort = Callable[..., int]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two images of one name in two folders, an odd name, and a damaged file."""
    folder = tmp_path / "images"
    for part, colour in (("a", "red"), ("b", "blue")):
        (folder / part).mkdir(parents=True)
        Image.new("RGB", (20, 30), colour).save(folder / part / "same.png")
    Image.new("RGB", (20, 30), "red").save(folder / "\udcff.png")
    (folder / "damaged.jpg").write_bytes(b"no picture")
    return folder


@pytest.fixture
def sort(images: Path, fake_bundle: Path, tmp_path: Path) -> Sort:
    def run(*options: object) -> int:
        (tmp_path / "one.txt").write_text("a/b\n")  # so that all images have the same label
        fixed = ("--bundle", fake_bundle, "--classes", tmp_path / "one.txt")
        return cli.run(["classify", *map(str, (images, *fixed, *options))])

    return run


def names(folder: Path) -> list[bytes]:
    return sorted(os.listdir(os.fsencode(folder)))


SORTED = [b"same-2.png", b"same.png", b"\xff.png"]


@pytest.mark.parametrize("option", ["--copy-to", "--symlink"])
def test_every_readable_image_lies_under_its_label_once(
    sort: Sort, images: Path, tmp_path: Path, option: str
) -> None:
    target = tmp_path / "sorted" / "{label}"
    output = ("--output", tmp_path / "out.jsonl", "--batch-size", "2")

    for again in (
        (),
        (),
        ("--force",),
    ):  # the second finds a complete output, the third begins anew
        assert sort(option, target, *output, *again) == 1
        assert names(tmp_path / "sorted") == [b"a_b"]
        assert names(tmp_path / "sorted" / "a_b") == SORTED

    found = {path.read_bytes() for path in (tmp_path / "sorted" / "a_b").glob("same*")}
    assert found == {path.read_bytes() for path in images.glob("?/same.png")}
    assert (tmp_path / "sorted" / "a_b" / "same.png").is_symlink() == (option == "--symlink")


@pytest.mark.parametrize("option", ["--copy-to", "--symlink"])
def test_files_of_the_user_are_never_replaced(sort: Sort, tmp_path: Path, option: str) -> None:
    folder = tmp_path / "sorted" / "a_b"
    folder.mkdir(parents=True)
    (folder / "same.png").write_bytes(b"mine")
    (folder / "same-2.png").symlink_to("nowhere")

    sort(option, tmp_path / "sorted" / "{label}")

    assert (folder / "same.png").read_bytes() == b"mine"
    assert os.readlink(folder / "same-2.png") == "nowhere"
    assert names(folder) == [b"same-2.png", b"same-3.png", b"same-4.png", b"same.png", b"\xff.png"]


def test_run_that_broke_off_sorts_what_is_missing(sort: Sort, tmp_path: Path) -> None:
    output, target = tmp_path / "out.jsonl", tmp_path / "sorted" / "{label}"
    sort("--output", output, "--batch-size", "1")
    whole = output.read_bytes()
    output.write_bytes(whole[: len(whole) // 2])
    folder = tmp_path / "sorted" / "a_b"
    folder.mkdir(parents=True)
    (folder / ".new.0123456789ab.vlp-tmp").write_bytes(b"killed while copying")

    sort("--output", output, "--batch-size", "1", "--copy-to", target)

    assert names(folder) == SORTED
    assert output.read_bytes() == whole


def test_images_in_archives_are_copied_where_links_are_asked_for(
    sort: Sort, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(images / "a" / "same.png", "deep/same.png")

    sort(tmp_path / "x.tar", "--copy-to", tmp_path / "copies" / "{label}")
    assert names(tmp_path / "copies" / "a_b") == SORTED  # the same bytes as in a/
    capsys.readouterr()

    assert sort(tmp_path / "x.tar", "--symlink", tmp_path / "links" / "{label}") == 1
    assert "x.tar cannot be linked to: they are copied" in capsys.readouterr().err
    links = tmp_path / "links" / "a_b"
    assert names(links) == [b"same-2.png", b"same-3.png", b"same.png", b"\xff.png"]
    kinds = {path.is_symlink(): path for path in links.glob("same*")}
    assert kinds[False].read_bytes() == (images / "a" / "same.png").read_bytes()
    assert kinds[True].is_symlink()


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("red fox", "red fox"),
        ("a/b\\c", "a_b_c"),
        ("..", "_."),
        (".hidden", "_hidden"),
        ("new\nline\0", "new_line_"),
        ("", "_"),
        ("日本 ü", "日本 ü"),
        ("x" * 300, "x" * 200),
        ("日" * 100, "日" * 66),
    ],
)
def test_labels_become_names_of_folders(label: str, name: str) -> None:
    assert safe_name(label) == name


def test_labels_that_look_alike_have_folders_of_their_own(tmp_path: Path) -> None:
    labels = ["a/b", "a_b", "a\\b"]
    images = SortedImages(f"{tmp_path}/{{label}}", labels, link=False)

    for label in labels:
        images.take(Row("x.jpg", (label,), 1.0), Item("x.jpg", label.encode()))

    content = {path.parent.name: path.read_bytes() for path in tmp_path.glob("*/x.jpg")}
    assert content == {"a_b": b"a/b", "a_b-2": b"a_b", "a_b-3": b"a\\b"}


def test_image_lies_under_each_of_its_labels_or_under_none(tmp_path: Path) -> None:
    images = SortedImages(f"{tmp_path}/{{label}}", ["a", "b", "none of these"], link=False)

    for name, labels in (("two.jpg", ("b", "a")), ("x.jpg", ()), ("y.jpg", ("none of these",))):
        images.take(Row(name, labels, 0.5), Item(name, name.encode()))
    images.take(Row("bad.jpg", (), 0.0, failed=True), Item("bad.jpg", b""))

    assert {str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/*")} == {
        *("a/two.jpg", "b/two.jpg", "none of these/y.jpg"),
        "none of these-2/x.jpg",  # a class of that name keeps its own
    }


def test_folder_that_cannot_be_made_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    images = SortedImages(f"{tmp_path}/file/{{label}}", ["a"], link=False)

    with pytest.raises(DataError, match=r"cannot be put into .*/file/a: Not a directory"):
        images.take(Row("x.jpg", ("a",), 1.0), Item("x.jpg", b"content"))


@pytest.mark.parametrize("template", ["no label", "{label}/{label}", "images/sorted/{label}"])
def test_templates_that_cannot_work_are_refused(
    sort: Sort, tmp_path: Path, template: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sort("--copy-to", f"{tmp_path}/{template}") == 2
    complaint = "is searched for images" if "images" in template else "expected a folder with"
    assert complaint in " ".join(capsys.readouterr().err.replace("│", "").split())
    assert sorted(path.name for path in (tmp_path / "images").iterdir() if path.is_dir()) == [
        "a",
        "b",
    ]
