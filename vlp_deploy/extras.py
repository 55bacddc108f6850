"""Functions behind an extra, loaded by name: the runtime never imports them, it names them."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from vlp_deploy.errors import MissingExtraError

# extra -> {module: package}. A missing module of its extra means that the extra is not installed;
# any other missing module is our own bug.
EXTRA_MODULES = {
    "train": {"torch": "torch", "open_clip": "open_clip_torch"},
    "export": {"onnx": "onnx", "onnx_ir": "onnx-ir", "onnxruntime": "onnxruntime"},
}


def load_function(target: str, *, extra: str | None, what: str) -> Callable[..., Any]:
    """Import `target`, a "module:function"; `what` is what the user asked for.

    Raises MissingExtraError if the extra is not installed.
    """
    module, _, function = target.partition(":")
    try:
        return getattr(import_module(module), function)  # type: ignore[no-any-return]
    except ModuleNotFoundError as missing:
        packages = EXTRA_MODULES.get(extra or "", {})
        if missing.name not in packages or extra is None:
            raise
        raise MissingExtraError(what, needs=packages[missing.name], extra=extra) from None
