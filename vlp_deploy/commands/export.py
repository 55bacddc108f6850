"""`vlp export BUNDLE`: from a bundle to one in another precision, or to engines of it."""

from pathlib import Path
from typing import Annotated

import typer

from vlp_deploy.commands.build_engine import build_ahead, build_here
from vlp_deploy.engines.tensorrt import TensorRtEngine, TensorRtRtxEngine
from vlp_deploy.errors import UsageError
from vlp_deploy.extras import load_function
from vlp_deploy.formats.bundle import Bundle
from vlp_deploy.tolerance import LEAST_AGREEMENT, MOST_ACCURACY_LOSS

PRECISION, ENGINES = "A bundle in another precision", "Engines"  # sections of the help
EPILOG = """\b
vlp export bundles/fp32 --precision int8 --calibration images/ --output bundles/int8
vlp export bundles/fp32 --precision auto --engine openvino --output bundles/fast
vlp export bundles/fp32 --engine tensorrt-rtx --compute-capability 8.9
"""


def export_bundle(
    bundle: Annotated[Path, typer.Argument(help="Folder made by `vlp export RUN`.")],
    engine: Annotated[
        str | None,
        typer.Option(
            help="What will run it: onnx, openvino, tensorrt or tensorrt-rtx. Default: tensorrt; "
            "with --precision the one that the bundle is for."
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=PRECISION,
            help="Write one in fp16, bf16, int8 or fp8, or with auto in the fastest "
            "within the budget below; fp32 only changes the engine. BUNDLE has to be fp32.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="With --precision: folder to make; it must not exist yet. With "
            "--compute-capability: put the plans here instead of the cache, to be carried to the "
            "GPU's machine."
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=PRECISION,
            help="Images to measure int8, fp8 and auto on, best those of training. "
            "A folder or an archive, without labels too, or a list as for training. Not needed "
            "for vlp-tiny.",
        ),
    ] = None,
    max_accuracy_loss: Annotated[
        float,
        typer.Option(
            rich_help_panel=PRECISION,
            help="Of --precision auto: percentage points, where images have labels.",
        ),
    ] = MOST_ACCURACY_LOSS,
    min_agreement: Annotated[
        float,
        typer.Option(
            rich_help_panel=PRECISION,
            help="Of --precision auto: per cent of images with the answer of fp32.",
        ),
    ] = LEAST_AGREEMENT,
    force: Annotated[
        bool,
        typer.Option(
            "--force", rich_help_panel=PRECISION, help="Replace a bundle at --output, in one step."
        ),
    ] = False,
    compute_capability: Annotated[
        list[str] | None,
        typer.Option(
            rich_help_panel=ENGINES,
            help="Of tensorrt-rtx: build for GPUs of this compute capability, 8.9 say, which need "
            "not be here. May be given several times.",
        ),
    ] = None,
) -> None:
    """Write a bundle in another precision, or build its engines ahead of their first use.

    Neither needs PyTorch, the checkpoint or its weights. With --precision a new bundle is written
    and proven, by the same code and in the same bytes as from the checkpoint; that needs the export
    extra.

    Without --precision engines are built, kept in the cache and proven by the bundle's own images.
    With --compute-capability nothing is run, so no GPU is needed, and nothing is proven before the
    first load.

    The bundle itself is not changed.
    """
    if precision is not None:
        _check_rewriting(output, compute_capability)
        rewrite = load_function("vlp_export.command:convert", what="`vlp export --precision`")
        rewrite(
            bundle,
            output,
            engine=engine,
            precision=precision,
            calibration=calibration,
            max_accuracy_loss=max_accuracy_loss,
            min_agreement=min_agreement,
            force=force,
        )
        return
    if calibration is not None or force:
        given = "--force" if calibration is None else "--calibration"
        raise UsageError(f"{given} is of --precision, which is not given")
    _build(Bundle(bundle), engine or TensorRtEngine.name, compute_capability, output)


def _check_rewriting(output: Path | None, compute_capability: list[str] | None) -> None:
    if compute_capability:
        raise UsageError(
            "--precision writes a bundle, --compute-capability builds engines of one. First the "
            "one, then the other of the new bundle"
        )
    if output is None:
        raise UsageError("--precision writes a new bundle. Say where: --output NEW")


def _build(
    bundle: Bundle, engine: str, compute_capability: list[str] | None, output: Path | None
) -> None:
    if compute_capability:
        if engine != TensorRtRtxEngine.name:
            raise UsageError(
                f"--compute-capability is for --engine {TensorRtRtxEngine.name}; engine {engine!r} "
                "is built on the GPU that runs it"
            )
        build_ahead(bundle, compute_capability, output)
        return
    if output is not None:
        raise UsageError(
            "--output needs --precision, to write a new bundle, or --compute-capability: other "
            "engines stay in the cache"
        )
    build_here(bundle, engine)
