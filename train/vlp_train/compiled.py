"""The un-folded classifier of a bundle through `torch.compile`: one compiled model a batch size.

B images, K classes, S image size. The first call at a batch size compiles, which takes seconds to
minutes; `vlp bench` tells that time apart.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch._dynamo.exc import TorchDynamoException

from vlp_deploy.errors import EngineError
from vlp_deploy.formats.bundle import Bundle
from vlp_train.eager import EagerClassifier, load_eager


class CompiledClassifier:
    """Pixels to logits through the compiled model."""

    def __init__(self, eager: EagerClassifier) -> None:
        # dynamic=False: for one batch size each, which is the fastest that torch.compile offers
        self._predict = torch.compile(eager.predict, dynamic=False)

    def logits(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 (B, 3, S, S) → float32 (B, K). Raises EngineError if it cannot be compiled."""
        try:
            with torch.inference_mode():
                answers: NDArray[np.float32] = self._predict(torch.from_numpy(pixels)).numpy()
        except TorchDynamoException as error:
            raise EngineError(
                f"torch.compile cannot compile this model: {_first_line(error)}. It needs a C++ "
                "compiler, g++ or clang++ (or the one named by $CXX); leave torch-compile out of "
                "--against otherwise"
            ) from error
        return answers


def load_compiled(
    bundle: Bundle, *, classes: Sequence[str], pretrained: str | None, threads: int
) -> CompiledClassifier:
    """As `load_eager`; one image is answered at once. Raises EngineError without a compiler."""
    eager = load_eager(bundle, classes=classes, pretrained=pretrained, threads=threads)
    compiled = CompiledClassifier(eager)
    compiled.logits(bundle.golden().pixels[:1])
    return compiled


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
