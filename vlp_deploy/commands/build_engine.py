"""From a bundle's graphs to engines, in the cache of this machine or for a GPU elsewhere."""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from vlp_deploy.engine_choice import load_towers
from vlp_deploy.engines.base import EngineOptions
from vlp_deploy.engines.support import refuse_unsupported
from vlp_deploy.engines.tensorrt import TENSORRT, TensorRtRtxEngine
from vlp_deploy.engines.tensorrt.plans import Plan, plans_folder
from vlp_deploy.errors import BundleError
from vlp_deploy.files import staged_folder
from vlp_deploy.formats.bundle import Bundle


def build_here(bundle: Bundle, engine: str) -> None:
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


def build_ahead(bundle: Bundle, capabilities: Iterable[str], output: Path | None) -> None:
    """Build TensorRT for RTX's plans for GPUs that need not be here, and copy them to `output`."""
    if output is not None and (target := _carried(output)).exists():
        raise BundleError(f"{target} exists already. Choose another --output")
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
