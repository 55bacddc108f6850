"""The un-folded classifier of a bundle through `torch.compile`: one compiled model a batch size.

B images, K classes, S image size. The first call at a batch size compiles, which takes seconds to
minutes; `vlp bench` tells that time apart.
"""

import logging
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch._dynamo.config
from numpy.typing import NDArray
from torch._dynamo.exc import TorchDynamoException

from vlp_deploy.errors import EngineError
from vlp_deploy.formats.bundle import Bundle
from vlp_deploy.measuring.rivals import RivalOptions
from vlp_train.eager import EagerClassifier, load_eager

MOST_BATCH_SIZES = 256
INDUCTOR = "inductor"  # PyTorch's own, which writes C++ for processors


class CompiledClassifier:
    """Pixels to logits through the compiled model."""

    def __init__(self, eager: EagerClassifier, *, backend: str | Callable[..., Any] = INDUCTOR):
        torch._dynamo.config.recompile_limit = MOST_BATCH_SIZES  # beyond 8 it would run eagerly
        # dynamic=False: for one batch size each, which is the fastest that torch.compile offers
        self._predict = torch.compile(eager.predict, dynamic=False, backend=backend)

    def use_fresh_cache(self) -> None:
        """Compile for this process alone, into a folder that goes with it.

        PyTorch's own cache would make the first call look quick in the next run, and a library that
        was half written when a process was killed fails in all runs after it.
        """
        folder = tempfile.mkdtemp(prefix="vlp-compiled-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder

    def logits(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 (B, 3, S, S) → float32 (B, K). Raises EngineError if it cannot be compiled."""
        try:
            with torch.inference_mode():
                answers: NDArray[np.float32] = self._predict(torch.from_numpy(pixels)).cpu().numpy()
        except TorchDynamoException as error:
            raise EngineError(
                f"torch.compile cannot compile this model: {_reason(error)}. It needs a C++ "
                "compiler, g++ or clang++ (or the one named by $CXX); leave torch-compile out of "
                "--against otherwise"
            ) from error
        return answers


def load_compiled(bundle: Bundle, options: RivalOptions) -> CompiledClassifier:
    """As `load_eager`; nothing is compiled before the first call."""
    # compiling for a processor, PyTorch warns of a CUDA toolkit that is there without a GPU
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    compiled = CompiledClassifier(load_eager(bundle, options))
    compiled.use_fresh_cache()
    return compiled


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) or type(error).__name__
