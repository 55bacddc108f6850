"""A GPU of NumPy: a CUDA driver whose memory is the host's, a TensorRT whose engine is a function.

Both refuse what the real ones would: memory that was not allocated, sizes outside the profile, a
context that two threads enter. A plan of this TensorRT is the JSON of its BuildReport.
"""

import ctypes
import threading
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import msgspec
import numpy as np

from vlp_deploy.engines.tensorrt.builder import BuildReport, BuildRequest
from vlp_deploy.engines.tensorrt.profiles import default_profiles

WIDTH, SIZE = 16, 32
INPUTS = {
    "image": ("B", 3, SIZE, SIZE),
    "class_matrix": (WIDTH, "K"),
    "class_bias": ("K",),
}
TYPES = {"image": np.uint8, "class_matrix": np.float32, "class_bias": np.float32}
OUTPUTS = ("embedding", "logits")
NO_DEVICE = 100


class FakeDriver:
    """`libcuda` with one GPU, or none."""

    def __init__(self, *, devices: int = 1) -> None:
        self.devices = devices
        self.memory: dict[int, Any] = {}

    def cuInit(self, _flags: int) -> int:  # noqa: N802
        return 0 if self.devices else NO_DEVICE

    def cuGetErrorString(self, _code: int, text: Any) -> int:  # noqa: N802
        text._obj.value = b"no CUDA-capable device is detected"
        return 0

    def cuDeviceGetName(self, name: Any, _size: int, _device: Any) -> int:  # noqa: N802
        name.value = b"NVIDIA GeForce RTX 4090"
        return 0

    def cuDriverGetVersion(self, version: Any) -> int:  # noqa: N802
        version._obj.value = 13_000
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, _device: Any) -> int:  # noqa: N802
        value._obj.value = {75: 8, 76: 9}[attribute]
        return 0

    def cuMemAlloc_v2(self, address: Any, size: Any) -> int:  # noqa: N802
        block = ctypes.create_string_buffer(size.value)
        address._obj.value = ctypes.addressof(block)
        self.memory[address._obj.value] = block
        return 0

    def cuMemFree_v2(self, address: Any) -> int:  # noqa: N802
        del self.memory[address.value]
        return 0

    def cuMemcpyHtoDAsync_v2(self, to: Any, source: Any, size: Any, _stream: Any) -> int:  # noqa: N802
        ctypes.memmove(self.block(to.value, size.value), source, size.value)
        return 0

    def cuMemcpyDtoHAsync_v2(self, to: Any, source: Any, size: Any, _stream: Any) -> int:  # noqa: N802
        ctypes.memmove(to, self.block(source.value, size.value), size.value)
        return 0

    def block(self, address: int, size: int) -> int:
        """The address, if so many bytes were allocated there."""
        assert size <= len(self.memory[address])
        return address

    def __getattr__(self, function: str) -> Any:
        if not function.startswith("cu"):
            raise AttributeError(function)
        return lambda *_arguments: 0


class Context:
    """Runs the made-up graph on the driver's memory."""

    def __init__(self, engine: "Engine") -> None:
        self.engine = engine
        self.profile = 0
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.busy = threading.Lock()

    def set_optimization_profile_async(self, index: int, _stream: int) -> bool:
        self.profile = index
        return index < len(self.engine.report.profiles)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        ranges = self.engine.report.profiles[self.profile]
        self.shapes[name] = shape
        return all(
            ranges[size][0] <= found <= ranges[size][2] if isinstance(size, str) else size == found
            for size, found in zip(INPUTS[name], shape, strict=True)
        )

    def infer_shapes(self) -> list[str]:
        batch, classes = self.shapes["image"][0], self.shapes["class_bias"][0]
        self.shapes |= {"embedding": (batch, WIDTH), "logits": (batch, classes)}
        return []

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, _stream: int) -> bool:
        assert self.busy.acquire(blocking=False), "two threads in one context"
        image, matrix, bias = (self.view(name, TYPES[name]) for name in INPUTS)
        table = np.random.default_rng(1).standard_normal((3, WIDTH), np.float32)
        colours = image.mean(axis=(2, 3), dtype=np.float32)
        embedding = np.stack([row @ table for row in colours])
        embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
        self.view("embedding", np.float32)[:] = embedding
        self.view("logits", np.float32)[:] = np.stack([row @ matrix for row in embedding]) + bias
        self.busy.release()
        return True

    def view(self, name: str, dtype: Any) -> np.ndarray[Any, Any]:
        """A tensor where it lies."""
        shape = self.shapes[name]
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        block = (ctypes.c_char * size).from_address(
            self.engine.driver.block(self.addresses[name], size)
        )
        return np.frombuffer(block, dtype).reshape(shape)


class Engine:
    """What a plan becomes."""

    contexts: ClassVar[list[Context]] = []

    def __init__(self, report: BuildReport, driver: FakeDriver) -> None:
        self.report, self.driver = report, driver
        self.num_io_tensors = len(INPUTS) + len(OUTPUTS)

    def get_tensor_name(self, index: int) -> str:
        return [*INPUTS, *OUTPUTS][index]

    def get_tensor_dtype(self, name: str) -> Any:
        return TYPES.get(name, np.float32)

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name in INPUTS else "output"

    def create_execution_context(self, _config: Any = None) -> Context:
        self.contexts.append(Context(self))
        return self.contexts[-1]

    def create_runtime_config(self) -> Any:
        kernels = SimpleNamespace(deserialize=lambda _: True, serialize=lambda: b"kernels")
        return SimpleNamespace(
            create_runtime_cache=lambda: kernels,
            set_runtime_cache=lambda _: True,
            get_runtime_cache=lambda: kernels,
        )


def fake_module(driver: FakeDriver) -> ModuleType:
    """A module in place of `tensorrt_rtx`."""

    class Logger:
        Severity = SimpleNamespace(ERROR=1)

        def __init__(self) -> None: ...

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
            try:
                return Engine(msgspec.json.decode(plan, type=BuildReport), driver)
            except msgspec.DecodeError:
                self.logger.log(Logger.Severity.ERROR, "Serialization assertion failed")
                return None

    module = ModuleType("tensorrt_rtx")
    module.__dict__.update(
        __version__="1.7",
        ILogger=Logger,
        Runtime=Runtime,
        nptype=lambda dtype: dtype,
        TensorIOMode=SimpleNamespace(INPUT="input", OUTPUT="output"),
        ComputeCapability=SimpleNamespace(__members__={"CURRENT": 0, "SM86": 86, "SM89": 89}),
    )
    return module


def fake_build(request: BuildRequest) -> BuildReport:
    """What the child process does, in an instant."""
    profiles = request.profiles or default_profiles({"B", "K"})
    report = BuildReport(
        inputs=INPUTS,
        profiles=profiles,
        layers={"gemm": 1},
        input_types={},
        fused_attention=0,
        network_layers=9,
    )
    with open(request.plan, "wb") as plan:
        plan.write(msgspec.json.encode(report))
    return report
