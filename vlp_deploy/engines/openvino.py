"""Engine `openvino`: the same ONNX files, run by OpenVINO's own runtime on the CPU."""

import hashlib
import shutil
import threading
import warnings
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlp_deploy.cache import cache_folder
from vlp_deploy.engines.base import Arrays, Engine, EngineOptions
from vlp_deploy.engines.onnx import refuse_external_data
from vlp_deploy.errors import BundleError, EngineError, MissingExtraError
from vlp_deploy.files import sha256_of, write_atomic
from vlp_deploy.formats.sealed import CHECKSUMS, SealedFolder, seal_sums

FLOAT32, BFLOAT16 = "f32", "bf16"  # what OpenVINO calls them


class OpenVinoEngine(Engine):
    """OpenVINO in the bundle's precision, one request for each thread that calls."""

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
        refuse_external_data(graph)
        core = runtime.Core()
        # By default processors with bfloat16 units would use them for float32 graphs, and answers
        # would change from machine to machine.
        hint = BFLOAT16 if options.precision == "bf16" else FLOAT32
        if hint == BFLOAT16 and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            warnings.warn(
                "this processor has no bfloat16 units (AVX512_BF16 or AMX), so OpenVINO computes "
                "this bf16 bundle in float32, no faster than an fp32 one",
                stacklevel=2,
            )
            hint = FLOAT32
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": hint,
        }
        if options.threads is not None:
            settings["INFERENCE_NUM_THREADS"] = options.threads
        try:
            if options.cached:
                self._compiled = _compiled(core, graph, settings)
            else:
                self._compiled = core.compile_model(str(graph), "CPU", settings)
        except RuntimeError as error:
            raise EngineError(f"openvino cannot load {graph}: {error}") from error
        self._inputs = frozenset(port.any_name for port in self._compiled.inputs)
        self._outputs = [port.any_name for port in self._compiled.outputs]
        self._requests = threading.local()
        self._hint = hint
        self._version = f"openvino {runtime.__version__.split('-')[0]} CPU {hint}"

    @property
    def version(self) -> str:
        return self._version

    @property
    def inputs(self) -> frozenset[str]:
        return self._inputs

    @property
    def rounds_logits(self) -> bool:
        return self._hint == BFLOAT16  # all products of the graph, the last as well

    def _run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        try:
            request = getattr(self._requests, "request", None)
            if request is None:
                request = self._requests.request = self._compiled.create_infer_request()
            contiguous = {name: np.ascontiguousarray(value) for name, value in inputs.items()}
            # read in place: the matrix of 20,000 classes is 41 MB
            found = request.infer(contiguous, share_inputs=True)
        except RuntimeError as error:
            raise EngineError(f"openvino failed: {error}") from error
        # copies: the request's own arrays are overwritten by its next run
        return {name: np.array(found[name]) for name in self._outputs}

    def close(self) -> None:
        super().close()
        self._compiled = None
        self._requests = threading.local()


def _compiled(core: Any, graph: Path, settings: dict[str, Any]) -> Any:
    """The graph compiled, from the cache where it has it.

    OpenVINO finds compiled graphs again by the path and time of the file they came from and reads
    them unchecked: with damaged weights they run and answer wrongly. So each graph has a cache of
    its own for the same settings, named by its content and sealed by us. It keeps what was compiled
    last: another copy of the file takes the place of the one before.
    """
    key = repr((sha256_of(graph), sorted(settings.items())))
    folder = cache_folder() / "openvino" / hashlib.sha256(key.encode()).hexdigest()
    if not _is_whole(folder):
        shutil.rmtree(folder, ignore_errors=True)
        try:
            folder.mkdir(parents=True)
        except OSError:  # a cache that cannot be written to costs time, not answers
            return core.compile_model(str(graph), "CPU", settings)
    before = list(folder.glob("*.blob"))
    compiled = core.compile_model(str(graph), "CPU", {**settings, "CACHE_DIR": str(folder)})
    if not compiled.get_property("LOADED_FROM_CACHE"):
        with suppress(OSError):  # as above
            for blob in before:
                blob.unlink(missing_ok=True)
            sums = {path.name: sha256_of(path) for path in folder.glob("*.blob")}
            write_atomic(folder / CHECKSUMS, seal_sums(sums))
    return compiled


def _is_whole(folder: Path) -> bool:
    """Whether every file is there, unchanged, and nothing else."""
    try:
        return not any(complaint for _, complaint in SealedFolder(folder).verify())
    except BundleError:  # no list, or a damaged one
        return False


def _openvino() -> ModuleType:
    try:
        import openvino
    except ModuleNotFoundError as missing:
        if missing.name != "openvino":
            raise
        raise MissingExtraError("the openvino engine", needs="openvino", extra="openvino") from None
    except ImportError as error:
        raise EngineError(
            f"openvino is installed but cannot be imported: {error}. Install it again"
        ) from error
    return openvino  # type: ignore[no-any-return]
