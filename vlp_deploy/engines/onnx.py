"""Engine `onnx`: ONNX files run by onnxruntime, on the CPU or an NVIDIA GPU."""

from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from numpy.typing import NDArray

from vlp_deploy.engines.base import Arrays, Engine, EngineOptions
from vlp_deploy.errors import EngineError, MissingExtraError

# The key under which ONNX names a file outside the model, as protobuf writes it. Such a file would
# not be covered by the bundle's checksums.
EXTERNAL_DATA = b"\x0a\x08location"
ERRORS_ONLY = 3


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
        content = graph.read_bytes()
        refuse_external_data(graph, content)
        settings = runtime.SessionOptions()
        settings.log_severity_level = ERRORS_ONLY
        # Threads that spin while they wait take the processor from those that decode images: on two
        # cores 3.4 instead of 2.5 ms an image, and one image alone is no faster for it.
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if options.threads is not None:
            settings.intra_op_num_threads = options.threads
        providers = _providers(runtime, options.device)
        try:
            self._session = runtime.InferenceSession(content, settings, providers=providers)
        except Exception as error:  # onnxruntime's errors have no common base of their own
            raise EngineError(f"onnxruntime cannot load {graph}: {error}") from error
        self._inputs = frozenset(entry.name for entry in self._session.get_inputs())
        self._outputs = [entry.name for entry in self._session.get_outputs()]
        used = self._session.get_providers()[0]
        if used != providers[0]:
            raise EngineError(f"onnxruntime could not start {providers[0]} and fell back to {used}")
        self._version = f"onnxruntime {runtime.__version__} {used}"

    @property
    def version(self) -> str:
        return self._version

    @property
    def inputs(self) -> frozenset[str]:
        return self._inputs

    def _run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        try:
            outputs = self._session.run(self._outputs, dict(inputs))
        except Exception as error:  # as above
            raise EngineError(f"onnxruntime failed: {error}") from error
        return dict(zip(self._outputs, outputs, strict=True))

    def close(self) -> None:
        super().close()
        self._session = None


def refuse_external_data(graph: Path, content: bytes) -> None:
    """Raise EngineError if an ONNX file refers to others."""
    if EXTERNAL_DATA in content:
        raise EngineError(f"{graph} keeps tensors in other files, which is refused")


def _onnxruntime() -> ModuleType:
    try:
        import onnxruntime
    except ModuleNotFoundError as missing:
        if missing.name != "onnxruntime":
            raise
        raise MissingExtraError("the onnx engine", needs="onnxruntime", extra="cpu") from None
    return onnxruntime  # type: ignore[no-any-return]


def _providers(runtime: ModuleType, device: str) -> list[str]:
    if device == "cpu":
        return ["CPUExecutionProvider"]
    available = runtime.get_available_providers()
    if "CUDAExecutionProvider" not in available:
        raise MissingExtraError(
            f"--device cuda (this onnxruntime offers {', '.join(available)} only)",
            needs="onnxruntime-gpu in place of onnxruntime, so first: pip uninstall onnxruntime",
            extra="gpu",
        )
    return ["CUDAExecutionProvider", "CPUExecutionProvider"]
