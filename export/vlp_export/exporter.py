"""From a prompt checkpoint to a bundle: fold, write graphs, bake classes, prove; then write."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime

from vlp_deploy import __version__
from vlp_deploy.bundle import (
    CLASS_MATRIX,
    MANIFEST,
    BundleContents,
    ClassBank,
    Golden,
    Manifest,
    check_target,
    write_bundle,
)
from vlp_deploy.checkpoint import RUN_FILE, PromptCheckpoint
from vlp_deploy.class_inputs import Synonyms, build_bank
from vlp_deploy.class_list import read_class_list
from vlp_deploy.errors import CheckpointError, ClassListError, EngineError
from vlp_deploy.files import sha256_of
from vlp_deploy.tokenizer import VOCABULARY_PATH
from vlp_export.backbone import load_backbone
from vlp_export.class_texts import class_source, new_classes, prompt_tensors
from vlp_export.folding import Weights
from vlp_export.graphs import Graphs
from vlp_export.parity import ParityReport, Reference, check_parity
from vlp_export.session import Sessions

PRECISIONS = {"onnx": ("fp32",)}  # engine -> what this version writes for it

Progress = Callable[[str], None]


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
    sessions = Sessions(graphs)

    def count(done: int, total: int) -> None:
        report(f"embedding class names, {done} of {total} prompts")

    source = class_source(checkpoint, sessions, logit_scale=logit_scale, progress=count)
    classes, logits = checkpoint.header.class_names, checkpoint.tensors["reference.logits"]
    bank = build_bank(source, [(name,) for name in classes])
    report("comparing with the un-folded model")
    parity = _prove(checkpoint, sessions, bank, logit_scale=logit_scale)
    golden = Golden(
        pixels=checkpoint.tensors["reference.pixels"], embeddings=parity.embeddings, logits=logits
    )
    if names is not None:
        _check_new_classes(checkpoint)
        classes = tuple(first for first, *_ in names)
        bank = build_bank(source, names)
        embeddings, logits = sessions.image(golden.pixels, bank)
        golden = replace(golden, embeddings=embeddings, logits=logits)
    return BundleContents(
        manifest=_manifest(
            checkpoint,
            graphs,
            parity,
            bank,
            classes=classes,
            logit_scale=logit_scale,
            history=history,
        ),
        graphs={graph.file: graph.content for graph in graphs.files.values()},
        prompts=prompt_tensors(checkpoint),
        bank=bank,
        golden=golden,
        vocabulary=VOCABULARY_PATH.read_bytes(),
    )


def _check_new_classes(checkpoint: PromptCheckpoint) -> None:
    allowed = new_classes(checkpoint)
    if not allowed.allowed:
        raise ClassListError(f"these classes cannot be served: {allowed.reason}")


def _prove(
    checkpoint: PromptCheckpoint, sessions: Sessions, bank: ClassBank, *, logit_scale: float
) -> ParityReport:
    return check_parity(
        lambda pixels: sessions.image(pixels, bank),
        Reference(
            pixels=checkpoint.tensors["reference.pixels"],
            logits=checkpoint.tensors["reference.logits"],
            logit_scale=logit_scale,
            bank=bank,
        ),
        engine="onnx",
    )


def _manifest(
    checkpoint: PromptCheckpoint,
    graphs: Graphs,
    parity: ParityReport,
    bank: ClassBank,
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
        graphs=graphs.infos(checkpoint, bank),
        classes=classes,
        class_graph=bank.graph,
        base_classes=header.base_classes,
        templates=header.templates,
        text_layout=header.text_layout,
        visual_layout=header.visual_layout,
        structure=header.structure,
        logit_scale=logit_scale,
        host_head=CLASS_MATRIX in bank.inputs,
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
