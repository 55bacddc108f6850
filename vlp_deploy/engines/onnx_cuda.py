"""onnxruntime's CUDA provider: its settings, and runs whose arrays stay on the GPU.

Written from onnxruntime's documentation (execution-providers/CUDA, "I/O binding", "Using CUDA
Graphs") and tested with a stand-in for onnxruntime: it has never run on a GPU.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlp_deploy.engines.base import Arrays, EngineOptions
from vlp_deploy.errors import MissingExtraError

PROVIDER = "CUDAExecutionProvider"
DEVICE = "cuda"
# Sets of arrays that are kept on the GPU, one for each combination of input shapes: batch sizes 1
# and 32 and a rest, and some lengths of text.
SHAPES_KEPT = 8


def cuda_providers(runtime: ModuleType, options: EngineOptions) -> list[Any]:
    """Providers with their settings, best first. Raises MissingExtraError without a GPU build."""
    available = runtime.get_available_providers()
    if PROVIDER not in available:
        raise MissingExtraError(
            f"--device cuda (this onnxruntime offers {', '.join(available)} only)",
            needs="onnxruntime-gpu in place of onnxruntime, so first: pip uninstall onnxruntime",
            extra="gpu",
        )
    settings = {
        # TF32 has 10 bits of mantissa: logits in "fp32" would be off by more than the tolerance
        "use_tf32": "0" if options.precision == "fp32" else "1",
        "arena_extend_strategy": "kSameAsRequested",  # by default it doubles
        "enable_cuda_graph": "1" if options.cuda_graphs else "0",
    }
    return [(PROVIDER, settings), "CPUExecutionProvider"]


@dataclass(frozen=True, kw_only=True)
class _Bound:
    """Arrays on the GPU for inputs of certain shapes."""

    binding: Any
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    run_options: Any


class CudaRuns:
    """Runs a session on arrays at fixed places of the GPU, as CUDA graphs need them.

    One run at a time: a captured graph belongs to its arrays.
    """

    def __init__(self, runtime: ModuleType, session: Any) -> None:
        self._runtime, self._session = runtime, session
        self._outputs = [entry.name for entry in session.get_outputs()]
        self._bound: dict[Any, _Bound] = {}
        self._lock = threading.Lock()

    def __call__(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """Outputs by name."""
        shapes = tuple(sorted((name, value.shape) for name, value in inputs.items()))
        with self._lock:
            if shapes not in self._bound:
                if len(self._bound) == SHAPES_KEPT:  # shapes that vary are not worth it
                    return self._unbound(inputs)
                self._bound[shapes] = self._bind(inputs)
            bound = self._bound[shapes]
            for name, value in inputs.items():
                bound.inputs[name].update_inplace(np.ascontiguousarray(value))
            self._session.run_with_iobinding(bound.binding, bound.run_options)
            return {name: value.numpy() for name, value in bound.outputs.items()}

    def _unbound(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        found = self._session.run(self._outputs, dict(inputs), self._run_options(-1))
        return dict(zip(self._outputs, found, strict=True))

    def _bind(self, inputs: Arrays) -> _Bound:
        """Places for these inputs and for the outputs, whose shapes a first run tells."""
        values = self._runtime.OrtValue
        given = {
            name: values.ortvalue_from_numpy(np.ascontiguousarray(value), DEVICE, 0)
            for name, value in inputs.items()
        }
        made = {
            name: values.ortvalue_from_numpy(value, DEVICE, 0)
            for name, value in self._unbound(inputs).items()
        }
        binding = self._session.io_binding()
        for name, value in given.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in made.items():
            binding.bind_ortvalue_output(name, value)
        options = self._run_options(len(self._bound))
        return _Bound(binding=binding, inputs=given, outputs=made, run_options=options)

    def _run_options(self, graph: int) -> Any:
        """Options that capture, and later replay, CUDA graph number `graph`; -1 captures none."""
        options = self._runtime.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(graph))
        return options
