"""Which images of folders, archives, tables and lists are classified, and in which order."""

import io
import os
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from vlp_deploy.answers import Failure
from vlp_deploy.bulk.inputs import Inputs
from vlp_deploy.bulk.items import Deferred, Item
from vlp_deploy.errors import DataError, ImageError

PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in {
        "b.jpg": b"not even an image",
        "a/z.PNG": PNG,
        "a/y.txt": PNG,  # begins like one
        "a/notes.txt": b"text",
        "B.jpeg": PNG,
        "no ending": PNG,
        "empty": b"",
        "é.webp": b"",
        ".hidden.jpg": PNG,
        ".git/x.png": PNG,
        "c/d/e/deep.tiff": b"",
    }.items():
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "in"


def names(finder: Inputs, folder: Path) -> list[str]:
    return [os.path.relpath(str(found), folder) for found in finder]


def test_folders_are_searched_in_byte_order(folder: Path) -> None:
    finder = Inputs([folder])

    assert names(finder, folder) == [
        "B.jpeg",
        "a/y.txt",
        "a/z.PNG",
        "b.jpg",
        "c/d/e/deep.tiff",
        "no ending",
        "é.webp",
    ]
    assert finder.tally.left_out == 4  # notes, an empty file, two hidden entries


def test_named_paths_always_count_and_keep_their_order(folder: Path) -> None:
    paths = [folder / "a/notes.txt", folder / "absent", folder / ".hidden.jpg", folder / "c"]

    finder = Inputs([*paths, paths[0]])

    assert names(finder, folder) == [
        "a/notes.txt",
        "absent",
        ".hidden.jpg",
        "c/d/e/deep.tiff",
        "a/notes.txt",
    ]


def test_links_to_files_count_and_links_to_folders_do_not(folder: Path) -> None:
    (folder / "a/loop").symlink_to(folder)
    (folder / "a/link").symlink_to(folder / "no ending")
    (folder / "a/dangling").symlink_to("nowhere")
    os.mkfifo(folder / "a/pipe")

    finder = Inputs([folder / "a"])

    assert names(finder, folder) == ["a/dangling", "a/link", "a/pipe", "a/y.txt", "a/z.PNG"]
    assert finder.tally.left_out == 2


def test_names_that_are_not_utf8_are_found(folder: Path) -> None:
    odd = os.fsencode(folder) + b"/a/\xff\xfe.jpg"
    with open(odd, "wb"):
        pass

    assert os.fsdecode(odd) in list(Inputs([folder / "a"]))


def test_folder_that_cannot_be_read_is_one_failure(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def refuse(path: bytes):  # root, as in containers, may read everything
        if path.endswith(b"/c/"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)

    found = list(Inputs([folder]))

    failure = Failure(path=str(folder / "c"), error="the folder cannot be read: Permission denied")
    assert found[4] == failure
    assert len(found) == 7


def test_order_is_that_of_the_bytes_of_whole_paths(tmp_path: Path) -> None:
    for name in ("a/1.jpg", "a.jpg", "a-b/2.jpg", "a/b/3.jpg", "a/b.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    found = [os.fsencode(str(path)) for path in Inputs([tmp_path])]

    assert len(found) == 5
    assert found == sorted(found)


def test_count_is_that_of_the_inputs(folder: Path) -> None:
    assert Inputs([folder, folder / "b.jpg"]).count() == 8
    assert Inputs([folder, Path("-")]).count() is None


MEMBERS = {
    "b.jpg": b"not even an image",
    "./dir/a.png": PNG,
    "no ending": PNG,
    "0001.cls": b"7",
    "dir/.hidden.jpg": PNG,
    "b.jpg.json": b"{}",
}
FOUND = {"b.jpg": b"not even an image", "dir/a.png": PNG, "no ending": PNG}


def write_tar(path: Path, mode: str) -> None:
    with tarfile.open(path, mode) as archive:
        for name, content in MEMBERS.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        (folder := tarfile.TarInfo("empty")).type = tarfile.DIRTYPE
        archive.addfile(folder)


def write_zip(path: Path, compression: int) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in MEMBERS.items():
            archive.writestr(name.removeprefix("./"), content)
        archive.mkdir("empty")


def contents(found: list[object]) -> dict[str, bytes]:
    """Name → bytes of items."""
    assert all(isinstance(item, Item) for item in found), found
    return {
        item.name: item.image.read() if isinstance(item.image, Deferred) else item.image
        for item in found
    }


@pytest.mark.parametrize(
    ("name", "write", "how"),
    [
        ("x.tar", write_tar, "w"),
        ("x.tar.gz", write_tar, "w:gz"),
        ("x.TGZ", write_tar, "w:gz"),
        ("x.tar.xz", write_tar, "w:xz"),
        ("x.zip", write_zip, zipfile.ZIP_STORED),
        ("y.zip", write_zip, zipfile.ZIP_DEFLATED),
    ],
)
def test_archives_give_their_images_in_order(tmp_path: Path, name: str, write, how) -> None:
    write(path := tmp_path / name, how)

    inputs = Inputs([path])
    found = contents(list(inputs))

    assert list(found.items()) == [(f"{path}/{k}", v) for k, v in FOUND.items()]
    assert inputs.tally.left_out == 3


def test_archives_within_folders_are_left_out(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", "w")

    assert list(inputs := Inputs([tmp_path])) == []
    assert inputs.tally.left_out == 1


def test_links_inside_archives_are_failures(tmp_path: Path) -> None:
    with tarfile.open(path := tmp_path / "x.tar", "w") as archive:
        (link := tarfile.TarInfo("a.jpg")).type = tarfile.SYMTYPE
        link.linkname = "/etc/passwd"
        archive.addfile(link)

    (failure,) = Inputs([path])

    assert failure == Failure(
        path=f"{path}/a.jpg", error="this is a link or a device inside an archive, not a file"
    )


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
def test_archive_cut_off_is_a_failure_behind_its_images(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"x.{kind}"
    image = os.urandom(50_000)
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.jpg", image)
    else:
        with tarfile.open(path, "w:gz" if kind == "tar.gz" else "w") as archive:
            (info := tarfile.TarInfo("a.jpg")).size = len(image)
            archive.addfile(info, io.BytesIO(image))
    path.write_bytes(path.read_bytes()[:20_000])

    *images, failure = Inputs([path])

    assert isinstance(failure, Failure)
    assert failure.path == str(path)
    assert "archive cannot be read" in failure.error
    for item in images:
        with pytest.raises(ImageError, match="cut off"):
            item.image.read()


def test_damaged_and_locked_members_of_a_zip_say_so(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("damaged.jpg", bytes(range(256)) * 9)
        archive.writestr("odd method.jpg", PNG, zipfile.ZIP_LZMA)
    content = bytearray(path.read_bytes())
    content[60] ^= 255
    path.write_bytes(content)

    damaged, odd = (item.image for item in Inputs([path]))

    with pytest.raises(ImageError, match="damaged inside the archive"):
        damaged.read()
    with pytest.raises(ImageError, match="packed by method 14"):
        odd.read()
    odd.info.flag_bits |= 1
    with pytest.raises(ImageError, match="password"):
        odd.read()


def test_file_that_is_no_archive_is_a_failure(tmp_path: Path) -> None:
    for name in ("x.tar", "x.zip"):
        (tmp_path / name).write_bytes(b"none of these" * 99)
        (failure,) = Inputs([tmp_path / name])
        assert isinstance(failure, Failure)

    assert list(Inputs([tmp_path / "absent.tar"])) == [str(tmp_path / "absent.tar")]


@pytest.mark.parametrize(
    ("given", "paths"),
    [
        (b"", []),
        (b"a.jpg\nb c.jpg\r\n\nd.jpg", ["a.jpg", "b c.jpg", "d.jpg"]),
        (b"a\nb.jpg\0c.jpg\0", ["a\nb.jpg", "c.jpg"]),
        (b"\xff.jpg\na.jpg\na.jpg\n", [os.fsdecode(b"\xff.jpg"), "a.jpg", "a.jpg"]),
    ],
)
def test_list_on_stdin_is_taken_at_its_word(given: bytes, paths: list[str]) -> None:
    assert list(Inputs([Path("-")], stdin=io.BytesIO(given))) == paths


def test_long_list_is_read_in_pieces() -> None:
    paths = [f"folder/{number:09}.jpg" for number in range(20_000)]

    found = list(Inputs([Path("-")], stdin=io.BytesIO("\n".join(paths).encode())))

    assert found == paths


def write_table(file: Path, /, **columns: object) -> Path:
    arrow = pytest.importorskip("pyarrow", reason="writes the table")
    parquet = pytest.importorskip("pyarrow.parquet", reason="writes the table")
    parquet.write_table(arrow.table(columns), file)
    return file


def test_table_of_bytes_gives_its_rows(tmp_path: Path) -> None:
    path = write_table(tmp_path / "x.parquet", image=[PNG, None, b"x"], label=[1, 2, 3])

    first, empty, last = Inputs([path])

    assert (first, last) == (Item(f"{path}/0", PNG), Item(f"{path}/2", b"x"))
    assert empty == Failure(path=f"{path}/1", error="this row holds no image")


def test_table_as_hugging_face_writes_it_gives_its_rows(tmp_path: Path) -> None:
    rows = [{"bytes": PNG, "path": "a.png"}, {"bytes": PNG, "path": None}] * 20
    path = write_table(tmp_path / "x.parquet", image=rows)

    found = list(Inputs([path]))

    assert found[:2] == [Item("a.png", PNG), Item(f"{path}/1", PNG)]
    assert len(found) == 40


def test_table_of_paths_names_files_beside_it(tmp_path: Path) -> None:
    path = write_table(tmp_path / "x.parquet", path=["a.png", "b/c.png", None, "/d.png"])

    found = list(Inputs([path]))

    assert found[:2] == [
        Item("a.png", str(tmp_path / "a.png")),
        Item("b/c.png", str(tmp_path / "b/c.png")),
    ]
    assert isinstance(found[2], Failure)
    assert found[3] == Item("/d.png", "/d.png")


def test_table_without_images_is_the_users_error(tmp_path: Path) -> None:
    path = write_table(tmp_path / "x.parquet", picture=[PNG])
    (other := tmp_path / "y.parquet").write_bytes(b"no table")

    with pytest.raises(DataError, match="no column image, bytes or path; found picture"):
        list(Inputs([path]))
    (failure,) = Inputs([other])
    assert "Parquet file cannot be read" in failure.error


def test_folder_of_very_many_files_is_listed_in_little_memory(tmp_path: Path) -> None:
    for number in range(20_000):
        os.mknod(tmp_path / f"image number {number:06}.jpg")
    tracemalloc.start()

    count = Inputs([tmp_path]).count()

    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 20_000
    assert peak < 80 * 20_000  # measured 69 bytes a file; entries of os.scandir took 314
