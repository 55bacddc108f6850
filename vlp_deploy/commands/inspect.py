"""`vlp inspect`: what is inside a bundle, a prompt checkpoint or a training run."""

from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from vlp_deploy.embedded import default_bundle
from vlp_deploy.engine_choice import Choice, known_choice
from vlp_deploy.engines import engine_class
from vlp_deploy.engines.base import EngineOptions
from vlp_deploy.errors import EngineError
from vlp_deploy.formats.bundle import MANIFEST, Bundle, Manifest, NewClasses
from vlp_deploy.formats.checkpoint import PromptCheckpoint
from vlp_deploy.formats.structures import Plain, Structure

CLASSES_SHOWN = 8


def inspect(
    path: Annotated[
        Path | None,
        typer.Argument(help="Bundle, checkpoint or run folder. Default: the embedded bundle."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="The whole header as JSON.")] = False,
) -> None:
    """Show method, backbone, classes, graphs, sizes and parity. Reads only; nothing is run."""
    source = path or default_bundle()
    if (source / MANIFEST).exists():
        bundle = Bundle(source)
        _show_json(bundle.manifest) if json else _show_bundle(bundle)
    else:
        checkpoint = PromptCheckpoint.load(source)
        _show_json(checkpoint.header) if json else _show_checkpoint(checkpoint, source)


def _show_json(record: msgspec.Struct) -> None:
    print(msgspec.json.format(msgspec.json.encode(record), indent=2).decode())


def _show_bundle(bundle: Bundle) -> None:
    manifest, console = bundle.manifest, _console()
    console.print(f"bundle {bundle.path}, {bundle.digest[:12]}")
    _show_rows(
        console,
        {
            "method": manifest.method,
            "backbone": f"{manifest.backbone.name} ({manifest.backbone.pretrained})",
            "exported for": f"{manifest.engine}, {manifest.precision}",
            "runs here in": _engines_here(bundle),
            "classes": _summary(manifest.classes),
            "new classes": _new_classes(manifest.new_classes),
            "templates": " | ".join(manifest.templates),
            "learned": f"{manifest.text_layout.tokens} text tokens "
            f"({manifest.text_layout.position}), {manifest.visual_layout.tokens} visual tokens",
            **_structure(manifest.structure),
            "logit scale": f"{manifest.logit_scale:.4g}, temperature {manifest.temperature:.4g}",
            **_thresholds(manifest),
            "made with": ", ".join(f"{name} {v}" for name, v in manifest.tools.items()),
        },
    )
    graphs = Table("graph", "file", "opset", "nodes", "GFLOP", "MB")
    for role, graph in manifest.graphs.items():
        size = (bundle.path / graph.file).stat().st_size / 1e6
        gflop = f"{graph.flops / 1e9:.3g}" if graph.flops else "not counted"
        cells = (str(graph.opset), str(graph.nodes), gflop, f"{size:.1f}")
        graphs.add_row(role, graph.file, *cells)
    console.print(graphs)
    parity = Table(
        *("engine", "precision", "batch", "max |Δlogit|", "allowed", "min cosine"),
        *("batch cosine", "top-1"),
    )
    for row in manifest.parity:
        parity.add_row(
            row.engine,
            row.precision,
            str(row.batch),
            f"{row.max_logit_difference:.1e}",
            f"{row.tolerance:.1e}",
            f"{row.min_cosine:.6f}",
            "" if row.batch_cosine is None else f"{row.batch_cosine:.6f}",
            f"{row.top1_agreement:.0%}",
        )
    console.print(parity)


def _show_checkpoint(checkpoint: PromptCheckpoint, path: Path) -> None:
    header, console = checkpoint.header, _console()
    console.print(f"prompt checkpoint {path}")
    _show_rows(
        console,
        {
            "method": header.method,
            "hyper-parameters": ", ".join(f"{k}={v}" for k, v in header.hyper_parameters.items()),
            "backbone": f"{header.backbone.name} ({header.backbone.pretrained})",
            "classes": _summary(header.class_names),
            **_structure(header.structure),
            "templates": " | ".join(header.templates),
            "provenance": ", ".join(f"{k}={v}" for k, v in header.provenance.items()),
        },
    )
    tensors = Table("tensor", "shape", "type")
    for name, tensor in sorted(checkpoint.tensors.items()):
        tensors.add_row(name, " x ".join(map(str, tensor.shape)), str(tensor.dtype))
    console.print(tensors)


def _console() -> Console:
    return Console(highlight=False, markup=False, emoji=False)  # names may look like either


def _show_rows(console: Console, rows: dict[str, str]) -> None:
    width = max(map(len, rows))
    for name, value in rows.items():
        console.print(f"  {name:<{width}}  {value}")


def _structure(structure: Structure) -> dict[str, str]:
    """What the method adds to tokens at fixed places; no row where it adds nothing."""
    fields = msgspec.to_builtins(structure)
    kind = fields.pop("type")
    shown = [f"{name}={value}" for name, value in fields.items() if value is not None]
    return {} if isinstance(structure, Plain) else {"structure": ", ".join([kind, *shown])}


def _engines_here(bundle: Bundle) -> str:
    """What `--engine auto` takes on this machine, as far as it is known without running it."""
    try:
        known = known_choice(bundle, EngineOptions())
    except EngineError as error:
        return str(error)
    if isinstance(known, Choice):
        return f"{known}, as measured on this machine"
    if not engine_class(known[0]).is_installed():
        return f"nothing: {' or '.join(known)} is not installed"
    if len(known) == 1:
        return f"{known[0]}, the only installed engine that takes it"
    return f"{' or '.join(known)}: the first start will measure"


def _thresholds(manifest: Manifest) -> dict[str, str]:
    """What `vlp calibrate` fitted beside the temperature; no row for what it did not."""
    rows = {}
    if manifest.reject_threshold is not None:
        rows["rejects"] = f"below a probability of {manifest.reject_threshold:.4g}"
    if least := manifest.class_thresholds:
        rows["several labels"] = f"from logits of {min(least):.4g} to {max(least):.4g} on, by class"
    return rows


def _new_classes(new: NewClasses) -> str:
    if not new.allowed:
        return new.reason
    return f"yes, but {new.warning}" if new.warning else "yes"


def _summary(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:CLASSES_SHOWN])
    return f"{len(names)}: {shown}" + (", …" if len(names) > CLASSES_SHOWN else "")
