"""Engines `tensorrt` and `tensorrt-rtx`: ONNX files built into plans for an NVIDIA GPU, and run.

Both flavours have one Python interface. TensorRT measures kernels on the GPU that is there;
TensorRT for RTX compiles for a compute capability, on any machine, and finishes on the GPU.
`profiles` says for which sizes, `builder` turns ONNX into a plan in a child process, `plans` keeps
it, `cuda` is the driver and `workers` run.
"""

import threading
import warnings
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from vlp_deploy.engines.base import Arrays, Engine, EngineOptions
from vlp_deploy.engines.onnx import refuse_external_data
from vlp_deploy.engines.tensorrt.builder import (
    BuildReport,
    BuildRequest,
    build_plan,
    supported_compute_capabilities,
)
from vlp_deploy.engines.tensorrt.cuda import Device, first_gpu
from vlp_deploy.engines.tensorrt.messages import message_logger
from vlp_deploy.engines.tensorrt.plans import Plan, PlanTarget, forget, plan_for, plans_folder
from vlp_deploy.engines.tensorrt.profiles import Profile, fitting, item_symbol, most_items
from vlp_deploy.engines.tensorrt.workers import Worker
from vlp_deploy.errors import EngineError, MissingDeviceError, MissingExtraError
from vlp_deploy.files import sha256_of, write_atomic

Sizes = dict[str, int]  # by symbol


class TensorRtEngine(Engine):
    """TensorRT on the first GPU; plans are built on first use and kept."""

    name = "tensorrt"
    reads = ".onnx"
    devices = ("cuda",)
    builds = True
    distributions: ClassVar[tuple[str, ...]] = ("tensorrt-cu13", "tensorrt-cu12", "tensorrt")
    module: ClassVar[str] = "tensorrt"

    @classmethod
    def is_installed(cls) -> bool:
        return find_spec(cls.module) is not None

    def __init__(self, graph: Path, options: EngineOptions) -> None:
        super().__init__(graph, options)
        trt = self.package()
        refuse_external_data(graph)
        self._cuda = first_gpu()
        self.check_device(self._cuda.device)
        target = self.target(graph, options.profiles, self._cuda.device)
        self._logger = message_logger(trt)
        self._runtime = trt.Runtime(self._logger)
        plan, self._engine = self._load(graph, target)
        self._report, self._folder = plan.report, plan.folder
        self._input_types = _types(trt, self._engine, trt.TensorIOMode.INPUT)
        self._output_types = _types(trt, self._engine, trt.TensorIOMode.OUTPUT)
        self._idle: deque[Worker] = deque()
        self._starting = threading.Lock()
        self._version = f"{self.name} {trt.__version__} {_described(self._cuda.device)}"

    def _load(self, graph: Path, target: PlanTarget) -> tuple[Plan, Any]:
        """The plan and what it becomes. One from the cache that is refused is built again."""
        plan = self.plan(graph, target)
        try:
            return plan, deserialised(self._runtime, plan.content, self._logger)
        except EngineError as error:
            if plan.fresh:
                raise
            warnings.warn(f"{plan.folder} is built again: {error}", stacklevel=2)
        forget(target)
        plan = self.plan(graph, target)
        return plan, deserialised(self._runtime, plan.content, self._logger)

    @classmethod
    def package(cls) -> Any:
        """TensorRT's own module. Raises MissingExtraError without it."""
        try:
            return import_module(cls.module)
        except ModuleNotFoundError as missing:
            if missing.name != cls.module:
                raise
            raise MissingExtraError(
                f"the {cls.name} engine", needs=cls.distributions[0], extra=cls.name
            ) from None

    @classmethod
    def check_device(cls, device: Device) -> None:
        """Raise MissingDeviceError for a GPU that the flavour knows not to serve."""

    @classmethod
    def target(cls, graph: Path, profiles: tuple[Profile, ...], device: Device) -> PlanTarget:
        """What a plan of this graph for this GPU depends on."""
        return PlanTarget(
            engine=cls.name,
            version=cls.package().__version__,
            graph=sha256_of(graph),
            compute_capability=device.compute_capability,
            device=device.name,
            driver=device.driver,
            profiles=profiles,
        )

    @classmethod
    def plan(cls, graph: Path, target: PlanTarget) -> Plan:
        """The plan out of the cache, or built. Raises EngineError."""
        return plan_for(target, lambda path: cls._build(graph, target, path))

    @classmethod
    def _build(cls, graph: Path, target: PlanTarget, path: Path) -> BuildReport:
        return build_plan(
            BuildRequest(
                module=cls.module,
                graph=str(graph),
                plan=str(path),
                profiles=target.profiles,
                timing_cache=str(plans_folder() / f"{target.timing_key}.timings"),
            )
        )

    @property
    def version(self) -> str:
        return self._version

    @property
    def inputs(self) -> frozenset[str]:
        return frozenset(self._report.inputs)

    def _run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        arrays = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        for name, array in arrays.items():
            if array.dtype != self._input_types[name]:
                expected = np.dtype(self._input_types[name])
                raise EngineError(f"{name} is {array.dtype}; the graph takes {expected}")
        sizes = bound_sizes(self._report, arrays)
        item = item_symbol(sizes)
        if item is None:
            return self._run_part(arrays, sizes)
        most = most_items(self._report.profiles, sizes, item)
        parts = [
            self._run_part(part, {**sizes, item: count})
            for part, count in split_items(self._report, arrays, item, most)
        ]
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _run_part(self, inputs: Arrays, sizes: Sizes) -> dict[str, NDArray[Any]]:
        profile = fitting(self._report.profiles, sizes)
        if profile is None:
            raise EngineError(f"the engine was not built for {sizes}")
        try:
            worker = self._idle.pop()
        except IndexError:  # all are busy
            worker = self._new_worker()
        try:
            outputs = worker.run(inputs, profile)
        except EngineError:
            with suppress(EngineError):  # what went wrong first is what matters
                worker.release()
            raise
        self._idle.append(worker)
        return outputs

    def _new_worker(self) -> Worker:
        with self._starting:
            self._cuda.use()
            context = self._new_context()
        if context is None:
            raise EngineError(f"{self.name} cannot start: {self._logger.complaints()}")
        return Worker(self._cuda, context, self._output_types, self._logger)

    def _new_context(self) -> Any:
        return self._engine.create_execution_context()

    def close(self) -> None:
        super().close()
        while self._idle:
            self._idle.pop().release()
        self._engine = self._runtime = None


class TensorRtRtxEngine(TensorRtEngine):
    """TensorRT for RTX: plans are for a compute capability, kernels are finished on the GPU."""

    name = "tensorrt-rtx"
    distributions = ("tensorrt-rtx-cu13", "tensorrt-rtx")
    module = "tensorrt_rtx"
    _config: Any = None  # of all contexts, once there is one

    @classmethod
    def check_device(cls, device: Device) -> None:
        known = supported_compute_capabilities(cls.module)
        if device.compute_capability not in known:
            raise MissingDeviceError(
                f"TensorRT for RTX does not know {_described(device)}; it knows "
                f"{', '.join(known)}. Choose --engine tensorrt, or onnx with --device cuda"
            )

    @classmethod
    def target(cls, graph: Path, profiles: tuple[Profile, ...], device: Device) -> PlanTarget:
        # Neither the GPU's name nor its driver matters: such a plan may be built elsewhere.
        whole = super().target(graph, profiles, device)
        return PlanTarget(
            engine=whole.engine,
            version=whole.version,
            graph=whole.graph,
            compute_capability=whole.compute_capability,
            profiles=whole.profiles,
        )

    @classmethod
    def build_ahead(
        cls, graph: Path, profiles: tuple[Profile, ...], compute_capability: str
    ) -> Plan:
        """A plan in the cache for a GPU that need not be here. Raises EngineError."""
        known = supported_compute_capabilities(cls.module)
        if compute_capability not in known:
            raise EngineError(
                f"compute capability {compute_capability!r} cannot be built for; expected one of "
                f"{', '.join(known)}"
            )
        device = Device(name="", compute_capability=compute_capability, driver="")
        return cls.plan(graph, cls.target(graph, profiles, device))

    @classmethod
    def _build(cls, graph: Path, target: PlanTarget, path: Path) -> BuildReport:
        return build_plan(
            BuildRequest(
                module=cls.module,
                graph=str(graph),
                plan=str(path),
                profiles=target.profiles,
                compute_capability=target.compute_capability,
            )
        )

    def _new_context(self) -> Any:
        """All contexts share the kernels, with those finished before on this GPU and driver."""
        if self._config is None:
            self._config = self._engine.create_runtime_config()
            kernels = self._config.create_runtime_cache()
            if self._kernels_file.exists():
                kernels.deserialize(self._kernels_file.read_bytes())  # refuses what does not fit
            self._config.set_runtime_cache(kernels)
        return self._engine.create_execution_context(self._config)

    @property
    def _kernels_file(self) -> Path:
        device = self._cuda.device
        return self._folder / f"{device.name.replace(' ', '-')}-{device.driver}.kernels"

    def close(self) -> None:
        if self._config is not None:
            kernels = self._config.get_runtime_cache().serialize()
            with suppress(OSError):  # a cache that cannot be written to costs time, not answers
                write_atomic(self._kernels_file, bytes(memoryview(kernels)))
            self._config = None
        super().close()


TENSORRT = (TensorRtEngine.name, TensorRtRtxEngine.name)


def deserialised(runtime: Any, plan: bytes, logger: Any) -> Any:
    """The engine in a plan. Raises EngineError with TensorRT's own words."""
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise EngineError(f"TensorRT cannot load the plan: {logger.complaints()}")
    return engine


def bound_sizes(report: BuildReport, arrays: Arrays) -> Sizes:
    """What the open sizes are in these arrays. Raises EngineError if they do not fit the graph."""
    sizes: Sizes = {}
    for name, shape in report.inputs.items():
        found = arrays[name].shape
        expected = tuple(sizes.get(size, -1) if isinstance(size, str) else size for size in shape)
        fits = len(found) == len(shape) and all(
            size in (-1, actual) for size, actual in zip(expected, found, strict=True)
        )
        if not fits:
            raise EngineError(
                f"{name} has shape {found}; the graph takes ({', '.join(map(str, shape))})"
            )
        sizes |= {
            symbol: actual
            for symbol, actual in zip(shape, found, strict=True)
            if isinstance(symbol, str)
        }
    return sizes


def split_items(
    report: BuildReport, arrays: Arrays, item: str, most: int
) -> list[tuple[Mapping[str, NDArray[Any]], int]]:
    """Parts of at most `most` items, and how many each has. Items are on the first axis."""
    of_items = [name for name, shape in report.inputs.items() if shape and shape[0] == item]
    count = len(arrays[of_items[0]])
    return [
        (
            {
                name: array[start : start + most] if name in of_items else array
                for name, array in arrays.items()
            },
            min(most, count - start),
        )
        for start in range(0, max(count, 1), most)
    ]


def _types(trt: Any, engine: Any, mode: Any) -> dict[str, type[np.generic]]:
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    return {
        name: trt.nptype(engine.get_tensor_dtype(name))
        for name in names
        if engine.get_tensor_mode(name) == mode
    }


def _described(device: Device) -> str:
    return f"{device.name} (compute capability {device.compute_capability}, driver {device.driver})"
