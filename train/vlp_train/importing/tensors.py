"""From official tensors to numbers of the shape that a checkpoint needs, each checked by name.

Legend: J prompted layers, m prompt tokens, d tower width.
"""

import re
from collections.abc import Sequence

import numpy as np

from vlp_deploy.errors import CheckpointError
from vlp_deploy.formats.weights import Floats
from vlp_train.importing.detect import stored
from vlp_train.importing.reader import OfficialFile


def floats(file: OfficialFile, name: str, shape: Sequence[int | None]) -> Floats:
    """A tensor in float32; None in `shape` fits any number.

    Raises CheckpointError if it is missing or of another shape.
    """
    tensor = stored(file, name)
    fits = len(tensor.shape) == len(shape) and all(
        want in (None, got) for got, want in zip(tensor.shape, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise CheckpointError(
            f"{file.path}: {name} is {tensor.shape}, expected ({wanted}): these prompts do not fit "
            "this model, or the file contradicts itself"
        )
    values = tensor.read().astype(np.float32)
    if not np.isfinite(values).all():
        raise CheckpointError(f"{file.path}: {name} holds NaN or infinity")
    return values


def stacked(
    file: OfficialFile, pattern: str, shape: Sequence[int | None], *, count: int | None = None
) -> Floats:
    """Tensors of one shape that differ in a number, `*` in `pattern`, below each other.

    Without `count` all of them. Raises CheckpointError if one is missing.
    """
    indices = range(len(numbers(file, pattern)) if count is None else count)
    arrays = [floats(file, pattern.replace("*", str(index)), shape) for index in indices]
    return np.stack(arrays)


def numbers(file: OfficialFile, pattern: str) -> list[int]:
    """The numbers that stand for `*` in the file's names, in order."""
    name = re.compile(re.escape(pattern).replace(r"\*", r"(\d+)"))
    return sorted(int(match[1]) for key in file.state if (match := name.fullmatch(key)))


def deep_prompts(file: OfficialFile, first: str, deeper: str, width: int, layers: int) -> Floats:
    """Prompts of all layers (J, m, d): `first` of layer 0, then `deeper` with `*` = 1, 2 …

    Raises CheckpointError if layers are left out, or the tower has fewer.
    """
    start = floats(file, first, (None, width))
    found = numbers(file, deeper)
    if found != list(range(1, len(found) + 1)) or len(found) >= layers:
        raise CheckpointError(
            f"{file.path}: prompts of layers {[0, *found]}; expected the first ones of a tower "
            f"with {layers} layers, none left out"
        )
    rest = [floats(file, deeper.replace("*", str(layer)), start.shape) for layer in found]
    return np.stack([start, *rest])
