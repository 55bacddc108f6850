"""DCP at export: what stands in for the official mean over a batch, and the context of a data set.

The official code makes the visual prompts of a block from the mean of their states over the images
of a batch (arXiv:2305.17903), so answers depend on neighbours. Here the mean is taken over a data
set once, block after block, and the prompts become constants (`frozen`); or every image goes by
itself (`per_sample`); or, to reproduce published numbers, over a batch of fixed size (`batch`).

The images are run through probes of the written graph; nothing here needs PyTorch. A calibration is
proven twice: with one reference image for its data set the whole way has to give the answer that
the un-folded model gave for that image alone, and the folded graph has to agree with a graph in
which the same constants are tokens.

Legend: B images, n prompts, J coupled blocks, d width.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from vlp_deploy.classes.inputs import build_bank
from vlp_deploy.errors import CheckpointError
from vlp_deploy.formats.bundle import ClassBank
from vlp_deploy.formats.checkpoint import Header, PromptCheckpoint
from vlp_deploy.formats.structures import Coupled
from vlp_export.calibration import calibration_images
from vlp_export.coupled_folding import VISUAL_PROMPTS, couple, coupling_weights, text_queries
from vlp_export.coupled_graph import write_coupled_graph, write_probe_graph, write_unfolded_graph
from vlp_export.flops import count_flops
from vlp_export.folding import Floats, Weights
from vlp_export.graph import to_bytes
from vlp_export.graphs import image_model
from vlp_export.parity import Reference, check_parity
from vlp_export.running import Progress, Running
from vlp_export.session import Session

Context = Literal["frozen", "per_sample", "batch"]
Pixels = NDArray[np.uint8]
Batches = Callable[[], Iterable[Pixels]]  # starts a pass over images, (B, 3, S, S) at a time

ALONE, FROZEN = "reference.per_sample_logits", "visual.prompts"


@dataclass(frozen=True, kw_only=True)
class ContextChoice:
    """What the user asked for; `calibration` is a place with images, whose labels do not matter."""

    context: Context | None = None
    calibration: Path | None = None
    batch_size: int | None = None

    @property
    def given(self) -> str:
        """The options that were given, for messages."""
        options = {
            "--context": self.context,
            "--calibration": self.calibration,
            "--batch-size": self.batch_size,
        }
        return ", ".join(name for name, value in options.items() if value is not None)


@dataclass(frozen=True, kw_only=True)
class Settled:
    """A checkpoint that says how it is to be exported, and a record of how that came about."""

    checkpoint: PromptCheckpoint
    record: dict[str, Any]


def settle_context(
    checkpoint: PromptCheckpoint, weights: Weights, choice: ContextChoice, report: Progress
) -> Settled:
    """The checkpoint in its context, with the references that prove it.

    Raises CheckpointError for a choice that this checkpoint cannot be exported with, DataError for
    calibration images that cannot be read, and ParityError for a calibration that proves wrong.
    """
    structure = checkpoint.header.structure
    if not isinstance(structure, Coupled):
        if choice.given:
            raise CheckpointError(
                f"{choice.given} chooses the context of a dcp prompt, and this one is of "
                f"{checkpoint.header.method}: leave it out"
            )
        return Settled(checkpoint=checkpoint, record={})
    context = choice.context or _default(checkpoint, structure, choice)
    _check(checkpoint, structure, context, choice)
    if context == "frozen" and choice.calibration is None:
        return Settled(
            checkpoint=_in_context(checkpoint, context=context),
            record={"context": context, "of": "the checkpoint"},
        )
    if context == "frozen":
        return _calibrated(checkpoint, weights, choice, report)
    batch_size = (choice.batch_size or structure.batch_size) if context == "batch" else None
    settled = _in_context(checkpoint, context=context, batch_size=batch_size)
    asked = {} if batch_size is None else {"batch_size": batch_size}
    cost = round(coupling_cost(settled, weights), 4)
    return Settled(checkpoint=settled, record={"context": context, **asked, "times_frozen": cost})


def freezes_over_calibration(checkpoint: PromptCheckpoint, context: Context | None) -> bool:
    """Whether images that are given for a precision make DCP's context as well.

    They do if that is asked for, or if the checkpoint has no frozen context of its own.
    """
    if not isinstance(checkpoint.header.structure, Coupled):
        return False
    return FROZEN not in checkpoint.tensors if context is None else context == "frozen"


def frozen_context(
    checkpoint: PromptCheckpoint, weights: Weights, batches: Batches, report: Progress
) -> Floats:
    """Visual prompts (J + 1, n, d) of a data set: the learned ones, then a constant for each block.

    Each block takes one pass over the images, through the blocks before it.
    """
    structure = checkpoint.header.structure
    assert isinstance(structure, Coupled)
    coupling = coupling_weights(checkpoint)
    queries = text_queries(checkpoint, weights, coupling)
    heads = checkpoint.header.backbone.config.vision.heads
    contexts: list[Floats] = []
    for layer in range(1, structure.depth + 1):
        report(f"calibrating block {layer} of {structure.depth}")
        probe = Session(to_bytes(write_probe_graph(checkpoint, weights, contexts)))
        states = (probe({"image": pixels})["states"] for pixels in batches())
        fused = _fused(states, structure.fusing)  # (n, d)
        contexts.append(couple(fused, queries[layer - 1], coupling, layer, heads))
    return np.stack([checkpoint.tensors[VISUAL_PROMPTS], *contexts])


def coupling_cost(checkpoint: PromptCheckpoint, weights: Weights) -> float:
    """FLOPs of the live image tower, in those of the same tower with a frozen context."""
    structure, config = checkpoint.header.structure, checkpoint.header.backbone.config
    assert isinstance(structure, Coupled)
    constants = np.repeat(checkpoint.tensors[VISUAL_PROMPTS][None], structure.depth + 1, axis=0)
    frozen = _in_context(_with(checkpoint, {FROZEN: constants}), context="frozen")
    alone = _in_context(checkpoint, context="per_sample")
    size = config.vision.image_size
    shapes = {
        "image": (1, 3, size, size),
        "class_matrix": (config.embed_dim, 1),
        "class_bias": (1,),
    }
    live = count_flops(write_coupled_graph(alone, weights), shapes)
    return live / count_flops(image_model(frozen, weights), shapes)


def _default(checkpoint: PromptCheckpoint, structure: Coupled, choice: ContextChoice) -> Context:
    if choice.calibration is not None or FROZEN in checkpoint.tensors:
        return "frozen"
    return "batch" if choice.batch_size or structure.context == "batch" else "per_sample"


def _check(
    checkpoint: PromptCheckpoint, structure: Coupled, context: Context, choice: ContextChoice
) -> None:
    """Raise CheckpointError for a context that is not there, or options without a use."""
    live = VISUAL_PROMPTS in checkpoint.tensors
    if not live and (context != "frozen" or choice.calibration is not None):
        raise CheckpointError(
            "this prompt was trained with text_update, so its class embeddings are made of images. "
            "It can be served only in the context it was frozen in: leave out "
            f"{choice.given}"
        )
    if context == "frozen" and choice.calibration is None and FROZEN not in checkpoint.tensors:
        raise CheckpointError(
            "a frozen context is made of images, and this checkpoint has none: pass some with "
            "--calibration DATA, best those it was trained on, or use --context per_sample"
        )
    if context != "frozen" and choice.calibration is not None:
        raise CheckpointError(
            f"--calibration freezes the context, which --context {context} leaves live: give one "
            "of them"
        )
    if context == "batch" and not (choice.batch_size or structure.batch_size):
        raise CheckpointError(
            "--context batch needs --batch-size, the number of images that every batch will have "
            "(the official code tests with 16)"
        )
    if context != "batch" and choice.batch_size is not None:
        raise CheckpointError(
            f"--batch-size is for --context batch; with {context} any number of images can be "
            "answered together. Leave it out"
        )
    if choice.batch_size is not None and choice.batch_size < 1:
        raise CheckpointError(f"--batch-size is {choice.batch_size}; expected 1 or more")


def _in_context(
    checkpoint: PromptCheckpoint, *, context: Context, batch_size: int | None = None
) -> PromptCheckpoint:
    """The checkpoint with the tensors and the reference that this context has."""
    structure = msgspec.structs.replace(
        checkpoint.header.structure, context=context, batch_size=batch_size
    )
    header: Header = msgspec.structs.replace(checkpoint.header, structure=structure)
    tensors = dict(checkpoint.tensors)
    alone = tensors.pop(ALONE, None)
    if context != "frozen":
        tensors.pop(FROZEN, None)
        if alone is not None:  # the other reference is that of the frozen context
            tensors["reference.logits"] = alone
    else:
        tensors = {name: each for name, each in tensors.items() if not name.startswith("cmpa.")}
    return PromptCheckpoint(header=header, tensors=tensors)


def _calibrated(
    checkpoint: PromptCheckpoint, weights: Weights, choice: ContextChoice, report: Progress
) -> Settled:
    """A context frozen over the user's images, proven on the way."""
    assert choice.calibration is not None
    images = calibration_images(choice.calibration, checkpoint.header.preprocessing)
    bank = _prove_calibration(checkpoint, weights, report)
    prompts = frozen_context(checkpoint, weights, images.batches, report)
    unfolded = Session(to_bytes(write_unfolded_graph(checkpoint, weights, list(prompts[1:]))))
    answers = unfolded({"image": checkpoint.tensors["reference.pixels"], **bank.inputs})
    frozen = _with(checkpoint, {FROZEN: prompts, "reference.logits": answers["logits"]})
    return Settled(
        checkpoint=_in_context(frozen, context="frozen"),
        record={"context": "frozen", "of": choice.calibration.name, "images": images.count},
    )


def _prove_calibration(
    checkpoint: PromptCheckpoint, weights: Weights, report: Progress
) -> ClassBank:
    """The context of one image is that image's own. Raises ParityError.

    Returns the training classes, which know no image.
    """
    alone = _in_context(checkpoint, context="per_sample").tensors
    pixels, logits = alone["reference.pixels"], alone["reference.logits"]
    report("proving the calibration")
    prompts = frozen_context(checkpoint, weights, lambda: [pixels[:1]], _silent)
    frozen = _in_context(_with(checkpoint, {FROZEN: prompts}), context="frozen")
    model = Running.of(frozen, weights, _silent)
    bank = build_bank(model.source, [(name,) for name in checkpoint.header.class_names])
    reference = Reference(
        pixels=pixels[:1], logits=logits[:1], logit_scale=model.source.logit_scale, bank=bank
    )
    check_parity(lambda images: model.answer(images, bank), reference, engine="onnx", batches=(1,))
    return bank


def _silent(_: str) -> None:
    """Progress of steps within a step."""


def _with(checkpoint: PromptCheckpoint, tensors: dict[str, Floats]) -> PromptCheckpoint:
    return PromptCheckpoint(header=checkpoint.header, tensors={**checkpoint.tensors, **tensors})


def _fused(batches: Iterator[Floats], fusing: Literal["mean", "first", "max"]) -> Floats:
    """One set of prompt states (n, d) of those of all images, (B, n, d) at a time."""
    first = next(batches).astype(np.float64)
    if fusing == "first":
        return np.asarray(first[0], np.float32)
    total, count = (first.sum(axis=0) if fusing == "mean" else first.max(axis=0)), len(first)
    for states in batches:
        if fusing == "mean":
            total += states.astype(np.float64).sum(axis=0)
        else:
            total = np.maximum(total, states.max(axis=0))
        count += len(states)
    return np.asarray(total / count if fusing == "mean" else total, np.float32)
