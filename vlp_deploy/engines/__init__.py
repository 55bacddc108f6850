"""Which engines there are and the right one for a graph; their packages are imported on use."""

from difflib import get_close_matches
from importlib import import_module
from pathlib import Path

from vlp_deploy.engines.base import Engine, EngineOptions
from vlp_deploy.errors import EngineError

# name -> where it lives; `auto` tries them in this order
ENGINES = {
    "onnx": "vlp_deploy.engines.onnx:OnnxEngine",
    "openvino": "vlp_deploy.engines.openvino:OpenVinoEngine",
    "fake": "vlp_deploy.engines.fake:FakeEngine",
}
PLANNED = ("tensorrt", "tensorrt-rtx")


def engine_class(name: str) -> type[Engine]:
    """The class behind a name. Raises EngineError that lists what there is."""
    if name in PLANNED:
        raise EngineError(
            f"engine {name!r} is not in this version. What works today: auto, {', '.join(ENGINES)}"
        )
    if name not in ENGINES:
        close = get_close_matches(name, [*ENGINES, *PLANNED, "auto"], n=1)
        hint = f"Did you mean {close[0]!r}? " if close else ""
        raise EngineError(
            f"there is no engine {name!r}. {hint}Available: auto, {', '.join(ENGINES)}"
        )
    module, _, attribute = ENGINES[name].partition(":")
    found: type[Engine] = getattr(import_module(module), attribute)
    return found


def choose_engine(name: str, graph: Path) -> type[Engine]:
    """The engine called `name`; for `auto` the first that reads `graph`, installed ones first."""
    if name != "auto":
        chosen = engine_class(name)
        if chosen.reads != graph.suffix:
            raise EngineError(
                f"engine {name!r} reads {chosen.reads} files, but this bundle holds {graph.name}. "
                "Use --engine auto"
            )
        return chosen
    candidates = [cls for cls in map(engine_class, ENGINES) if cls.reads == graph.suffix]
    if not candidates:
        raise EngineError(f"no engine of this version reads {graph.name}")
    return next((cls for cls in candidates if cls.is_installed()), candidates[0])


def load_engine(name: str, graph: Path, options: EngineOptions) -> Engine:
    """Load `graph` in the engine called `name` (or `auto`). Raises EngineError."""
    return choose_engine(name, graph)(graph, options)
