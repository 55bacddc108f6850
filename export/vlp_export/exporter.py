"""From a prompt checkpoint to a bundle: fold, write graphs, bake classes, prove; then write."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vlp_deploy.classes.class_list import read_class_list
from vlp_deploy.classes.coupled import fixed_batch
from vlp_deploy.classes.dual import check_together, has_visual_prompts
from vlp_deploy.classes.inputs import Synonyms, build_bank
from vlp_deploy.classes.tokenizer import VOCABULARY_PATH
from vlp_deploy.errors import CheckpointError, ClassListError, EngineError
from vlp_deploy.files import sha256_of
from vlp_deploy.formats.bundle import (
    CLASS_MATRIX,
    MANIFEST,
    BundleContents,
    ClassBank,
    Golden,
    Manifest,
    ParityRow,
    check_target,
    write_bundle,
)
from vlp_deploy.formats.checkpoint import RUN_FILE, PromptCheckpoint
from vlp_export.backbone import load_weights_of
from vlp_export.class_texts import new_classes, prompt_tensors
from vlp_export.contexts import (
    Context,
    ContextChoice,
    freezes_over_calibration,
    settle_context,
)
from vlp_export.dialects import dialect_of
from vlp_export.dual import with_mixing_weight
from vlp_export.folding import Weights
from vlp_export.further import further_banks
from vlp_export.parity import BATCHES, ParityReport, Reference, check_parity
from vlp_export.precision_choice import Budget, PrecisionChoice, settle_precision
from vlp_export.profiles import profiles_for
from vlp_export.running import Progress, Running, silent
from vlp_export.selection import Mask, decided_references, golden_answers
from vlp_export.served import RUN_HERE
from vlp_export.tools import tool_versions

ALL = slice(None)  # reference images
DEFAULT_BUDGET = Budget()


def export(
    source: Path,
    output: Path,
    *,
    pretrained: str | None = None,
    classes: Path | None = None,
    mixing_weight: float | None = None,
    context: Context | None = None,
    calibration: Path | None = None,
    batch_size: int | None = None,
    engine: str = "onnx",
    precision: str = "fp32",
    budget: Budget = DEFAULT_BUDGET,
    force: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Export a prompt checkpoint, or the one in a training run's folder, as a bundle at `output`.

    `pretrained` is a safetensors file with the backbone's weights, or an open_clip tag, which needs
    the `train` extra; by default it is what the prompt was tuned with, if that was `vlp-tiny` or a
    tag.
    `classes` is a file of class names to bake instead of those of training. `mixing_weight` takes
    the place of the one that DPC's training chose. `context`, `calibration` (a place with images)
    and `batch_size` say what DCP's prompts are made of (`vlp_export.contexts`); `calibration` also,
    what int8 and fp8 take their ranges from, and what `auto` holds the `budget` on
    (`vlp_export.precision_choice`). `progress` is told each step. Nothing is written unless the
    graphs reproduce the checkpoint's reference answers.

    Raises:
        CheckpointError: no checkpoint, or one that this version cannot export as asked.
        DataError: calibration images that cannot be read.
        ModelError: weights that are missing, misshapen or not those of the checkpoint.
        MissingExtraError: a tag, and open_clip is not installed.
        ClassListError: class names that cannot be served.
        EngineError: an engine or precision that this version does not write.
        ParityError: the graphs are wrong beyond tolerance; the message has the table.
        BundleError: `output` exists and not `force`, or is something else than a bundle.
    """
    report = progress or silent
    dialect_of(engine)  # to be told before the work
    numbers = PrecisionChoice(
        precision=precision, engine=engine, calibration=calibration, budget=budget
    )
    check_target(output, replace=force)
    names = None if classes is None else read_class_list(classes)
    report("reading checkpoint and weights")
    checkpoint = _load_checkpoint(source)
    weights = load_weights_of(checkpoint, pretrained)
    freezes = not numbers.needs_images or freezes_over_calibration(checkpoint, context)
    choice = ContextChoice(
        context=context,
        calibration=calibration if freezes else None,
        batch_size=batch_size,
    )
    settled = settle_context(checkpoint, weights, choice, report)
    contents = build_bundle(
        settled.checkpoint,
        weights,
        names=names,
        mixing_weight=mixing_weight,
        engine=engine,
        history=_history(checkpoint, source, mixing_weight, settled.record),
        progress=report,
    )
    contents = settle_precision(contents, numbers, report)
    report("writing the bundle")
    write_bundle(contents, output, replace=force)
    return contents.manifest


def build_bundle(
    checkpoint: PromptCheckpoint,
    weights: Weights,
    *,
    names: Synonyms | None = None,
    mixing_weight: float | None = None,
    engine: str = "onnx",
    history: tuple[dict[str, Any], ...] = (),
    progress: Progress | None = None,
) -> BundleContents:
    """The proven bundle of a checkpoint in memory. Raises ParityError and what `export` raises.

    Graphs are written in the dialect of `engine` and proven by onnxruntime, and by `engine` itself
    if it runs here. Other classes than the trained ones, and another mixing weight, take their
    place after the proof, by the same code.
    """
    dialect = dialect_of(engine)
    report = progress or silent
    remixed = checkpoint if mixing_weight is None else with_mixing_weight(checkpoint, mixing_weight)
    model = Running.of(checkpoint, weights, report, dialect=dialect)
    trained = [(name,) for name in checkpoint.header.class_names]
    bank = build_bank(model.source, trained)
    report("comparing with the un-folded model")
    images = decided_references(model, bank, checkpoint)
    parity = _prove(model, bank, checkpoint, images=images)
    rows, others = parity.rows, further_banks(model.source, trained)
    for reference, further in others.items():
        _prove(model, further, checkpoint, reference=reference)
    if engine in RUN_HERE and engine != "onnx":
        report(f"comparing {engine} with the un-folded model")
        there = model.in_engine(engine)
        rows += _prove(there, bank, checkpoint, images=images, engine=engine).rows
        for reference, further in others.items():
            _prove(there, further, checkpoint, reference=reference, engine=engine)
    golden = Golden(
        pixels=checkpoint.tensors["reference.pixels"][images],
        embeddings=parity.embeddings,
        logits=checkpoint.tensors["reference.logits"][images],
    )
    if names is not None or mixing_weight is not None:
        chosen = _checked(checkpoint, names) if names is not None else trained
        if mixing_weight is not None:
            model = Running.of(remixed, weights, report, dialect=dialect)
        bank = build_bank(model.source, chosen)
        golden = golden_answers(model, bank, golden.pixels)
    golden = replace(golden, further=model.further_embeddings(golden.pixels, bank))
    classes = checkpoint.header.class_names if names is None else [first for first, *_ in names]
    return BundleContents(
        manifest=_manifest(
            remixed,
            model,
            rows,
            bank,
            engine=engine,
            classes=tuple(classes),
            history=history,
        ),
        graphs={graph.file: graph.content for graph in model.graphs.files.values()},
        prompts=prompt_tensors(checkpoint),
        bank=bank,
        golden=golden,
        vocabulary=VOCABULARY_PATH.read_bytes(),
    )


def _checked(checkpoint: PromptCheckpoint, names: Synonyms) -> Synonyms:
    """The names, if the prompt can serve them. Raises ClassListError."""
    allowed, header = new_classes(checkpoint), checkpoint.header
    if not allowed.allowed:
        raise ClassListError(f"these classes cannot be served: {allowed.reason}")
    visual = has_visual_prompts(checkpoint.tensors)
    check_together(header.structure, names, header.base_classes, visual=visual)
    return names


def _prove(
    model: Running,
    bank: ClassBank,
    checkpoint: PromptCheckpoint,
    *,
    images: Mask | slice = ALL,
    reference: str = "reference.logits",
    engine: str = "onnx",
) -> ParityReport:
    return check_parity(
        lambda pixels: model.answer(pixels, bank),
        Reference(
            pixels=checkpoint.tensors["reference.pixels"][images],
            logits=checkpoint.tensors[reference][images],
            logit_scale=model.source.logit_scale,
            bank=bank,
        ),
        engine=engine,
        batches=BATCHES if fixed_batch(model.source.structure) is None else (1,),
    )


def _manifest(
    checkpoint: PromptCheckpoint,
    model: Running,
    parity: tuple[ParityRow, ...],
    bank: ClassBank,
    *,
    engine: str,
    classes: tuple[str, ...],
    history: tuple[dict[str, Any], ...],
) -> Manifest:
    header = checkpoint.header
    return Manifest(
        method=header.method,
        backbone=header.backbone,
        preprocessing=header.preprocessing,
        engine=engine,
        precision="fp32",
        graphs=model.graphs.infos(checkpoint, bank),
        profiles=profiles_for(
            engine,
            {role: file.model for role, file in model.graphs.files.items()},
            classes=len(header.class_names),
            context_length=header.backbone.config.text.context_length,
        ),
        classes=classes,
        class_graph=bank.graph,
        base_classes=header.base_classes,
        templates=header.templates,
        text_layout=header.text_layout,
        visual_layout=header.visual_layout,
        structure=header.structure,
        logit_scale=model.source.logit_scale,
        host_head=CLASS_MATRIX in bank.inputs,
        new_classes=new_classes(checkpoint),
        tools=tool_versions(),
        parity=parity,
        history=history,
    )


def _load_checkpoint(source: Path) -> PromptCheckpoint:
    if (source / MANIFEST).exists():
        raise EngineError(
            f"{source} is a bundle already. Name it first, to write it in another precision: "
            f"vlp export {source} --precision P --output NEW, or to build an engine of it: "
            f"vlp export {source} --engine ENGINE"
        )
    checkpoint = PromptCheckpoint.load(source)
    header = checkpoint.header
    expected, found = header.backbone.config.image_size, header.preprocessing.image_size
    if found != expected:
        raise CheckpointError(
            f"{source} prepares images of {found} pixels, but its backbone {header.backbone.name} "
            f"reads {expected} pixels. Train or import it again"
        )
    return checkpoint


def _history(
    checkpoint: PromptCheckpoint,
    source: Path,
    mixing_weight: float | None,
    context: Mapping[str, Any],
) -> tuple[dict[str, Any], ...]:
    """How the prompts came about, then this export."""
    file = source / RUN_FILE if source.is_dir() else source
    exported: dict[str, Any] = {
        "step": "export",
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "checkpoint": file.name,
        "sha256": sha256_of(file),
    }
    if mixing_weight is not None:
        exported["mixing_weight"] = mixing_weight
    if context:
        exported["context"] = dict(context)
    return {"step": "prompts", **checkpoint.header.provenance}, exported
