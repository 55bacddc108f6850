"""Damage is found and named, wherever it is."""

import errno
import subprocess
from pathlib import Path

import pytest

from vlp_deploy.errors import BundleError, IntegrityError
from vlp_deploy.formats.sealed import CHECKSUMS, SealedFolder, seal

FILES = {"graph.onnx": b"graph" * 100, "manifest.json": b"{}", "empty": b""}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "bundle"
    path.mkdir()
    for name, content in {**FILES, CHECKSUMS: seal(FILES)}.items():
        (path / name).write_bytes(content)
    return path


def complaints(folder: Path) -> dict[str, str]:
    return {name: text for name, text in SealedFolder(folder).verify() if text is not None}


def test_an_intact_folder_has_no_complaint(folder: Path) -> None:
    assert complaints(folder) == {}
    assert SealedFolder(folder).read("graph.onnx") == FILES["graph.onnx"]


@pytest.mark.parametrize("position", [0, 250, 499])
def test_a_flipped_byte_is_found_and_its_file_named(folder: Path, position: int) -> None:
    content = bytearray(FILES["graph.onnx"])
    content[position] ^= 1
    (folder / "graph.onnx").write_bytes(content)

    assert list(complaints(folder)) == ["graph.onnx"]
    with pytest.raises(IntegrityError, match=r"graph\.onnx has changed since export"):
        SealedFolder(folder).read("graph.onnx")


def test_every_flipped_byte_of_the_list_itself_is_found_and_named(folder: Path) -> None:
    whole = (folder / CHECKSUMS).read_bytes()
    for position in range(len(whole)):
        content = bytearray(whole)
        content[position] ^= 1
        (folder / CHECKSUMS).write_bytes(content)
        with pytest.raises(IntegrityError, match=f"{CHECKSUMS} is damaged"):
            SealedFolder(folder)


def test_a_truncated_list_is_found(folder: Path) -> None:
    whole = (folder / CHECKSUMS).read_bytes()
    (folder / CHECKSUMS).write_bytes(whole[: len(whole) // 2])

    with pytest.raises(IntegrityError, match="damaged"):
        SealedFolder(folder)


def test_missing_stray_and_linked_files_are_named(folder: Path) -> None:
    (folder / "empty").unlink()
    (folder / "stray").write_text("x")
    (folder / "manifest.json").rename(folder.parent / "elsewhere")
    (folder / "manifest.json").symlink_to(folder.parent / "elsewhere")

    assert set(complaints(folder)) == {"empty", "stray", "manifest.json"}


def test_a_path_outside_the_folder_is_refused(folder: Path) -> None:
    for name in ("../secret", "/etc/passwd", "..", "a\\b", ""):
        (folder / CHECKSUMS).write_bytes(seal({name: b"x"}))
        with pytest.raises(IntegrityError, match="outside itself"):
            SealedFolder(folder)


def test_a_sub_folder_is_refused_for_it_may_be_a_link(folder: Path) -> None:
    (folder.parent / "elsewhere").mkdir()
    (folder.parent / "elsewhere" / "secret").write_bytes(b"x")
    (folder / "inside").symlink_to(folder.parent / "elsewhere")
    (folder / CHECKSUMS).write_bytes(seal({"inside/secret": b"x"}))

    with pytest.raises(IntegrityError, match="outside itself"):
        SealedFolder(folder)


def test_the_digest_is_that_of_the_list_that_was_read(folder: Path) -> None:
    sealed = SealedFolder(folder)
    before = sealed.digest
    (folder / CHECKSUMS).write_bytes(seal({"graph.onnx": b"another export"}))

    assert sealed.digest == before
    assert SealedFolder(folder).digest != before


@pytest.mark.parametrize("use", ["open", "read", "checked_path"])
def test_a_file_that_cannot_be_read_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, use: str
) -> None:
    sealed = SealedFolder(folder)

    def refuse(*arguments: object, **options: object) -> None:  # root may read everything
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    monkeypatch.setattr("vlp_deploy.formats.sealed.sha256_of", refuse)

    with pytest.raises(BundleError, match=r"(SHA256SUMS|graph\.onnx) cannot be read: Input/output"):
        SealedFolder(folder) if use == "open" else getattr(sealed, use)("graph.onnx")


@pytest.mark.parametrize("kind", ["nothing", "file", "folder without a list"])
def test_what_is_no_bundle_is_said(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "thing"
    if kind == "file":
        path.write_text("x")
    elif kind == "folder without a list":
        path.mkdir()

    with pytest.raises(BundleError, match="no bundle"):
        SealedFolder(path)


def test_coreutils_reads_the_list(folder: Path) -> None:
    command = ["sha256sum", "--check", "--quiet", CHECKSUMS]

    assert subprocess.run(command, cwd=folder, check=False).returncode == 0
    (folder / "empty").write_text("no more")
    assert subprocess.run(command, cwd=folder, check=False, capture_output=True).returncode == 1
