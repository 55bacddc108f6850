"""From a float32 bundle to the same bundle in another precision, or for another engine.

The checkpoint and its weights are not needed: the golden answers of a float32 bundle are those of
the un-folded model, and the new graphs are held against them.
"""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from vlp_deploy.errors import BundleError, EngineError
from vlp_deploy.formats.bundle import (
    Bundle,
    BundleContents,
    Manifest,
    check_target,
    write_bundle,
)
from vlp_export.dialects import dialect_of
from vlp_export.precision import PrecisionTarget, graph_model, prove
from vlp_export.precision_choice import Budget, PrecisionChoice, settle_precision
from vlp_export.profiles import profiles_for
from vlp_export.running import Progress, silent
from vlp_export.served import RUN_HERE
from vlp_export.tools import tool_versions

DEFAULT_BUDGET = Budget()


def convert(
    source: Path,
    output: Path,
    *,
    precision: str,
    engine: str | None = None,
    calibration: Path | None = None,
    budget: Budget = DEFAULT_BUDGET,
    force: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Write the float32 bundle at `source` in another precision as a bundle at `output`.

    By default for the engine that it was exported for. All options are those of
    `vlp_export.export`, and so is what is written: the same bytes of graphs.

    Raises:
        BundleError, IntegrityError: no bundle, a damaged one, or one that is not float32; `output`
            exists and not `force`, is something else than a bundle, or the source.
        EngineError: an engine or precision that this version does not write.
        DataError: calibration images that are missing or cannot be read.
        ParityError: the answers are too far from float32; the message has the table.
    """
    report = progress or silent
    report("reading the bundle")
    bundle = Bundle(source)
    engine = engine or bundle.manifest.engine
    _check_source(bundle, precision)
    _check_apart(source, output)
    dialect_of(engine)  # all engines read the same one, or graphs would have to be written anew
    choice = PrecisionChoice(
        precision=precision, engine=engine, calibration=calibration, budget=budget
    )
    check_target(output, replace=force)
    contents = _for_engine(_with_step(bundle), engine, report)
    contents = settle_precision(contents, choice, report)
    report("writing the bundle")
    write_bundle(contents, output, replace=force)
    return contents.manifest


def _check_source(bundle: Bundle, precision: str) -> None:
    manifest = bundle.manifest
    if manifest.precision != "fp32":
        raise BundleError(
            f"{bundle.path} is in {manifest.precision}; expected a bundle in fp32, because what "
            "rounding took away does not come back. Name the fp32 bundle that it was made of, or "
            f"its checkpoint: vlp export CHECKPOINT --precision {precision}"
        )
    foreign = [info.file for info in manifest.graphs.values() if not info.file.endswith(".onnx")]
    if foreign:
        raise EngineError(
            f"{bundle.path} holds {foreign[0]}, which cannot be rewritten; expected .onnx files. "
            "Export its checkpoint"
        )


def _check_apart(source: Path, output: Path) -> None:
    """Raise BundleError where writing would replace the source, or put a stray file into it."""
    kept, new = source.resolve(), output.resolve()
    if kept == new or kept in new.parents:
        raise BundleError(
            f"{output} is {'' if kept == new else 'inside '}the bundle to be rewritten, which is "
            "never changed, by --force neither: float32 does not come back. Choose another --output"
        )


def _with_step(bundle: Bundle) -> BundleContents:
    """The whole bundle, and in its history what becomes of it now."""
    contents = bundle.contents()
    step = {
        "step": "export",
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "bundle": bundle.path.name,
        "sha256": bundle.digest,
    }
    manifest = msgspec.structs.replace(
        contents.manifest, tools=tool_versions(), history=(*contents.manifest.history, step)
    )
    return replace(contents, manifest=manifest)


def _for_engine(contents: BundleContents, engine: str, report: Progress) -> BundleContents:
    """The same float32 graphs for another engine, which proves them if it runs here."""
    manifest = contents.manifest
    if engine == manifest.engine:
        return contents
    models = {role: graph_model(contents, role) for role in manifest.graphs}
    rows = manifest.parity
    if engine in RUN_HERE:
        report(f"comparing {engine} with the un-folded model")
        rows = tuple(row for row in rows if row.engine != engine)  # they are found anew
        rows += prove(contents, models, PrecisionTarget(precision="fp32", engine=engine))
    manifest = msgspec.structs.replace(
        manifest,
        engine=engine,
        parity=rows,
        profiles=profiles_for(
            engine,
            models,
            classes=len(manifest.classes),
            context_length=manifest.backbone.config.text.context_length,
        ),
    )
    return replace(contents, manifest=manifest)
