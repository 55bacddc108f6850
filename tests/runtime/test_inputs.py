"""Which files of a folder are classified, and in which order."""

import os
from pathlib import Path

import pytest

from vlp_deploy.answers import Failure
from vlp_deploy.inputs import Inputs

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
