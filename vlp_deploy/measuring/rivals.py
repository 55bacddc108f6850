"""What else a user could run the same tuned classifier with, by the name of `--against`.

Every rival is given the same prompt and classes and as many threads; text embeddings are computed
beforehand, where the method allows it.
"""

from dataclasses import dataclass
from pathlib import Path

from vlp_deploy.classifier import Classifier
from vlp_deploy.errors import EngineError
from vlp_deploy.extras import load_function
from vlp_deploy.formats.bundle import Bundle
from vlp_deploy.measuring.contender import Contender

# name -> the function that loads it; those that need PyTorch are only named here
AGAINST = {
    "torch": "vlp_train.eager:load_eager",
    "torch-compile": "vlp_train.compiled:load_compiled",
    "openclip-onnx": "vlp_train.stock_onnx:load_stock_onnx",
    "openvino": "vlp_deploy.measuring.rivals:load_in_openvino",
    "onnx": "vlp_deploy.measuring.rivals:load_in_onnxruntime",
}


def rival_names(text: str) -> tuple[str, ...]:
    """A comma-separated list, checked. Raises EngineError for a name that is not in AGAINST."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        if name not in AGAINST:
            raise EngineError(f"--against {name}: unknown. Available: {', '.join(AGAINST)}")
    return tuple(dict.fromkeys(names))


@dataclass(frozen=True, kw_only=True)
class RivalOptions:
    """What every rival is given. `pretrained` is the backbone's weights, for those in PyTorch."""

    classes: tuple[str, ...]
    pretrained: str | None
    threads: int
    device: str


def load_rival(name: str, bundle: Bundle, options: RivalOptions) -> Contender:
    """Raises MissingExtraError, EngineError or ModelError."""
    load = load_function(AGAINST[name], what=f"`vlp bench --against {name}`")
    rival: Contender = load(bundle, options)
    return rival


def load_in_openvino(bundle: Bundle, options: RivalOptions) -> Classifier:
    """The bundle's own graph in OpenVINO."""
    return load_in("openvino", bundle.path, options)


def load_in_onnxruntime(bundle: Bundle, options: RivalOptions) -> Classifier:
    """The bundle's own graph in onnxruntime."""
    return load_in("onnx", bundle.path, options)


def load_in(engine: str, bundle: Path, options: RivalOptions) -> Classifier:
    """A bundle in an engine, for the same classes."""
    classifier = Classifier.load(
        bundle, engine=engine, threads=options.threads, device=options.device
    )
    if classifier.classes == options.classes:
        return classifier
    return classifier.with_classes(list(options.classes))
