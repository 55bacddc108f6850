"""Features of a long class list, chunk by chunk: what is finished is kept, whatever happens next.

Each chunk is a file, named by the hash of all that its features depend on. After Ctrl-C or a crash
the same list goes on behind the last whole chunk, and memory holds one chunk's sums at a time.

Legend: K classes, D joint width.
"""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as from_safetensors
from safetensors.numpy import save as to_safetensors

from vlp_deploy.classes.bank import ClassFeatures, Progress
from vlp_deploy.files import write_atomic

CLASSES_A_CHUNK = 1000
DIGEST_BYTES = 32

Synonyms = Sequence[Sequence[str]]
Build = Callable[[Synonyms, Progress | None], ClassFeatures]


def features_in_chunks(
    build: Build,
    names: Synonyms,
    *,
    rows_each: int,
    progress: Progress | None,
    kept: Path,
    how: object,
) -> ClassFeatures:
    """`build(names)`, made and kept in the folder `kept` by chunks; short lists in one piece.

    `how` is what features depend on beside the names, by its `repr`. `progress(done, total)` counts
    rows, of which every synonym has `rows_each`.
    """
    if len(names) <= CLASSES_A_CHUNK:
        return build(names, progress)
    total = rows_each * sum(map(len, names))
    parts, done = [], 0
    for start in range(0, len(names), CLASSES_A_CHUNK):
        chunk = names[start : start + CLASSES_A_CHUNK]
        parts.append(_chunk(build, chunk, _shifted(progress, done, total), kept, how))
        done += rows_each * sum(map(len, chunk))
        if progress is not None:
            progress(done, total)
    return ClassFeatures(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def _shifted(progress: Progress | None, before: int, total: int) -> Progress | None:
    """What a chunk reports, counted in the whole list."""
    if progress is None:
        return None
    return lambda done, _: progress(before + done, total)


def _chunk(
    build: Build, names: Synonyms, progress: Progress | None, kept: Path, how: object
) -> ClassFeatures:
    """One chunk from its file, or made and put there. A damaged file is as good as none."""
    key = repr((how, tuple(map(tuple, names))))
    path = kept / f"{hashlib.sha256(key.encode()).hexdigest()}.chunk"
    with suppress(OSError, SafetensorError, ValueError):
        return _decode(path.read_bytes())
    features = build(names, progress)
    with suppress(OSError):  # a cache that cannot be written to costs time, not answers
        write_atomic(path, _encode(features))
    return features


def _encode(features: ClassFeatures) -> bytes:
    content = to_safetensors(features._asdict())
    return hashlib.sha256(content).digest() + content


def _decode(content: bytes) -> ClassFeatures:
    """The inverse of `_encode`. Raises ValueError for damaged content."""
    digest, content = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != digest:
        raise ValueError("the chunk is damaged")
    return ClassFeatures(**from_safetensors(content))
