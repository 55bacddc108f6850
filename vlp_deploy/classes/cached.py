"""Class inputs of new class lists, kept on disk: the text tower runs once for every list.

K classes.
"""

import hashlib
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import load as from_safetensors
from safetensors.numpy import save as to_safetensors

from vlp_deploy.cache import cache_folder
from vlp_deploy.files import write_atomic
from vlp_deploy.formats.bundle import CLASS_EMBEDDINGS, ClassBank, class_tensors

LAYOUT = 2  # counts up when the same inputs would give other tensors
DIGEST_BYTES = 32


def cached_bank(
    build: Callable[[Path], ClassBank],
    class_names: Sequence[Sequence[str]],
    *,
    templates: Sequence[str],
    bundle_digest: str,
    engine_version: str,
) -> ClassBank:
    """`build(chunks)`, or what it gave before for the same bundle, engine, templates and names.

    `chunks` is a folder for parts of the work, which is deleted when the whole is kept. A cache
    that cannot be read, is damaged or cannot be written to is as good as none.
    """
    names = tuple(map(tuple, class_names))
    key = repr((LAYOUT, bundle_digest, engine_version, tuple(templates), names))
    path = cache_folder() / "classes" / f"{hashlib.sha256(key.encode()).hexdigest()}.bank"
    with suppress(OSError, SafetensorError, ValueError):
        return _decode(path.read_bytes())
    chunks = path.with_suffix(".chunks")
    bank = build(chunks)
    with suppress(OSError):
        write_atomic(path, _encode(bank))
        shutil.rmtree(chunks, ignore_errors=True)
    return bank


def _encode(bank: ClassBank) -> bytes:
    """The graph's role, the tensors, and a hash of both in front."""
    content = bank.graph.encode() + b"\n" + to_safetensors(class_tensors(bank))
    return hashlib.sha256(content).digest() + content


def _decode(content: bytes) -> ClassBank:
    """The inverse of `_encode`. Raises ValueError for damaged content."""
    digest, content = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != digest:
        raise ValueError("the cached class inputs are damaged")
    graph, _, tensors = content.partition(b"\n")
    inputs = from_safetensors(tensors)
    embeddings = inputs.pop(CLASS_EMBEDDINGS, None)
    return ClassBank(inputs=inputs, embeddings=embeddings, graph=graph.decode())
