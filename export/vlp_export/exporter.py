"""From a prompt checkpoint to a bundle: fold, write graphs, bake classes, prove; then write."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime

from vlp_deploy import __version__
from vlp_deploy.bundle import (
    MANIFEST,
    BundleContents,
    ClassBank,
    Golden,
    Manifest,
    check_target,
    write_bundle,
)
from vlp_deploy.checkpoint import RUN_FILE, PromptCheckpoint
from vlp_deploy.class_list import read_class_list
from vlp_deploy.errors import CheckpointError, EngineError
from vlp_deploy.files import sha256_of
from vlp_deploy.tokenizer import VOCABULARY_PATH
from vlp_deploy.weights import Floats
from vlp_export.backbone import load_backbone
from vlp_export.class_texts import new_classes, other_classes, text_prompts, trained_classes
from vlp_export.folding import Weights
from vlp_export.graphs import Graphs
from vlp_export.parity import ParityReport, Reference, check_parity
from vlp_export.session import ImageSession, TextSession

PRECISIONS = {"onnx": ("fp32",)}  # engine -> what this version writes for it

Progress = Callable[[str], None]
Synonyms = Sequence[Sequence[str]]  # at least one name for every class


def export(
    source: Path,
    output: Path,
    *,
    pretrained: str | None = None,
    classes: Path | None = None,
    engine: str = "onnx",
    precision: str = "fp32",
    force: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Export a prompt checkpoint, or the one in a training run's folder, as a bundle at `output`.

    `pretrained` is a safetensors file with the backbone's weights, or an open_clip tag, which needs
    the `train` extra; by default it is what the prompt was tuned with, if that was `vlp-tiny` or a
    tag.
    `classes` is a file of class names to bake instead of those of training. `progress` is told each
    step. Nothing is written unless the graphs reproduce the checkpoint's reference answers.

    Raises:
        CheckpointError: no checkpoint, or one that this version cannot export.
        ModelError: weights that are missing, misshapen or not those of the checkpoint.
        MissingExtraError: a tag, and open_clip is not installed.
        ClassListError: class names that cannot be served.
        EngineError: an engine or precision that this version does not write.
        ParityError: the graphs are wrong beyond tolerance; the message has the table.
        BundleError: `output` exists and not `force`, or is something else than a bundle.
    """
    report = progress or _silent
    _check_supported(engine, precision)
    check_target(output, replace=force)
    names = None if classes is None else read_class_list(classes)
    report("reading checkpoint and weights")
    checkpoint = _load_checkpoint(source)
    weights = load_backbone(checkpoint.header.backbone, pretrained)
    contents = build_bundle(
        checkpoint, weights, names=names, history=_history(checkpoint, source), progress=report
    )
    report("writing the bundle")
    write_bundle(contents, output, replace=force)
    return contents.manifest


def build_bundle(
    checkpoint: PromptCheckpoint,
    weights: Weights,
    *,
    names: Synonyms | None = None,
    history: tuple[dict[str, Any], ...] = (),
    progress: Progress | None = None,
) -> BundleContents:
    """The proven bundle of a checkpoint in memory. Raises ParityError and what `export` raises."""
    report = progress or _silent
    logit_scale = float(np.exp(weights["logit_scale"]))
    report("writing graphs")
    graphs = Graphs.of(checkpoint, weights)
    run_text = TextSession(graphs.text.content)

    def count(done: int, total: int) -> None:
        report(f"embedding class names, {done} of {total} prompts")

    bank = trained_classes(checkpoint, run_text, logit_scale=logit_scale, progress=count)
    report("comparing with the un-folded model")
    parity = _prove(checkpoint, graphs, bank, logit_scale=logit_scale)
    classes, logits = checkpoint.header.class_names, checkpoint.tensors["reference.logits"]
    if names is not None:
        classes = tuple(first for first, *_ in names)
        bank = other_classes(checkpoint, run_text, names, logit_scale=logit_scale, progress=count)
        logits = parity.embeddings @ bank.matrix + bank.bias
    return BundleContents(
        manifest=_manifest(
            checkpoint,
            graphs,
            parity,
            classes=classes,
            logit_scale=logit_scale,
            history=history,
        ),
        graphs={graph.file: graph.content for graph in (graphs.image, graphs.text)},
        prompts=_prompt_tensors(checkpoint),
        bank=bank,
        golden=Golden(
            pixels=checkpoint.tensors["reference.pixels"],
            embeddings=parity.embeddings,
            logits=logits,
        ),
        vocabulary=VOCABULARY_PATH.read_bytes(),
    )


def _prove(
    checkpoint: PromptCheckpoint, graphs: Graphs, bank: ClassBank, *, logit_scale: float
) -> ParityReport:
    run = ImageSession(graphs.image.content)
    return check_parity(
        lambda pixels: run(pixels, bank.matrix, bank.bias),
        Reference(
            pixels=checkpoint.tensors["reference.pixels"],
            logits=checkpoint.tensors["reference.logits"],
            logit_scale=logit_scale,
            class_matrix=bank.matrix,
            class_bias=bank.bias,
        ),
        engine="onnx",
    )


def _manifest(
    checkpoint: PromptCheckpoint,
    graphs: Graphs,
    parity: ParityReport,
    *,
    classes: tuple[str, ...],
    logit_scale: float,
    history: tuple[dict[str, Any], ...],
) -> Manifest:
    header = checkpoint.header
    return Manifest(
        method=header.method,
        backbone=header.backbone,
        preprocessing=header.preprocessing,
        engine="onnx",
        precision="fp32",
        graphs=graphs.infos(checkpoint, classes=len(classes)),
        classes=classes,
        base_classes=header.base_classes,
        templates=header.templates,
        text_layout=header.text_layout,
        visual_layout=header.visual_layout,
        logit_scale=logit_scale,
        new_classes=new_classes(checkpoint),
        tools=_tools(),
        parity=parity.rows,
        history=history,
    )


def _load_checkpoint(source: Path) -> PromptCheckpoint:
    if (source / MANIFEST).exists():
        raise EngineError(
            f"{source} is a bundle already. Building engines from bundles is not supported yet; "
            "its ONNX graphs run as they are: vlp classify images/ --bundle BUNDLE"
        )
    checkpoint = PromptCheckpoint.load(source)
    header = checkpoint.header
    expected, found = header.backbone.config.vision.image_size, header.preprocessing.image_size
    if found != expected:
        raise CheckpointError(
            f"{source} prepares images of {found} pixels, but its backbone {header.backbone.name} "
            f"reads {expected} pixels. Train or import it again"
        )
    return checkpoint


def _check_supported(engine: str, precision: str) -> None:
    if precision not in PRECISIONS.get(engine, ()):
        supported = "; ".join(f"{name}: {', '.join(kinds)}" for name, kinds in PRECISIONS.items())
        raise EngineError(
            f"engine {engine!r} in precision {precision!r} cannot be exported. This version "
            f"exports {supported}. Pass --engine onnx --precision fp32"
        )


def _prompt_tensors(checkpoint: PromptCheckpoint) -> dict[str, Floats]:
    """Everything that was learned, and `text.prompts` in any case: the text graph reads it."""
    learned = {
        name: tensor
        for name, tensor in checkpoint.tensors.items()
        if not name.startswith("reference.")
    }
    return learned | {"text.prompts": text_prompts(checkpoint)}


def _history(checkpoint: PromptCheckpoint, source: Path) -> tuple[dict[str, Any], ...]:
    """How the prompts came about, then this export."""
    file = source / RUN_FILE if source.is_dir() else source
    exported = {
        "step": "export",
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "checkpoint": file.name,
        "sha256": sha256_of(file),
    }
    return {"step": "prompts", **checkpoint.header.provenance}, exported


def _tools() -> dict[str, str]:
    return {
        "vlp-deploy": __version__,
        "onnx": onnx.__version__,
        "onnx-ir": onnx_ir.__version__,
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
    }


def _silent(_: str) -> None:
    """Progress that nobody asked for."""
