"""Which engines there are and the right one for a graph; their packages are imported on use."""

from difflib import get_close_matches
from importlib import import_module
from pathlib import Path

from vlp_deploy.engines.base import Engine, EngineOptions
from vlp_deploy.engines.memory import give_back
from vlp_deploy.engines.support import support_table, why_unsupported
from vlp_deploy.errors import EngineError

AUTO = "auto"
# name -> where it lives; before anything is measured, `auto` tries them in this order
ENGINES = {
    "onnx": "vlp_deploy.engines.onnx:OnnxEngine",
    "openvino": "vlp_deploy.engines.openvino:OpenVinoEngine",
    "tensorrt": "vlp_deploy.engines.tensorrt:TensorRtEngine",
    "tensorrt-rtx": "vlp_deploy.engines.tensorrt:TensorRtRtxEngine",
    "fake": "vlp_deploy.engines.fake:FakeEngine",
}


def engine_class(name: str) -> type[Engine]:
    """The class behind a name. Raises EngineError that lists what there is."""
    if name not in ENGINES:
        close = get_close_matches(name, [*ENGINES, AUTO], n=1)
        hint = f"Did you mean {close[0]!r}? " if close else ""
        raise EngineError(
            f"there is no engine {name!r}. {hint}Available: auto, {', '.join(ENGINES)}"
        )
    module, _, attribute = ENGINES[name].partition(":")
    found: type[Engine] = getattr(import_module(module), attribute)
    return found


def candidates(suffix: str, options: EngineOptions) -> list[str]:
    """Names of the installed engines that run graph files of this suffix with these options.

    If none is installed, the first that could be: loading it says what to install. Raises
    EngineError where no engine could ever.
    """
    able = [
        name
        for name, cls in ((name, engine_class(name)) for name in ENGINES)
        if cls.reads == suffix
        and options.device in cls.devices
        and not why_unsupported(name, options.precision)
    ]
    if not able:
        raise EngineError(
            f"no engine of this version runs {options.precision} graphs in {suffix} files on "
            f"{options.device}. What goes together:\n{support_table()}"
        )
    return [name for name in able if engine_class(name).is_installed()] or able[:1]


def load_engine(name: str, graph: Path, options: EngineOptions) -> Engine:
    """Load `graph` in the engine called `name`. Raises EngineError or MissingExtraError."""
    chosen = engine_class(name)
    if chosen.reads != graph.suffix:
        raise EngineError(
            f"engine {name!r} reads {chosen.reads} files, but this bundle holds {graph.name}. "
            "Use --engine auto"
        )
    engine = chosen(graph, options)
    give_back()
    return engine
