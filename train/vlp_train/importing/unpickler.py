"""From the pickle inside a PyTorch file to its tensors' places; whatever else it names stays inert.

A pickle is a program that may call anything that can be imported. This reader imports nothing: four
containers and the functions that rebuild tensors are real, every other class is a stand-in that
keeps its state and does nothing. A file that asks for a *call* of a stand-in, or that names
anything of Python's own library, is refused and told by name. A training run's scheduler and
optimizer are objects, not calls, and pass.
"""

import pickle  # noqa: TID251 (the one reader of pickles)
import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any, BinaryIO

from vlp_deploy.errors import UnsafeFileError

REAL: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "defaultdict"): defaultdict,
    ("builtins", "dict"): dict,
    ("builtins", "set"): set,
    ("torch", "Size"): tuple,
}
# What training code calls to save numbers and small values: answered by a stand-in.
CALLED_IN_GOOD_FAITH = {
    ("torch", "device"),
    ("copyreg", "_reconstructor"),
    ("_codecs", "encode"),
    ("numpy", "dtype"),
    *(
        (f"numpy.{core}.multiarray", name)
        for core in ("core", "_core")
        for name in ("scalar", "_reconstruct")
    ),
    *(("builtins", name) for name in ("bytearray", "complex", "frozenset", "range", "slice")),
    *(("datetime", name) for name in ("date", "datetime", "timedelta", "timezone")),
    *(("pathlib", name) for name in ("PosixPath", "WindowsPath", "PurePosixPath")),
}
NAMED_IN_GOOD_FAITH = CALLED_IN_GOOD_FAITH | {
    ("argparse", "Namespace"),
    ("types", "SimpleNamespace"),
    *(("builtins", name) for name in ("bool", "float", "int", "list", "object", "str", "tuple")),
}
NAMES_SHOWN = 4
IMPORTED_FROM = {"posix": "os", "nt": "os"}  # where people know these names from

Storage = Callable[[Any], Any]  # a storage's persistent id → the storage
Rebuild = Callable[..., Any]  # storage, offset, size, stride → the tensor


class Inert:
    """An object of a class that the file names; it holds the state it was given."""

    state: Any = None

    def __new__(cls, *args: object, **options: object) -> "Inert":
        return object.__new__(cls)

    def __setstate__(self, state: object) -> None:
        self.state = state

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def append(self, value: object) -> None:
        pass

    def extend(self, values: object) -> None:
        pass

    def add(self, value: object) -> None:
        pass


class StorageType(str):
    """The name of a torch storage class, such as HalfStorage: what its numbers are."""


def load(file: BinaryIO, *, storage: Storage, rebuild: Rebuild) -> Any:
    """Read one pickle from `file`.

    Raises UnsafeFileError for calls, and whatever `pickle` raises for damaged files.
    """
    unpickler = _Unpickler(file, encoding="utf-8")
    unpickler.storage, unpickler.rebuild, unpickler.strangers = storage, rebuild, []
    try:
        content = unpickler.load()
    except UnsafeFileError:
        raise
    except Exception as error:
        if unpickler.strangers:  # what it was about to do matters more than where it broke
            raise UnsafeFileError(_naming(unpickler.strangers)) from error
        raise
    if unpickler.strangers:
        raise UnsafeFileError(_naming(unpickler.strangers))
    return content


class _Unpickler(pickle.Unpickler):
    storage: Storage
    rebuild: Rebuild
    strangers: list[str]

    def find_class(self, module: str, name: str) -> Any:
        module, name = _today(module, name)
        if (module, name) in REAL:
            return REAL[module, name]
        if module in ("torch", "torch.storage") and name.endswith("Storage"):
            return StorageType(name)
        if module == "torch._utils" and name == "_rebuild_tensor_v2":
            return self._tensor
        if module == "torch._utils" and name.startswith("_rebuild_parameter"):
            return self._parameter
        if _is_stranger(module, name):
            self.strangers.append(_spelled(module, name))
        return _StandIn(name, (Inert,), {"__module__": module, "__qualname__": name})

    def persistent_load(self, identity: Any) -> Any:
        return self.storage(identity)

    def _tensor(
        self, storage: Any, offset: int, size: Any, stride: Any, *hooks_and_flags: object
    ) -> Any:
        return self.rebuild(storage, offset, size, stride)

    def _parameter(self, tensor: Any, *hooks_and_flags: object) -> Any:
        return tensor


class _StandIn(type):
    """The type of stand-ins. Objects are made past it (`__new__`); to come here is to call."""

    def __call__(cls, *args: object, **options: object) -> Any:
        if (cls.__module__, cls.__qualname__) in CALLED_IN_GOOD_FAITH:
            return Inert()
        raise UnsafeFileError(
            f"it asks to call {_spelled(cls.__module__, cls.__qualname__)}"
            f"({', '.join(map(_short, args))})"
        )


def _today(module: str, name: str) -> tuple[str, str]:
    """What a name of Python 2 is called now: the formats still spell those."""
    module, name = NAME_MAPPING.get((module, name), (module, name))
    return IMPORT_MAPPING.get(module, module), name


def _is_stranger(module: str, name: str) -> bool:
    """Python's own library has no place in a checkpoint, even uncalled."""
    of_python = module.partition(".")[0] in sys.stdlib_module_names
    return of_python and (module, name) not in NAMED_IN_GOOD_FAITH


def _naming(names: list[str]) -> str:
    return f"it names {', '.join(names[:NAMES_SHOWN])}"


def _spelled(module: str, name: str) -> str:
    known = f" ({IMPORTED_FROM[module]}.{name})" if module in IMPORTED_FROM else ""
    text = f"{module}.{name}{known}"
    return text if text.isprintable() else ascii(text)  # terminals obey control characters


def _short(value: object) -> str:
    text = repr(value) if isinstance(value, str | bytes | int | float) else type(value).__name__
    return text if len(text) <= 60 else f"{text[:57]}..."
