"""Packages are fetched whole and checked, or an error says what to do."""

import hashlib
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from vlp_deploy.errors import DataError
from vlp_train.pretrain.fetch import Package, fetch

CONTENT = b"drawings"
# `cp` takes the part of the package client, `tar` unpacks.
PACKAGE = Package(option="--icons", download=("cp",), sha256="", unpack=("tar", "-x", "-f"))


@pytest.fixture
def package(tmp_path: Path) -> Package:
    """A package of one file, which its client copies from a folder."""
    (tmp_path / "icons.json").write_bytes(CONTENT)
    archive = tmp_path / "icons.tar"
    with tarfile.open(archive, "w") as file:
        file.add(tmp_path / "icons.json", "icons.json")
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    return replace(PACKAGE, download=("cp", "-t", ".", str(archive)), sha256=digest)


def test_package_is_fetched_once(package: Package, tmp_path: Path) -> None:
    folder = fetch(package, tmp_path / "inputs" / "icons")
    assert (folder / "icons.json").read_bytes() == CONTENT
    (folder / "icons.json").write_bytes(b"of the user's")
    fetch(package, folder)
    assert (folder / "icons.json").read_bytes() == b"of the user's"


def test_another_package_is_refused_and_leaves_nothing(package: Package, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected 0000.* Pass --icons"):
        fetch(replace(package, sha256="0000"), tmp_path / "inputs" / "icons")
    assert not list((tmp_path / "inputs").iterdir())


@pytest.mark.parametrize(
    ("download", "message"),
    [
        (("no-such-client", "pack", "icons@1"), "icons@1 cannot.* no-such-client is not installed"),
        (("cp", "-t", ".", "missing.tar"), r"`cp -t \. missing\.tar` said .*--icons"),
    ],
)
def test_errors_say_what_to_do(
    package: Package, tmp_path: Path, download: tuple[str, ...], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        fetch(replace(package, download=download), tmp_path / "icons")
    assert not (tmp_path / "icons").exists()
