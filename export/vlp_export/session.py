"""ONNX graphs in memory, run by onnxruntime on the CPU."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from vlp_deploy.classes.conditioned import run_in_pieces
from vlp_deploy.formats.bundle import ClassBank
from vlp_export.served import Run

if TYPE_CHECKING:
    from vlp_export.graphs import Graphs

ERRORS_ONLY = 3
Floats = NDArray[np.float32]


class Session:
    """Runs one graph: arrays in and out by name."""

    def __init__(self, content: bytes) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = ERRORS_ONLY
        self._session = onnxruntime.InferenceSession(
            content, options, providers=["CPUExecutionProvider"]
        )
        self._outputs = [output.name for output in self._session.get_outputs()]

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, Floats]:
        """All outputs for these inputs."""
        found = self._session.run(self._outputs, dict(inputs))
        return dict(zip(self._outputs, found, strict=True))


class Sessions:
    """The graphs of a bundle by role, each loaded when it is first run."""

    def __init__(self, graphs: "Graphs", load: Callable[[bytes], Run] = Session) -> None:
        self._graphs, self._load = graphs, load
        self._loaded: dict[str, Run] = {}

    def __call__(self, role: str, inputs: Mapping[str, NDArray[Any]]) -> dict[str, Floats]:
        """Outputs of the graph of a role."""
        if role not in self._loaded:
            self._loaded[role] = self._load(self._graphs.files[role].content)
        return self._loaded[role](inputs)

    def image(self, pixels: NDArray[np.uint8], bank: ClassBank) -> tuple[Floats, Floats]:
        """(B, 3, S, S) → embeddings (B, D) and logits (B, K)."""
        return run_in_pieces(partial(self, bank.graph), pixels, bank.inputs)
