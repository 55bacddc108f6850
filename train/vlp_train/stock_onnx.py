"""The un-folded classifier of a bundle through PyTorch's own ONNX export, run in onnxruntime.

This is what a user would do who has the tuned model in open_clip and no exporter that knows
prompts: the model as it is, class embeddings as constants, dynamic batch. The engine and its
options are those of a bundle, so that only the graph differs. B images, K classes, S image size.
"""

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxscript  # noqa: F401  (PyTorch's exporter needs it; here its absence is told)
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vlp_deploy.engines.base import Engine, EngineOptions
from vlp_deploy.engines.onnx import OnnxEngine
from vlp_deploy.errors import EngineError
from vlp_deploy.formats.bundle import Bundle
from vlp_deploy.measuring.rivals import RivalOptions
from vlp_train.eager import EagerClassifier, load_eager

EXAMPLE_BATCH = 2  # an example of one image would be taken for a model of one image


class _AsModule(nn.Module):
    """What torch.onnx.export takes."""

    def __init__(self, eager: EagerClassifier) -> None:
        super().__init__()
        self._eager = eager
        self._clip = eager.model.clip  # a module's own parameters; others would become constants

    def forward(self, image: Tensor) -> Tensor:
        return self._eager.predict(image)


class StockOnnxClassifier:
    """Pixels to logits through the exported graph."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def logits(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 (B, 3, S, S) → float32 (B, K)."""
        answers: NDArray[np.float32] = self._engine.run({"image": pixels})["logits"]
        return answers


def load_stock_onnx(bundle: Bundle, options: RivalOptions) -> StockOnnxClassifier:
    """As `load_eager`, then exported. Raises EngineError if PyTorch cannot export the model."""
    eager = load_eager(bundle, replace(options, device="cpu"))
    engine = EngineOptions(threads=options.threads, device=options.device)
    example = torch.from_numpy(bundle.golden().pixels[:EXAMPLE_BATCH])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export(eager, example, path)
        return StockOnnxClassifier(OnnxEngine(path, engine))


def export(eager: EagerClassifier, example: Tensor, path: Path) -> None:
    """Write the model for any batch size. Raises EngineError."""
    with _silence(), torch.inference_mode():
        try:
            torch.onnx.export(
                _AsModule(eager).eval(),
                (example,),
                str(path),
                input_names=["image"],
                output_names=["logits"],
                dynamo=True,
                dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
                external_data=False,
                verbose=False,
            )
        except (RuntimeError, ValueError) as error:  # torch.onnx.OnnxExporterError is one
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise EngineError(
                f"PyTorch cannot export this model to ONNX: {reason}. Leave openclip-onnx out of "
                "--against"
            ) from error


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """The exporter prints its progress and warns of its own deprecations."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
