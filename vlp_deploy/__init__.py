"""vlp-deploy: tuned CLIP prompts as fast, torch-free classifiers."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlp_deploy.answers import Failure, Prediction
    from vlp_deploy.classifier import Classifier
    from vlp_deploy.errors import VlpError

__version__ = "0.1.0"
__all__ = ["Classifier", "Failure", "Prediction", "VlpError", "__version__"]

_HOMES = {
    "Classifier": "vlp_deploy.classifier",
    "Failure": "vlp_deploy.answers",
    "Prediction": "vlp_deploy.answers",
    "VlpError": "vlp_deploy.errors",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `vlp --help` need not load NumPy and Pillow."""
    if name not in _HOMES:
        raise AttributeError(f"module 'vlp_deploy' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
