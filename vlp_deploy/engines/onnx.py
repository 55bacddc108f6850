"""Engine `onnx`: ONNX files run by onnxruntime, on the CPU or an NVIDIA GPU."""

from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from numpy.typing import NDArray

from vlp_deploy.engines.base import Arrays, Engine, EngineOptions
from vlp_deploy.engines.onnx_cuda import PROVIDER, CudaRuns, cuda_providers
from vlp_deploy.errors import EngineError, MissingExtraError

# The key under which ONNX names a file outside the model, as protobuf writes it. Such a file would
# not be covered by the bundle's checksums.
EXTERNAL_DATA = b"\x0a\x08location"
PIECE_BYTES = 1 << 20
ERRORS_ONLY = 3
CPU = "CPUExecutionProvider"


class OnnxEngine(Engine):
    """onnxruntime, quiet: only errors are logged."""

    name = "onnx"
    reads = ".onnx"
    distributions = ("onnxruntime", "onnxruntime-gpu")

    @classmethod
    def is_installed(cls) -> bool:
        return find_spec("onnxruntime") is not None

    def __init__(self, graph: Path, options: EngineOptions) -> None:
        super().__init__(graph, options)
        runtime = _onnxruntime()
        refuse_external_data(graph)
        settings = runtime.SessionOptions()
        settings.log_severity_level = ERRORS_ONLY
        # Threads that spin while they wait take the processor from those that decode images: two
        # cores then take 2.0 instead of 1.7 ms an image. One image alone, with nothing else to do,
        # would be answered in 0.68 of the time (benchmarks/bench_onnx_settings.py).
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        cuda = options.device == "cuda"
        # On the CPU, a plan of where arrays go is a block of memory of its own for each batch size:
        # 200 MB for 8 images of a ViT-B/16, beside the arena, and no time is gained.
        settings.enable_mem_pattern = cuda
        if options.threads is not None:
            settings.intra_op_num_threads = options.threads
        providers = cuda_providers(runtime, options) if cuda else [CPU]
        try:
            # Loaded by its path: of bytes onnxruntime makes another copy, 87 MB of a ViT-B/16 in
            # int8.
            self._session = runtime.InferenceSession(str(graph), settings, providers=providers)
        except Exception as error:  # onnxruntime's errors have no common base of their own
            raise EngineError(f"onnxruntime cannot load {graph}: {error}") from error
        self._inputs = frozenset(entry.name for entry in self._session.get_inputs())
        self._outputs = [entry.name for entry in self._session.get_outputs()]
        used = self._session.get_providers()[0]
        if cuda and used != PROVIDER:
            raise EngineError(
                f"onnxruntime could not start {PROVIDER} and fell back to {used}. See whether "
                "nvidia-smi shows a GPU, and whether CUDA and cuDNN are installed"
            )
        self._run_on_gpu = CudaRuns(runtime, self._session) if cuda else None
        self._version = f"onnxruntime {runtime.__version__} {used}"

    @property
    def version(self) -> str:
        return self._version

    @property
    def inputs(self) -> frozenset[str]:
        return self._inputs

    def _run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        try:
            if self._run_on_gpu is not None:
                return self._run_on_gpu(inputs)
            outputs = self._session.run(self._outputs, dict(inputs))
        except Exception as error:  # as above
            raise EngineError(f"onnxruntime failed: {error}") from error
        return dict(zip(self._outputs, outputs, strict=True))

    def close(self) -> None:
        super().close()
        self._session = self._run_on_gpu = None


def refuse_external_data(graph: Path) -> None:
    """Raise EngineError if an ONNX file refers to others."""
    kept = b""  # the end of the piece before: the key may stand on a border
    with open(graph, "rb") as file:
        while piece := file.read(PIECE_BYTES):
            if EXTERNAL_DATA in kept + piece:
                raise EngineError(f"{graph} keeps tensors in other files, which is refused")
            kept = piece[-len(EXTERNAL_DATA) :]


def _onnxruntime() -> ModuleType:
    try:
        import onnxruntime
    except ModuleNotFoundError as missing:
        if missing.name != "onnxruntime":
            raise
        raise MissingExtraError("the onnx engine", needs="onnxruntime", extra="cpu") from None
    except ImportError as error:
        raise EngineError(
            f"onnxruntime is installed but cannot be imported: {error}. Install it again"
        ) from error
    return onnxruntime  # type: ignore[no-any-return]
