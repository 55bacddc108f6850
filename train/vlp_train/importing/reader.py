"""From a file of Dassl's trainers to its tensors, read one by one and only when asked for.

Both of PyTorch's formats are read here, in NumPy: the zip archive (since 1.6) and the older stream.
Storages are taken wherever they were saved from, so files of a GPU run need no GPU.
"""

import io
import math
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from vlp_deploy.errors import CheckpointError, UnsafeFileError
from vlp_deploy.files import sha256_of
from vlp_train.importing import unpickler
from vlp_train.importing.unpickler import Inert, StorageType

ZIP_START = b"PK\x03\x04"
STREAM_START = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # the older format's magic number
STREAM_HEADERS = 3  # magic number, version, sizes of integers
NUMBERS = {
    "HalfStorage": "f2",
    "FloatStorage": "f4",
    "DoubleStorage": "f8",
    "BFloat16Storage": "u2",  # the upper half of a float32
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "ShortStorage": "i2",
    "IntStorage": "i4",
    "LongStorage": "i8",
    "BoolStorage": "?",
}

ReadBytes = Callable[[str], bytes]  # storage key → its bytes


@dataclass(frozen=True)
class Storage:
    """Numbers in a row that one or more tensors share."""

    key: str
    kind: str
    numbers: int
    big_endian: bool
    read: ReadBytes

    def array(self) -> NDArray[Any]:
        """All numbers, bfloat16 widened to float32. Raises CheckpointError if some are missing."""
        order = ">" if self.big_endian else "<"
        dtype = np.dtype(order + NUMBERS[self.kind])
        content = self.read(self.key)
        values: NDArray[Any] = np.frombuffer(content, dtype, len(content) // dtype.itemsize)
        if len(values) < self.numbers:
            raise CheckpointError(
                f"storage {self.key} holds {len(values)} numbers instead of {self.numbers}"
            )
        if self.kind == "BFloat16Storage":
            return (values.astype(np.uint32) << 16).view(np.float32)
        return values


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that is still in its file."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in numbers

    def read(self) -> NDArray[Any]:
        """Its values, in the type they were saved in."""
        values = self.storage.array()[self.offset :]
        if 0 in self.shape:
            return np.zeros(self.shape, values.dtype)
        step = values.itemsize
        view = np.lib.stride_tricks.as_strided(
            values, self.shape, [stride * step for stride in self.strides]
        )
        return np.ascontiguousarray(view).reshape(self.shape)

    def same_place(self, other: "StoredTensor") -> bool:
        """Whether both are one tensor under two names."""
        return (self.storage.key, self.offset) == (other.storage.key, other.offset)


@dataclass(frozen=True, kw_only=True)
class OfficialFile:
    """One `model.pth.tar-*`: the state of a model, and how far its training was."""

    path: Path
    sha256: str
    state: Mapping[str, StoredTensor]
    epoch: int | None
    planned_epochs: int | None  # of the run's cosine schedule, where it has one


def read_official(path: Path) -> OfficialFile:
    """Read a checkpoint of PyTorch without running anything that it asks for.

    Raises UnsafeFileError if it asks for a call, CheckpointError if it is no such checkpoint.
    """
    try:
        content = _content(path)
    except UnsafeFileError as error:
        raise UnsafeFileError(
            f"{path} is not to be trusted: {error} while it is read. Nothing was run and nothing "
            "was written. A checkpoint holds tensors and a schedule; if you made this file "
            "yourself, save its state_dict alone"
        ) from None
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint {path}") from None
    except OSError:
        raise
    except Exception as error:  # a damaged stream can raise nearly anything
        raise CheckpointError(
            f"{path} is damaged ({type(error).__name__}: {error}). Copy it again"
        ) from error
    return OfficialFile(
        path=path,
        sha256=sha256_of(path),
        state=_state(content, path),
        epoch=_whole(content.get("epoch")),
        planned_epochs=_planned_epochs(content.get("scheduler")),
    )


def _content(path: Path) -> dict[Any, Any]:
    with open(path, "rb") as file:
        start = file.read(len(STREAM_START))
    if start.startswith(ZIP_START):
        content = _from_zip(path)
    elif start == STREAM_START:
        content = _from_stream(path)
    else:
        raise CheckpointError(
            "this is no checkpoint of PyTorch. Expected a model.pth.tar-* that Dassl's trainers "
            "wrote (CoOp, MaPLe, PromptSRC, DPT, CMPA, DPC …)"
        )
    if not isinstance(content, dict):
        raise CheckpointError(
            f"it holds a {type(content).__name__}, not a state_dict. Save model.state_dict()"
        )
    return content


def _from_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        (main,) = [name for name in entries if name.endswith("/data.pkl")] or [""]
        folder = main.removesuffix("data.pkl")
        if not main or f"{folder}constants.pkl" in entries:
            raise CheckpointError(
                "this zip archive is no checkpoint of tensors (a TorchScript model?). Expected "
                "what torch.save(state) writes"
            )
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
            raise CheckpointError("it is compressed, which torch.save never does")
        big_endian = (
            f"{folder}byteorder" in entries and archive.read(f"{folder}byteorder") == b"big"
        )
        program = archive.read(main)

    def read(key: str) -> bytes:
        with zipfile.ZipFile(path) as archive:
            return archive.read(f"{folder}data/{key}")

    return unpickler.load(
        io.BytesIO(program), storage=_storages(read, big_endian=big_endian), rebuild=_tensor
    )


def _from_stream(path: Path) -> Any:
    """Program, keys, then for every key its count and its numbers."""
    places: dict[str, tuple[int, int]] = {}  # key → first byte, number of bytes
    item_sizes: dict[str, int] = {}

    def read(key: str) -> bytes:
        start, count = places[key]
        with open(path, "rb") as file:
            file.seek(start)
            return file.read(count)

    storages = _storages(read, big_endian=False)

    def storage(identity: Any) -> Storage:
        found = storages(identity)
        item_sizes[found.key] = np.dtype(NUMBERS[found.kind]).itemsize
        return found

    with open(path, "rb") as file:
        for _ in range(STREAM_HEADERS):
            _load(file, storages)
        content = _load(file, storage)
        for key in _load(file, storages):
            count = int.from_bytes(file.read(8), "little") * item_sizes[key]
            places[key] = file.tell(), count
            file.seek(count, io.SEEK_CUR)
        if file.tell() > path.stat().st_size:
            raise CheckpointError("it ends in the middle of its numbers. Copy it again")
    return content


def _load(file: BinaryIO, storage: unpickler.Storage) -> Any:
    return unpickler.load(file, storage=storage, rebuild=_tensor)


def _storages(read: ReadBytes, *, big_endian: bool) -> Callable[[Any], Storage]:
    def storage(identity: Any) -> Storage:
        tag, kind, key, _location, numbers, *view = identity
        if tag != "storage" or not isinstance(kind, StorageType) or kind not in NUMBERS:
            raise CheckpointError(f"it stores {kind} under {tag!r}, expected plain numbers")
        if view not in ([], [None]):
            raise CheckpointError("it shares storages as PyTorch did before 0.4. Save it again")
        return Storage(str(key), str(kind), int(numbers), big_endian, read)

    return storage


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> StoredTensor:
    """A view of a storage that stays inside it."""
    sizes, steps = (tuple(map(int, values)) for values in (shape, strides))
    last = int(offset) + sum((size - 1) * step for size, step in zip(sizes, steps, strict=True))
    inside = int(offset) >= 0 and last < storage.numbers and math.prod(sizes) <= storage.numbers
    if min((*sizes, *steps, 0)) < 0 or (0 not in sizes and not inside):
        raise CheckpointError(f"a tensor of shape {sizes} reaches beyond its storage")
    return StoredTensor(storage, int(offset), sizes, steps)


def _state(content: dict[Any, Any], path: Path) -> dict[str, StoredTensor]:
    state = content.get("state_dict", content)
    if not isinstance(state, dict) or not state:
        raise CheckpointError(f"{path} holds no state_dict: is it the checkpoint of a model?")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, StoredTensor):
            raise CheckpointError(
                f"{path}: entry {name!r} of its state_dict is a {type(value).__name__}, "
                "expected tensors"
            )
    return {name.removeprefix("module."): value for name, value in state.items()}


def _planned_epochs(scheduler: Any) -> int | None:
    """T_max of a cosine schedule, also where a warm-up wraps it."""
    state = scheduler.state if isinstance(scheduler, Inert) else scheduler
    if not isinstance(state, dict):
        return None
    return _whole(state.get("T_max")) or _planned_epochs(state.get("successor"))


def _whole(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) and math.isfinite(value) else None
