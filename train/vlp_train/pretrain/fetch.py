"""Fetch what pre-training learns from, with the machine's own npm, apt-get and dpkg.

Every package is downloaded in one exact version, checked against its SHA-256 and unpacked into a
folder named after it; what is there already is left as it is.
"""

import logging
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vlp_deploy.errors import DataError
from vlp_deploy.files import sha256_of, staged_folder

_PROGRAMS = {"npm": "npm (it comes with Node.js)"}
_LOG = logging.getLogger("vlp_train.pretrain")


@dataclass(frozen=True, kw_only=True)
class Package:
    """One package: how it is downloaded and unpacked, and what is wanted of it.

    `download` leaves one file in the empty folder it runs in; `unpack`, that file and `into` are
    the command that unpacks it there. `wanted` is the part of the content that `option` takes, and
    `needed` what must be in it.
    """

    folder: str
    option: str
    download: tuple[str, ...]
    sha256: str
    unpack: tuple[str, ...] = ("dpkg", "-x")
    into: tuple[str, ...] = (".",)
    wanted: str = "."
    needed: tuple[str, ...] = ()

    @property
    def version(self) -> str:
        """Name and version, as the client that downloads it writes them."""
        return self.download[-1]


ICONS = Package(
    folder="iconify-json-2.2.535",
    option="--icons",
    download=("npm", "pack", "--loglevel=error", "@iconify/json@2.2.535"),
    sha256="1a545f86fa224d6531d8fb101dcbe83aac2b28689a21cbed6fc68318a5af4d91",
    unpack=("tar", "--no-same-owner", "-x", "-f"),
    into=(),
    wanted="package",
    needed=("collections.json", "json"),
)
OPENCLIPART = Package(
    folder="openclipart-svg-0.18+dfsg-19",
    option="--openclipart",
    download=("apt-get", "download", "-q", "openclipart-svg=1:0.18+dfsg-19"),
    sha256="989712d90d57dfa3230049f553bb43b76c30ee4d4b8c5f6e106e33f7db5cbdc5",
    needed=("usr/share/openclipart/svg",),
)
WORDNET = Package(
    folder="wordnet-base-3.0-37",
    option="--wordnet",
    download=("apt-get", "download", "-q", "wordnet-base=1:3.0-37"),
    sha256="61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752",
    wanted="usr/share/wordnet",
    needed=("index.noun", "data.noun"),
)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Unpacked packages: npm `@iconify/json`, Debian `openclipart-svg` and `wordnet-base`."""

    icons: Path
    openclipart: Path
    wordnet: Path


def provide(package: Package, given: Path | None, inputs: Path) -> Path:
    """Return `given` if it holds what is needed of the package; None is fetched below `inputs`.

    Raises:
        DataError: something needed is missing in `given`, or fetching failed.
    """
    if given is None:
        return fetch(package, inputs)
    missing = [name for name in package.needed if not (given / name).exists()]
    if missing:
        raise DataError(
            f"{given} has no {' and no '.join(missing)}; expected the unpacked package "
            f"{package.version}{_part(package)}. Leave {package.option} out to have it fetched"
        )
    return given


def fetch(package: Package, inputs: Path) -> Path:
    """Download, check and unpack a package below `inputs` unless it is there; return `wanted`.

    Raises:
        DataError: a program is missing or failed, or the package is not the one expected.
    """
    folder = inputs / package.folder
    if not folder.is_dir():
        for program in (package.download[0], package.unpack[0]):
            if shutil.which(program) is None:
                raise DataError(
                    f"{package.version} needs {program}, which is not installed. Install "
                    f"{_PROGRAMS.get(program, program)}, or {_own(package)}"
                )
        _LOG.info("fetching %s", package.version)
        with staged_folder(folder) as staging:
            _call(package, package.download, staging)
            archive = next(staging.iterdir(), None)
            found = "nothing" if archive is None else sha256_of(archive)
            if archive is None or found != package.sha256:
                raise DataError(
                    f"{package.version}: got {found}, expected the package with SHA-256 "
                    f"{package.sha256} that the recipe was made with. {_advice(package)}"
                )
            _call(package, [*package.unpack, archive.name, *package.into], staging)
            archive.unlink()
    return folder / package.wanted


def _call(package: Package, command: Sequence[str], folder: Path) -> None:
    """Run a command in `folder`; what it prints is shown only if it fails."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DataError(
            f"{package.version} cannot be fetched: `{' '.join(command)}` failed.\n"
            f"{done.stderr.strip()}\n{_advice(package)}"
        )


def _advice(package: Package) -> str:
    if package.download[0] == "apt-get":
        return f"It is in Debian bookworm: run `apt-get update` there, or {_own(package)}"
    return f"Try again, or {_own(package)}"


def _own(package: Package) -> str:
    return f"unpack it yourself{_part(package)} and pass it with {package.option}"


def _part(package: Package) -> str:
    return "" if package.wanted == "." else f" (what is in its {package.wanted}/)"
