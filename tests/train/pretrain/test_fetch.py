"""Packages are fetched whole and checked, or an error says what to do."""

import hashlib
import os
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vlp_deploy.errors import DataError
from vlp_train.pretrain.fetch import Package, fetch, provide


@pytest.fixture
def package(tmp_path: Path) -> Package:
    """A package of one file; `cp` takes the part of its client."""
    (tmp_path / "icons.json").write_bytes(b"drawings")
    archive = tmp_path / "icons.tar"
    with tarfile.open(archive, "w") as file:
        file.add(tmp_path / "icons.json", "package/icons.json")
    return Package(
        folder="icons-1",
        option="--icons",
        download=("cp", str(archive), "."),
        sha256=hashlib.sha256(archive.read_bytes()).hexdigest(),
        unpack=("tar", "-x", "-f"),
        into=(),
        wanted="package",
    )


def test_package_is_fetched_once(package: Package, tmp_path: Path) -> None:
    inputs = tmp_path / "inputs"
    wanted = fetch(package, inputs)
    assert wanted == inputs / "icons-1" / "package"
    assert (wanted / "icons.json").read_bytes() == b"drawings"
    assert [path.name for path in (inputs / "icons-1").iterdir()] == ["package"]
    (wanted / "icons.json").write_bytes(b"changed")
    assert (fetch(package, inputs) / "icons.json").read_bytes() == b"changed"


def test_unpacking_takes_the_folder_behind_the_archive(package: Package, tmp_path: Path) -> None:
    by_copying = replace(package, unpack=("cp",), into=("copy.tar",), wanted="copy.tar")
    copy = fetch(by_copying, tmp_path / "inputs")
    assert hashlib.sha256(copy.read_bytes()).hexdigest() == package.sha256


@pytest.mark.parametrize("change", [{"sha256": "0000"}, {"download": ("true", "icons@1")}])
def test_another_package_or_none_is_refused(
    package: Package, tmp_path: Path, change: dict[str, Any]
) -> None:
    other = replace(package, **change)
    with pytest.raises(DataError, match=r"got \w+, expected the package .* with --icons"):
        fetch(other, tmp_path / "inputs")
    assert not list((tmp_path / "inputs").iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"download": ("no-npm", "icons@1")},
            r"icons@1 needs no-npm, .*Install no-npm, or",
        ),
        ({"unpack": ("no-dpkg",)}, r"needs no-dpkg, which is not installed"),
        ({"download": ("cp", "missing.tar", ".")}, r"`cp missing\.tar \.` failed\.\n.*\nTry again"),
        ({"download": ("apt-get", "icons=1")}, r"failed\.\nno such verb\n.*run `apt-get update`"),
    ],
)
def test_errors_say_what_to_do(
    package: Package,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    message: str,
) -> None:
    client = tmp_path / "programs" / "apt-get"
    client.parent.mkdir()
    client.write_text("#!/bin/sh\necho no such verb >&2\nexit 1\n")
    client.chmod(0o755)
    monkeypatch.setenv("PATH", str(client.parent), prepend=os.pathsep)
    with pytest.raises(DataError, match=message):
        fetch(replace(package, **change), tmp_path)
    assert not (tmp_path / "icons-1").exists()


def test_a_folder_that_is_given_is_checked(package: Package, tmp_path: Path) -> None:
    checked = replace(package, needed=("icons.json", "json"))
    (tmp_path / "json").mkdir()
    assert provide(checked, tmp_path, tmp_path / "inputs") == tmp_path
    (tmp_path / "json").rmdir()
    with pytest.raises(DataError, match=r"has no json; .*its package/\)\. Leave --icons"):
        provide(checked, tmp_path, tmp_path / "inputs")
    assert provide(package, None, tmp_path / "inputs").name == "package"
