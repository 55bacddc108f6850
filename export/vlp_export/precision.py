"""From a proven float32 bundle to the same bundle in another precision, which is proven in turn.

    fp32        as it was written
    fp16, bf16  every graph (`typed.py`)
    int8, fp8   image graphs (`quantised.py`), with ranges seen on calibration images. Class names
                are embedded once, so their graphs only change to fp16, for half the size

The class inputs and the golden answers stay those of float32: what an engine has to come close to.

Legend: n images, S image size.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from vlp_deploy.classes.conditioned import run_in_pieces
from vlp_deploy.classes.coupled import fixed_batch, one_by_one
from vlp_deploy.errors import EngineError
from vlp_deploy.formats.bundle import (
    BundleContents,
    ClassBank,
    Golden,
    GraphInfo,
    ParityRow,
    Precision,
)
from vlp_export.graph import node_count, to_bytes
from vlp_export.parity import BATCHES, Reference, RunImages, check_parity
from vlp_export.quantised import FP8, SIGNED, UNSIGNED, Scheme, quantised
from vlp_export.ranges import ActivationRange, RunGraph, measure_ranges
from vlp_export.served import RUN_HERE, run_in
from vlp_export.session import Session
from vlp_export.smoothing import smoothed
from vlp_export.typed import emulated, typed

Pixels = NDArray[np.uint8]
QUANTISED = ("int8", "fp8")
RANGE_IMAGES = 64  # ranges grow no more from here on
RANGE_BATCH = 4  # images whose activations are in memory at once
IMAGE_ROLES = "image"  # what the roles of image graphs begin with


@dataclass(frozen=True, kw_only=True)
class PrecisionTarget:
    """What the graphs are rewritten for."""

    precision: Precision
    engine: str = "onnx"

    @property
    def is_a_hint(self) -> bool:
        """OpenVINO takes bfloat16 as a hint on the float32 graph, not as types in it."""
        return (self.engine, self.precision) == ("openvino", "bf16")

    @property
    def scheme(self) -> Scheme:
        """The 8-bit formats of this precision and engine."""
        if self.precision == "fp8":
            return FP8
        return SIGNED if self.engine.startswith("tensorrt") else UNSIGNED


def in_precision(
    contents: BundleContents, target: PrecisionTarget, images: Pixels | None = None
) -> BundleContents:
    """The bundle `contents`, which is float32, in the precision of `target`.

    `images` (n, 3, S, S) are to measure ranges on, which int8 and fp8 need. Raises ParityError with
    the table if the result is too far from float32 or depends on the batch.
    """
    if target.precision == "fp32":
        return contents
    models = {role: _rewritten(contents, role, target, images) for role in contents.manifest.graphs}
    files = {contents.manifest.graphs[role].file: to_bytes(model) for role, model in models.items()}
    lowered = replace(contents, graphs={**contents.graphs, **files})
    rows = prove(contents, models, target)
    manifest = msgspec.structs.replace(
        contents.manifest,
        engine=target.engine,
        precision=target.precision,
        graphs={
            role: msgspec.structs.replace(
                info,
                nodes=node_count(models[role]),
                opset=models[role].graph.opset_imports[""],
            )
            for role, info in contents.manifest.graphs.items()
        },
        parity=(*contents.manifest.parity, *rows),
    )
    return replace(lowered, manifest=manifest)


def graph_model(contents: BundleContents, role: str) -> ir.Model:
    """A graph of a bundle, to be looked into."""
    info: GraphInfo = contents.manifest.graphs[role]
    return ir.from_proto(onnx.load_model_from_string(contents.graphs[info.file]))


def _rewritten(
    contents: BundleContents, role: str, target: PrecisionTarget, images: Pixels | None
) -> ir.Model:
    model = graph_model(contents, role)
    if target.is_a_hint:
        return model
    if target.precision not in QUANTISED:
        return typed(model, target.precision)
    if not role.startswith(IMAGE_ROLES):
        return typed(model, "fp16")
    if images is None or not len(images):
        raise EngineError(
            f"{target.precision} needs images to measure ranges on. Pass --calibration IMAGES, "
            "best those of training"
        )
    ranges = image_ranges(model, contents, images[:RANGE_IMAGES])
    lowered = quantised(*smoothed(model, ranges), target.scheme)
    if not any(node.op_type == "QuantizeLinear" for node in lowered.graph):
        raise EngineError(
            f"{target.precision} would change nothing in the {role} graph: it rounds products with "
            "constant matrices, and here are none that bear it; convolutions stay as they are. "
            "Choose fp16 or fp32"
        )
    return lowered


def image_ranges(
    model: ir.Model, contents: BundleContents, images: Pixels
) -> dict[str, ActivationRange]:
    """What the activations of an image graph range over on images, with the bundle's classes."""
    structure, bank = contents.manifest.structure, contents.bank

    def drive(run: RunGraph) -> None:
        answer = _answering(run, bank, contents)
        batch = RANGE_BATCH if fixed_batch(structure) is None else 1
        for start in range(0, len(images), batch):
            answer(images[start : start + batch])

    return measure_ranges(model, drive)


def _answering(run: RunGraph, bank: ClassBank, contents: BundleContents) -> RunImages:
    """Pixels to embeddings and logits, where no image sees another."""
    return one_by_one(
        lambda pixels: run_in_pieces(run, pixels, bank.inputs), contents.manifest.structure
    )


def prove(
    contents: BundleContents, models: Mapping[str, ir.Model], target: PrecisionTarget
) -> tuple[ParityRow, ...]:
    """Every image graph against its answers in float32; the rows of the one that serves.

    Raises ParityError with the table.
    """
    golden, bank = contents.golden, contents.bank
    rows = _compare(contents, models[bank.graph], golden, bank, target)
    for role, embeddings in golden.further.items():
        other = replace(bank, graph=role)
        answers = Golden(
            pixels=golden.pixels, embeddings=embeddings, logits=bank.host_logits(embeddings)
        )
        _compare(contents, models[role], answers, other, target)
    return rows


def _compare(
    contents: BundleContents,
    model: ir.Model,
    golden: Golden,
    bank: ClassBank,
    target: PrecisionTarget,
) -> tuple[ParityRow, ...]:
    structure = contents.manifest.structure
    engine, run = _running(model, target)
    return check_parity(
        _answering(run, bank, contents),
        Reference(
            pixels=golden.pixels,
            logits=golden.logits,
            logit_scale=contents.manifest.logit_scale,
            bank=bank,
            embeddings=golden.embeddings,
        ),
        engine=engine,
        precision=target.precision,
        batches=BATCHES if fixed_batch(structure) is None else (1,),
    ).rows


def _running(model: ir.Model, target: PrecisionTarget) -> tuple[str, RunGraph]:
    """What runs a rewritten graph here, and its name: the engine to serve it, or onnxruntime."""
    if target.engine in RUN_HERE:
        return target.engine, run_in(target.engine, to_bytes(model), precision=target.precision)
    return "onnx", Session(to_bytes(emulated(model) if target.precision == "bf16" else model))
