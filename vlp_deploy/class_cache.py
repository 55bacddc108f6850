"""Class embeddings of new class lists, kept on disk: the text tower runs once for every list.

K classes, D joint width.
"""

import hashlib
import io
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from vlp_deploy.cache import cache_folder
from vlp_deploy.files import write_atomic

LAYOUT = 1  # counts up when the same inputs would give other embeddings
Floats = NDArray[np.float32]


def cached_embeddings(
    build: Callable[[], Floats],
    class_names: Sequence[Sequence[str]],
    *,
    templates: Sequence[str],
    bundle_digest: str,
    engine_version: str,
    embed_dim: int,
) -> Floats:
    """`build()` (K, D), or what it gave before for the same bundle, engine, templates and names.

    A cache that cannot be read, holds something else or cannot be written to is as good as none.
    """
    names = tuple(map(tuple, class_names))
    key = repr((LAYOUT, bundle_digest, engine_version, tuple(templates), names))
    path = cache_folder() / "classes" / f"{hashlib.sha256(key.encode()).hexdigest()}.npz"
    with suppress(OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            embeddings = file["embeddings"]  # checked against its CRC by the zip format
        if embeddings.shape == (len(class_names), embed_dim) and embeddings.dtype == np.float32:
            return embeddings  # type: ignore[no-any-return]
    embeddings = build()
    archive = io.BytesIO()
    np.savez(archive, embeddings=embeddings)
    with suppress(OSError):
        write_atomic(path, archive.getvalue())
    return embeddings
