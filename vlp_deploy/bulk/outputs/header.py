"""What a run is: everything that its answers depend on, beside them as `OUTPUT.header.json`."""

from pathlib import Path

import msgspec

from vlp_deploy.errors import DataError
from vlp_deploy.files import write_atomic
from vlp_deploy.formats.architecture import Record

SUFFIX = ".header.json"


class Finished(Record, frozen=True, kw_only=True):
    """How a run ended."""

    inputs: int
    failed: int


class Decoding(Record, frozen=True, kw_only=True):
    """How pictures became pixels."""

    jpeg: str  # "exact", or "scaled": at a fraction of its size, at least twice the target
    exif_transpose: bool
    background: tuple[int, int, int]  # under transparency
    icc_profiles: str = "ignored"
    animations: str = "first frame"
    max_pixels: int
    max_bytes: int
    seconds: float | None


class RunHeader(Record, frozen=True, kw_only=True):
    """`classes` and `templates` are null where they are the bundle's own.

    Version 2 has `labels` in the rows, and how they were chosen.
    """

    schema_version: int = 2
    tool: str
    bundle: str  # SHA-256 of its content
    engine: str
    device: str
    classes: tuple[tuple[str, ...], ...] | None  # synonyms, the label first
    templates: tuple[str, ...] | None
    inputs: tuple[str, ...]  # as they were named
    format: str
    top_k: int
    batch_size: int  # other batches round the last digits otherwise
    reject_below: float | None = None  # a probability
    multi_label: bool = False  # by the bundle's thresholds
    decoding: Decoding
    embeddings: str | None  # where they are
    finished: Finished | None = None


NOT_COMPARED = ("tool", "finished")


def header_path(output: Path) -> Path:
    """Where the header of an output is."""
    return output.with_name(output.name + SUFFIX)


def read_header(output: Path) -> RunHeader | None:
    """The header beside an output, if there is one. Raises DataError if it is damaged."""
    path = header_path(output)
    try:
        return msgspec.json.decode(path.read_bytes(), type=RunHeader)
    except FileNotFoundError:
        return None
    except ValueError as error:  # msgspec's errors are among them
        raise DataError(
            f"{path} is no header of this version ({error}). Begin anew with --force"
        ) from error


def write_header(output: Path, header: RunHeader) -> None:
    """Put the header beside an output, in one step."""
    content = msgspec.json.format(msgspec.json.encode(header), indent=1)
    write_atomic(header_path(output), content + b"\n")


def differences(stored: RunHeader, now: RunHeader) -> list[str]:
    """What differs between two runs, in words; empty if one may continue the other."""
    then, this = (msgspec.json.decode(msgspec.json.encode(header)) for header in (stored, now))
    found = []
    for name in this:
        if name == "decoding":
            pairs = [(key, then[name][key], this[name][key]) for key in this[name]]
            found += [f"{key} was {a} and is {b}" for key, a, b in pairs if a != b]
        elif name not in NOT_COMPARED and then[name] != this[name]:
            found.append(_difference(name, then[name], this[name]))
    return found


def _difference(name: str, then: object, this: object) -> str:
    if not isinstance(then, list) or not isinstance(this, list):
        was, is_now = (f"{len(v)} new ones" if isinstance(v, list) else v for v in (then, this))
        return f"{name} was {was or 'the default'} and is {is_now or 'the default'}"
    if len(then) != len(this):
        return f"there were {len(then):,} {name} and are {len(this):,}"
    index = next(i for i, (a, b) in enumerate(zip(then, this, strict=True)) if a != b)
    return f"number {index + 1} of {name} was {then[index]!r} and is {this[index]!r}"
