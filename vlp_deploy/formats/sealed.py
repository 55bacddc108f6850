"""A folder whose every file is listed with its SHA-256: read through the list, or check it all.

The list, SHA256SUMS, is what `sha256sum --check` reads; its last line, a comment to that tool, is
the hash of the lines above, so that damage to the list itself is told from damage to a file.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from vlp_deploy.errors import BundleError, IntegrityError
from vlp_deploy.files import sha256_of

CHECKSUMS = "SHA256SUMS"
_SEAL = "# these lines: "


def seal(files: Mapping[str, bytes]) -> bytes:
    """The bytes of SHA256SUMS for `files` (name → content)."""
    return seal_sums({name: hashlib.sha256(data).hexdigest() for name, data in files.items()})


def seal_sums(sums: Mapping[str, str]) -> bytes:
    """The bytes of SHA256SUMS for files whose SHA-256 is known (name → hexadecimal digest)."""
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()))
    return f"{lines}{_SEAL}{hashlib.sha256(lines.encode()).hexdigest()}\n".encode()


class SealedFolder:
    """Reads files only if they are the ones that were sealed."""

    def __init__(self, path: Path) -> None:
        """Read the list. Raises BundleError if there is none, IntegrityError if it is damaged."""
        with _readable(path):
            if not path.is_dir():
                found = "got a file" if path.exists() else "nothing is there"
                raise BundleError(
                    f"no bundle at {path}: {found}; expected a folder from `vlp export`"
                )
        self.path = path
        content = _read_list(path / CHECKSUMS)
        self._sums = _parse_list(content, path / CHECKSUMS)
        # Of the bytes that were read: the folder may be replaced while it is in use.
        self._digest = hashlib.sha256(content).hexdigest()

    @property
    def digest(self) -> str:
        """One SHA-256 for the whole content: that of the list."""
        return self._digest

    @property
    def names(self) -> tuple[str, ...]:
        """Every file that is listed."""
        return tuple(self._sums)

    def read(self, name: str) -> bytes:
        """The bytes of one file. Raises IntegrityError naming the file if they have changed."""
        with _readable(self.path / name):
            content = self._existing(name).read_bytes()
        self._compare(name, hashlib.sha256(content).hexdigest())
        return content

    def checked_path(self, name: str) -> Path:
        """The path of a file that was just hashed, for libraries that read files themselves."""
        with _readable(self.path / name):
            path = self._existing(name)
            found = sha256_of(path)
        self._compare(name, found)
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


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BundleError(
            f"{path} cannot be read: {error.strerror}. Check its permissions and its disk"
        ) from error


def _read_list(path: Path) -> bytes:
    with _readable(path):
        try:
            return path.read_bytes()
        except FileNotFoundError:
            raise BundleError(f"{path.parent} is no bundle: it has no {CHECKSUMS}") from None


def _parse_list(content: bytes, path: Path) -> dict[str, str]:
    lines, _, digest = content.rpartition(_SEAL.encode())
    if hashlib.sha256(lines).hexdigest().encode() + b"\n" != digest:
        raise IntegrityError(f"{path} is damaged: its last line does not fit it. Copy it again")
    pairs = (line.split("  ", 1) for line in lines.decode().splitlines())
    sums = {name: digest for digest, name in pairs}
    for name in sums:
        _refuse_outside(name, path.parent)
    return sums


def _refuse_outside(name: str, folder: Path) -> None:
    # Bundles are flat: a sub-folder could be a link to anywhere.
    if name in ("", ".", "..") or "/" in name or "\\" in name:
        raise IntegrityError(
            f"bundle {folder} names a file outside itself: {name!r}. Do not use it"
        )
