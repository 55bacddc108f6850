"""What else a user could run the same tuned classifier with, by the name of `--against`.

Every rival is given the same prompt and classes and as many threads; text embeddings are computed
beforehand, where the method allows it.
"""

from collections.abc import Sequence
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


def load_rival(
    name: str, bundle: Bundle, *, classes: Sequence[str], pretrained: str | None, threads: int
) -> Contender:
    """Raises MissingExtraError, EngineError or ModelError."""
    load = load_function(AGAINST[name], what=f"`vlp bench --against {name}`")
    rival: Contender = load(bundle, classes=classes, pretrained=pretrained, threads=threads)
    return rival


def load_in_openvino(
    bundle: Bundle, *, classes: Sequence[str], pretrained: str | None, threads: int
) -> Classifier:
    """The bundle's own graph in OpenVINO."""
    return load_in("openvino", bundle.path, classes=classes, threads=threads)


def load_in_onnxruntime(
    bundle: Bundle, *, classes: Sequence[str], pretrained: str | None, threads: int
) -> Classifier:
    """The bundle's own graph in onnxruntime."""
    return load_in("onnx", bundle.path, classes=classes, threads=threads)


def load_in(engine: str, bundle: Path, *, classes: Sequence[str], threads: int) -> Classifier:
    """A bundle in an engine, for these classes."""
    classifier = Classifier.load(bundle, engine=engine, threads=threads)
    if classifier.classes == tuple(classes):
        return classifier
    return classifier.with_classes(list(classes))
