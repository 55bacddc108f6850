"""Engine `openvino`: the same ONNX files, run by OpenVINO's own runtime on the CPU."""

import threading
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlp_deploy.cache import cache_folder
from vlp_deploy.engines.base import Arrays, Engine, EngineOptions
from vlp_deploy.engines.onnx import refuse_external_data
from vlp_deploy.errors import EngineError, MissingExtraError


class OpenVinoEngine(Engine):
    """OpenVINO in float32, one request for each thread that calls."""

    name = "openvino"
    reads = ".onnx"
    devices = ("cpu",)
    distributions = ("openvino",)

    @classmethod
    def is_installed(cls) -> bool:
        return find_spec("openvino") is not None

    def __init__(self, graph: Path, options: EngineOptions) -> None:
        super().__init__(graph, options)
        runtime = _openvino()
        if options.device != "cpu":
            raise EngineError(
                f"the openvino engine runs on the CPU; device is {options.device!r}. Use --engine "
                "onnx for CUDA"
            )
        refuse_external_data(graph, graph.read_bytes())
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            # By default processors with bfloat16 units would use them, and answers would change
            # from machine to machine.
            "INFERENCE_PRECISION_HINT": "f32",
            "CACHE_DIR": str(cache_folder() / "openvino"),
        }
        if options.threads is not None:
            settings["INFERENCE_NUM_THREADS"] = options.threads
        try:
            self._compiled = runtime.Core().compile_model(str(graph), "CPU", settings)
        except RuntimeError as error:
            raise EngineError(f"openvino cannot load {graph}: {error}") from error
        self._inputs = frozenset(port.any_name for port in self._compiled.inputs)
        self._outputs = [port.any_name for port in self._compiled.outputs]
        self._requests = threading.local()
        self._version = f"openvino {runtime.__version__.split('-')[0]} CPU"

    @property
    def version(self) -> str:
        return self._version

    @property
    def inputs(self) -> frozenset[str]:
        return self._inputs

    def _run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        request = getattr(self._requests, "request", None)
        if request is None:
            request = self._requests.request = self._compiled.create_infer_request()
        try:
            found = request.infer({k: np.ascontiguousarray(v) for k, v in inputs.items()})
        except RuntimeError as error:
            raise EngineError(f"openvino failed: {error}") from error
        # copies: the request's own arrays are overwritten by its next run
        return {name: np.array(found[name]) for name in self._outputs}

    def close(self) -> None:
        super().close()
        self._compiled = None
        self._requests = threading.local()


def _openvino() -> ModuleType:
    try:
        import openvino
    except ModuleNotFoundError as missing:
        if missing.name != "openvino":
            raise
        raise MissingExtraError("the openvino engine", needs="openvino", extra="openvino") from None
    return openvino  # type: ignore[no-any-return]
