"""An ONNX graph in memory, run by onnxruntime on the CPU."""

from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

ERRORS_ONLY = 3
Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
Feeds = dict[str, NDArray[Any]]


class Session:
    """Runs one graph; its inputs and outputs are called by name."""

    def __init__(self, content: bytes) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = ERRORS_ONLY
        self._session = onnxruntime.InferenceSession(
            content, options, providers=["CPUExecutionProvider"]
        )

    def run(self, *outputs: str, feeds: Feeds) -> list[Floats]:
        """The named outputs for these inputs."""
        found: list[Floats] = self._session.run(list(outputs), feeds)
        return found


class ImageSession(Session):
    """The image graph."""

    def __call__(
        self, pixels: NDArray[np.uint8], class_matrix: Floats, class_bias: Floats
    ) -> tuple[Floats, Floats]:
        """(B, 3, S, S), (D, K), (K,) → embeddings (B, D) and logits (B, K)."""
        feeds: Feeds = {"image": pixels, "class_matrix": class_matrix, "class_bias": class_bias}
        embeddings, logits = self.run("embedding", "logits", feeds=feeds)
        return embeddings, logits


class TextSession(Session):
    """The text graph."""

    def __call__(self, ids: Integers, eot: Integers, slots: Integers, prompts: Floats) -> Floats:
        """(N, L), (N,), (N, L), (J, m, d) → embeddings (N, D)."""
        feeds: Feeds = {"input_ids": ids, "eot_index": eot, "slots": slots, "prompts": prompts}
        (embeddings,) = self.run("embedding", feeds=feeds)
        return embeddings
