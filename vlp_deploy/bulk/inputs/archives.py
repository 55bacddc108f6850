"""From a tar or zip archive, or a webdataset shard, to the images in it, in the order stored.

An image is named as if the archive were a folder: `shard.tar/0001.jpg`. What counts is as in
folders; links inside an archive are errors. From plain tar and from zip the thread that decodes
fetches the bytes; compressed tar has to be read from its start, in order.
"""

import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from vlp_deploy.answers import Failure
from vlp_deploy.bulk.inputs.tally import SIGNATURE_BYTES, Tally, is_hidden, is_named_like_image
from vlp_deploy.bulk.items import Item
from vlp_deploy.errors import ImageError
from vlp_deploy.images.loading import has_image_signature

MAX_MEMBER_BYTES = 1 << 30
LOCAL_HEADER_BYTES = 30  # of a zip entry, before its name and extra field
PASSWORD_FLAG = 1
READ_ERRORS = (tarfile.TarError, zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError)


@dataclass(frozen=True, slots=True)
class FilePart:
    """Bytes `offset` to `offset + size` of a file."""

    path: str
    offset: int
    size: int

    def read(self) -> bytes:
        """The bytes. Raises ImageError if the file ends before."""
        with open(self.path, "rb") as file:
            content = os.pread(file.fileno(), self.size, self.offset)
        if len(content) < self.size:
            raise ImageError("the archive is cut off within this image")
        return content


@dataclass(frozen=True, slots=True)
class ZipMember:
    """One file of a zip archive, stored as it is or deflated."""

    path: str
    info: zipfile.ZipInfo

    def read(self) -> bytes:
        """The bytes, unpacked. Raises ImageError."""
        if self.info.flag_bits & PASSWORD_FLAG:
            raise ImageError("it needs a password to unpack")
        head = FilePart(self.path, self.info.header_offset, LOCAL_HEADER_BYTES).read()
        names = int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
        start = self.info.header_offset + LOCAL_HEADER_BYTES + names
        packed = FilePart(self.path, start, self.info.compress_size).read()
        content = self._unpacked(packed)
        if len(content) != self.info.file_size or zlib.crc32(content) != self.info.CRC:
            raise ImageError("it is damaged inside the archive")
        return content

    def _unpacked(self, packed: bytes) -> bytes:
        if self.info.compress_type == zipfile.ZIP_STORED:
            return packed
        if self.info.compress_type != zipfile.ZIP_DEFLATED:
            raise ImageError(f"it is packed by method {self.info.compress_type}, not 0 or 8")
        try:  # one byte more than announced shows a bomb and costs nothing
            return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, self.info.file_size + 1)
        except zlib.error as error:
            raise ImageError(f"it is damaged inside the archive ({error})") from error


def tar_items(path: str, tally: Tally) -> Iterator[Item | Failure]:
    """The images of a tar archive, compressed or not; a Failure where it cannot be read on."""
    try:
        archive, compressed = _open_tar(path)
        with archive:
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # the archive would keep them all in memory
                name = member.name.removeprefix("./")
                if member.isdir():
                    continue
                if is_hidden(name) or not (found := _tar_image(archive, member, compressed)):
                    tally.left_out += 1
                elif isinstance(found, str):
                    yield Failure(path=f"{path}/{name}", error=found)
                else:
                    yield Item(f"{path}/{name}", found)
    except READ_ERRORS as error:
        yield Failure(path=path, error=f"the archive cannot be read on: {error}")


def _open_tar(path: str) -> tuple[tarfile.TarFile, bool]:
    """The archive, and whether it is compressed."""
    try:
        return tarfile.open(path, "r:"), False
    except tarfile.ReadError:
        return tarfile.open(path, "r:*"), True


def _tar_image(
    archive: tarfile.TarFile, member: tarfile.TarInfo, compressed: bool
) -> FilePart | bytes | str | None:
    """An image, why it cannot be read, or None for what is no image."""
    named = is_named_like_image(member.name)
    if not member.isreg() or member.size > MAX_MEMBER_BYTES:
        return _why_not(member) if named else None
    if compressed or member.issparse():
        stream = archive.extractfile(member)
        content = stream.read() if stream else b""
        return content if named or has_image_signature(content[:SIGNATURE_BYTES]) else None
    part = FilePart(str(archive.name), member.offset_data, member.size)
    start = FilePart(part.path, part.offset, min(SIGNATURE_BYTES, part.size))
    return part if named or has_image_signature(start.read()) else None


def _why_not(member: tarfile.TarInfo) -> str:
    if member.isreg():
        return _too_large(member.size)
    return "this is a link or a device inside an archive, not a file"


def zip_items(path: str, tally: Tally) -> Iterator[Item | Failure]:
    """The images of a zip archive; a Failure if its list of files cannot be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except READ_ERRORS as error:
        yield Failure(path=path, error=f"the archive cannot be read: {error}")
        return
    for info in members:
        if info.is_dir():
            continue
        name = f"{path}/{info.filename}"
        member = ZipMember(path, info)
        if is_hidden(name) or not _is_zip_image(member):
            tally.left_out += 1
        elif info.file_size > MAX_MEMBER_BYTES:
            yield Failure(path=name, error=_too_large(info.file_size))
        else:
            yield Item(name, member)


def _is_zip_image(member: ZipMember) -> bool:
    if is_named_like_image(member.info.filename):
        return True
    if member.info.file_size > MAX_MEMBER_BYTES:
        return False
    try:
        return has_image_signature(member.read()[:SIGNATURE_BYTES])
    except ImageError:  # whatever it is, nothing says that it is an image
        return False


def _too_large(size: int) -> str:
    return f"it holds {size / 1e6:,.0f} MB; the limit is {MAX_MEMBER_BYTES / 1e6:,.0f}"
