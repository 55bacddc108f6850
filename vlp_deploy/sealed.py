"""A folder whose every file is listed with its SHA-256: read through the list, or check it all.

The list, SHA256SUMS, is what `sha256sum --check` reads; its last line, a comment to that tool, is
the hash of the lines above, so that damage to the list itself is told from damage to a file.
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from vlp_deploy.errors import BundleError, IntegrityError
from vlp_deploy.files import sha256_of

CHECKSUMS = "SHA256SUMS"
_SEAL = "# these lines: "


def seal(files: Mapping[str, bytes]) -> bytes:
    """The bytes of SHA256SUMS for `files` (name → content)."""
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()))
    return f"{lines}{_SEAL}{hashlib.sha256(lines.encode()).hexdigest()}\n".encode()


class SealedFolder:
    """Reads files only if they are the ones that were sealed."""

    def __init__(self, path: Path) -> None:
        """Read the list. Raises BundleError if there is none, IntegrityError if it is damaged."""
        if not path.is_dir():
            found = "got a file" if path.exists() else "nothing is there"
            raise BundleError(f"no bundle at {path}: {found}; expected a folder from `vlp export`")
        self.path = path
        self._sums = _read_list(path / CHECKSUMS)

    @property
    def digest(self) -> str:
        """One SHA-256 for the whole content: that of the list."""
        return sha256_of(self.path / CHECKSUMS)

    def read(self, name: str) -> bytes:
        """The bytes of one file. Raises IntegrityError naming the file if they have changed."""
        content = self._existing(name).read_bytes()
        self._compare(name, hashlib.sha256(content).hexdigest())
        return content

    def checked_path(self, name: str) -> Path:
        """The path of a file that was just hashed, for libraries that read files themselves."""
        path = self._existing(name)
        self._compare(name, sha256_of(path))
        return path

    def verify(self) -> Iterator[tuple[str, str | None]]:
        """(file, complaint or None) for every file that is listed, and for every stray one."""
        for name in self._sums:
            try:
                self.checked_path(name)
            except BundleError as error:
                yield name, str(error)
            else:
                yield name, None
        listed = {*self._sums, CHECKSUMS}
        for path in sorted(self.path.rglob("*")):
            name = path.relative_to(self.path).as_posix()
            if (path.is_symlink() or not path.is_dir()) and name not in listed:
                yield name, f"{path} is not listed in {CHECKSUMS}: it was added after export"

    def _existing(self, name: str) -> Path:
        _refuse_outside(name, self.path)
        path = self.path / name
        if path.is_symlink() or not path.is_file():
            raise IntegrityError(
                f"{path} is missing or not a plain file, but {CHECKSUMS} lists it. "
                "Copy the bundle again"
            )
        return path

    def _compare(self, name: str, found: str) -> None:
        expected = self._sums.get(name)
        if expected is None:
            raise IntegrityError(f"{self.path / name} is not listed in {CHECKSUMS}: not exported")
        if found != expected:
            raise IntegrityError(
                f"{self.path / name} has changed since export: SHA-256 is {found[:12]}…, "
                f"expected {expected[:12]}…. Copy the bundle again, or export it again"
            )


def _read_list(path: Path) -> dict[str, str]:
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise BundleError(f"{path.parent} is no bundle: it has no {CHECKSUMS}") from None
    lines, _, digest = text.rpartition(_SEAL.encode())
    if hashlib.sha256(lines).hexdigest().encode() + b"\n" != digest:
        raise IntegrityError(f"{path} is damaged: its last line does not fit it. Copy it again")
    pairs = (line.split("  ", 1) for line in lines.decode().splitlines())
    sums = {name: digest for digest, name in pairs}
    for name in sums:
        _refuse_outside(name, path.parent)
    return sums


def _refuse_outside(name: str, folder: Path) -> None:
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name:
        raise IntegrityError(
            f"bundle {folder} names a file outside itself: {name!r}. Do not use it"
        )
