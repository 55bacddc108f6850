"""Which images can prove a graph that selects classes: those whose selection is beyond doubt.

DPT's answer jumps when the last selected and the first rejected class change places. Where their
logits are closer than rounding, two right implementations may select different classes, and their
answers say nothing about each other. Such images are left out, and counted.

Legend: n images, K classes, S image size.
"""

import numpy as np
from numpy.typing import NDArray

from vlp_deploy.errors import ParityError
from vlp_deploy.formats.bundle import SELECTOR_LOGITS, SELECTOR_MATRIX, ClassBank, Golden
from vlp_deploy.formats.checkpoint import PromptCheckpoint
from vlp_deploy.formats.structures import ClassAware
from vlp_deploy.formats.weights import Floats
from vlp_deploy.tolerance import logit_tolerance
from vlp_export.running import Running

Mask = NDArray[np.bool_]  # (n,)


def decided_references(model: Running, bank: ClassBank, checkpoint: PromptCheckpoint) -> Mask:
    """The reference images that can prove the graphs.

    Raises ParityError if there is none, or if the graph selects by other logits than the un-folded
    model did.
    """
    images = decided(
        model,
        bank,
        checkpoint.tensors["reference.pixels"],
        expected=checkpoint.tensors.get("reference.selector_logits"),
    )
    if not images.any():
        raise ParityError(
            "the export cannot be proven: for every reference image two classes tie for the last "
            "place among those that are selected. Train or import again with other images"
        )
    return images


def golden_answers(model: Running, bank: ClassBank, pixels: NDArray[np.uint8]) -> Golden:
    """The graphs' own answers, where the un-folded model gave none, for images that are decided.

    If none is, for all of them.
    """
    images = decided(model, bank, pixels)
    kept = pixels[images] if images.any() else pixels
    embeddings, logits = model.answer(kept, bank)
    return Golden(pixels=kept, embeddings=embeddings, logits=logits)


def decided(
    model: Running, bank: ClassBank, pixels: NDArray[np.uint8], *, expected: Floats | None = None
) -> Mask:
    """The images (n, 3, S, S) for which all implementations within tolerance select alike.

    All images if the graph selects nothing. `expected` (n, K) is what the un-folded model selects
    by; ParityError if the graph does by something else.
    """
    structure, tolerance = model.source.structure, logit_tolerance(model.source.logit_scale)
    if not isinstance(structure, ClassAware) or SELECTOR_MATRIX not in bank.inputs:
        return np.ones(len(pixels), np.bool_)
    found = model.sessions(bank.graph, {"image": pixels, **bank.inputs})[SELECTOR_LOGITS]
    if expected is not None:
        _check_same(found, expected, tolerance=tolerance)
    return selection_gaps(found, structure.selected) > 2 * tolerance


def selection_gaps(logits: Floats, selected: int) -> Floats:
    """From the last selected class to the first rejected one, (n,); infinite if none is."""
    if logits.shape[1] <= selected:
        return np.full(len(logits), np.inf, np.float32)
    ordered = -np.sort(-logits, axis=1)
    gaps: Floats = ordered[:, selected - 1] - ordered[:, selected]
    return gaps


def _check_same(found: Floats, expected: Floats, *, tolerance: float) -> None:
    difference = float(np.abs(found - expected).max())
    if not difference <= tolerance:  # NaN fails, too
        raise ParityError(
            "the exported graph selects classes by other logits than its checkpoint did: they "
            f"differ by {difference:.1e}, allowed are {tolerance:.0e}. Nothing was written"
        )
