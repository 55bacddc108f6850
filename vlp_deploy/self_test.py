"""Before an engine serves a bundle on this machine, it must give the bundle's own answers.

The bundle carries images with their embeddings and logits, made at export. The verdict is kept in
the cache, so that only the first load pays. B images, D joint width, K classes.
"""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from vlp_deploy import __version__
from vlp_deploy.cache import cache_folder
from vlp_deploy.classes.coupled import one_by_one
from vlp_deploy.errors import EngineError
from vlp_deploy.files import write_atomic
from vlp_deploy.formats.architecture import Record
from vlp_deploy.formats.bundle import Bundle, ClassBank, Golden, Manifest
from vlp_deploy.processor import processor_name
from vlp_deploy.tolerance import LEAST_COSINES, logit_tolerance

Floats = NDArray[np.float32]
TOGETHER = 4  # images of a run: 8 of a ViT-B/16 would take 70 MB more for activations
RunImage = Callable[[NDArray[np.uint8]], tuple[Floats, Floats]]  # pixels -> embeddings, logits


class Verdict(Record, frozen=True, kw_only=True):
    """What was tested, as kept in the cache."""

    bundle: str
    engine: str
    version: str
    device: str
    processor: str
    graph: str
    release: str = __version__  # which sets the engine up


def prove(
    bundle: Bundle, run: RunImage, bank: ClassBank, *, engine: str, version: str, device: str
) -> None:
    """Run the bundle's golden images unless this engine has passed on this device before.

    `run` answers with the class inputs of `bank`: the bundle's own, or those of classes that need
    another image graph, whose answers follow from its golden embeddings. Raises EngineError if an
    answer is beyond tolerance.
    """
    verdict = Verdict(
        bundle=bundle.digest,
        engine=engine,
        version=version,
        device=device,
        processor=processor_name(),
        graph=bank.graph,
    )
    content = msgspec.json.encode(verdict) + b"\n"
    stamp = cache_folder() / "self-tests" / f"{hashlib.sha256(content).hexdigest()}.json"
    if _holds(stamp, content):
        return
    golden = _golden(bundle, bank)
    if golden is None:
        return
    run = one_by_one(run, bundle.manifest.structure)
    if complaint := _complaint(bundle.manifest, golden, run):
        raise EngineError(
            f"engine {engine!r} ({version}) does not give this bundle's own answers on this "
            f"machine: {complaint}. Choose another --engine or update it; do not use its answers"
        )
    with suppress(OSError):  # a cache that cannot be written to costs time, not answers
        write_atomic(stamp, content)


def _golden(bundle: Bundle, bank: ClassBank) -> Golden | None:
    """What the graph of a bank has to answer; None where an older bundle does not know."""
    golden = bundle.golden()
    if bank.graph == bundle.manifest.class_graph:
        return golden
    embeddings = golden.further.get(bank.graph)
    if embeddings is None:
        return None
    return Golden(pixels=golden.pixels, embeddings=embeddings, logits=bank.host_logits(embeddings))


def _holds(path: Path, content: bytes) -> bool:
    try:
        return path.read_bytes() == content
    except OSError:
        return False


def _complaint(manifest: Manifest, golden: Golden, run: RunImage) -> str:
    """What is wrong with the engine's answers to images together and to one alone."""
    first, rest = slice(0, 1), range(0, len(golden.pixels), TOGETHER)
    for part in (*(slice(start, start + TOGETHER) for start in rest), first):
        embeddings, logits = run(golden.pixels[part])
        expected = golden.embeddings[part], golden.logits[part]
        # Shapes first: a wrong one may broadcast into a small difference.
        if (embeddings.shape, logits.shape) != (expected[0].shape, expected[1].shape):
            return f"shapes are {embeddings.shape} and {logits.shape}"
        if not (np.isfinite(embeddings).all() and np.isfinite(logits).all()):
            return "they hold NaN or infinity"
        if complaint := _difference(manifest, (embeddings, logits), expected):
            return f"{complaint} (batch {len(embeddings)})"
    return ""


def _difference(
    manifest: Manifest, found: tuple[Floats, Floats], expected: tuple[Floats, Floats]
) -> str:
    """Logits in every precision; below float32 first the directions of the embeddings."""
    precision = manifest.precision
    if precision != "fp32":
        least = LEAST_COSINES[precision]
        cosine = float((found[0] * expected[0]).sum(axis=1).min())  # both are L2-normalised
        if cosine < least:
            return f"a cosine is {cosine:.4f}, needed is {least}"
    tolerance = logit_tolerance(manifest.logit_scale, precision)
    largest = float(np.abs(found[1] - expected[1]).max())
    return (
        f"a logit differs by {largest:.2e}, allowed are {tolerance:.0e}"
        if largest > tolerance
        else ""
    )
