"""Functions behind an extra, loaded by name: the runtime never imports them, it names them."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from vlp_deploy.errors import MissingExtraError

# module -> its package and the extra that installs it; any other missing module is our own bug
EXTRA_MODULES = {
    "torch": ("torch", "train"),
    "open_clip": ("open_clip_torch", "train"),
    "onnx": ("onnx", "export"),
    "onnx_ir": ("onnx-ir", "export"),
    "onnxscript": ("onnxscript", "train"),
    "onnxruntime": ("onnxruntime", "cpu"),
    "resvg_py": ("resvg-py", "pretrain"),
    "scipy": ("scipy", "pretrain"),
}


def load_function(target: str, *, what: str, extra: str | None = None) -> Callable[..., Any]:
    """Import `target`, a "module:function"; `what` is what the user asked for.

    `extra` is the one that installs all that it needs, if the packages' own ones do not.

    Raises MissingExtraError if a package of an extra is not installed.
    """
    module, _, function = target.partition(":")
    try:
        return getattr(import_module(module), function)  # type: ignore[no-any-return]
    except ModuleNotFoundError as missing:
        if missing.name not in EXTRA_MODULES:
            raise
        package, own = EXTRA_MODULES[missing.name]
        raise MissingExtraError(what, needs=package, extra=extra or own) from None
