"""`vlp export BUNDLE`: a bundle's graphs become engines, on the machine that will run them."""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from vlp_deploy.engine_choice import load_towers
from vlp_deploy.engines.base import EngineOptions
from vlp_deploy.engines.support import refuse_unsupported
from vlp_deploy.engines.tensorrt import TENSORRT, TensorRtRtxEngine
from vlp_deploy.engines.tensorrt.plans import Plan, plans_folder
from vlp_deploy.errors import BundleError, UsageError
from vlp_deploy.files import staged_folder
from vlp_deploy.formats.bundle import Bundle


def build_engine(
    bundle: Annotated[Path, typer.Argument(help="Folder made by `vlp export RUN`.")],
    engine: Annotated[
        str, typer.Option(help="What will run it: onnx, openvino, tensorrt or tensorrt-rtx.")
    ] = "tensorrt",
    compute_capability: Annotated[
        list[str] | None,
        typer.Option(
            help="Of tensorrt-rtx: build for GPUs of this compute capability, 8.9 say, which need "
            "not be here. May be given several times."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="With --compute-capability: put the plans here instead of the cache, to be "
            "carried to the GPU's machine."
        ),
    ] = None,
) -> None:
    """Build a bundle's engines ahead of their first use, without PyTorch and without ONNX.

    Engines are kept in the cache and proven by the bundle's own images. The bundle is not changed.
    With --compute-capability nothing is run, so no GPU is needed, and nothing is proven before the
    first load.
    """
    opened = Bundle(bundle)
    if compute_capability:
        if engine != TensorRtRtxEngine.name:
            raise UsageError(
                f"--compute-capability is for --engine {TensorRtRtxEngine.name}; engine {engine!r} "
                "is built on the GPU that runs it"
            )
        if output is not None and (target := _carried(output)).exists():
            raise BundleError(f"{target} exists already. Choose another --output")
        _build_ahead(opened, compute_capability, output)
        return
    if output is not None:
        raise UsageError("--output needs --compute-capability: other engines stay in the cache")
    _build_here(opened, engine)


def _build_here(bundle: Bundle, engine: str) -> None:
    """Load every graph, which builds it, and prove the one that serves the bundle's classes."""
    options = EngineOptions(device="cuda" if engine in TENSORRT else "cpu")
    with Console(stderr=True).status("building; the first time this may take minutes"):
        towers = load_towers(bundle, bundle.class_bank(), engine, options)
        for role in bundle.manifest.graphs:
            towers.graph(role)
    print(
        f"{', '.join(bundle.manifest.graphs)} ready in {towers.image.version}, proven by the "
        f"bundle's own images. Next: vlp classify images/ --bundle {bundle.path} --engine {engine}"
    )


def _build_ahead(bundle: Bundle, capabilities: Iterable[str], output: Path | None) -> None:
    manifest = bundle.manifest
    refuse_unsupported(TensorRtRtxEngine.name, manifest.precision)
    TensorRtRtxEngine.package()
    plans: dict[tuple[str, str], Plan] = {}
    with Console(stderr=True).status("building") as status:
        for capability in capabilities:
            for role in manifest.graphs:
                status.update(f"building {role} for compute capability {capability}")
                plans[role, capability] = TensorRtRtxEngine.build_ahead(
                    bundle.graph_path(role), manifest.profiles.get(role, ()), capability
                )
    _show(plans)
    if output is not None:
        _copy(plans.values(), output)
        print(f"On the GPU's machine: VLP_CACHE={output} vlp classify … --engine tensorrt-rtx")


def _show(plans: Mapping[tuple[str, str], Plan]) -> None:
    table = Table("graph", "compute capability", "profiles", "layers", "MB", "plan")
    for (role, capability), plan in plans.items():
        report = plan.report
        table.add_row(
            role,
            capability,
            str(len(report.profiles)),
            str(sum(report.layers.values())),
            f"{len(plan.content) / 1e6:.1f}",
            plan.folder.name[:12],
        )
    console = Console(highlight=False)
    console.print(table)
    console.print(f"Kept in {plans_folder()}; never run before the first load.", soft_wrap=True)


def _copy(plans: Iterable[Plan], output: Path) -> None:
    """Into a folder that is laid out as the cache is."""
    with staged_folder(_carried(output)) as target:
        for plan in plans:
            shutil.copytree(plan.folder, target / plan.folder.name)


def _carried(output: Path) -> Path:
    return output / plans_folder().name
