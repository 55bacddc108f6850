"""Running a TensorRT engine: an execution context with its own stream and memory on the GPU."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlp_deploy.engines.base import Arrays
from vlp_deploy.engines.tensorrt.cuda import Buffer, Cuda
from vlp_deploy.errors import EngineError


class Worker:
    """What one thread at a time runs with; a context is not safe to share."""

    def __init__(
        self, cuda: Cuda, context: Any, outputs: Mapping[str, type[np.generic]], logger: Any
    ) -> None:
        """`outputs` are the graph's, with their types; `logger` knows why something failed."""
        self._cuda = cuda
        self._context = context
        self._outputs = outputs
        self._logger = logger
        self._stream = cuda.stream()
        self._buffers: dict[str, Buffer] = {}
        self._profile: int | None = None

    def run(self, inputs: Arrays, profile: int) -> dict[str, NDArray[Any]]:
        """Outputs for contiguous inputs whose sizes are within the profile. Raises EngineError."""
        self._cuda.use()
        self._switch(profile)
        for name, array in inputs.items():
            self._check(self._context.set_input_shape(name, array.shape), f"the shape of {name}")
            address = self._place(name, array.nbytes)
            self._cuda.upload(address, array, self._stream)
        if unknown := self._context.infer_shapes():
            raise EngineError(f"the sizes of {', '.join(unknown)} are not known before it runs")
        outputs: dict[str, NDArray[Any]] = {}
        for name, dtype in self._outputs.items():
            outputs[name] = np.empty(tuple(self._context.get_tensor_shape(name)), dtype)
            self._place(name, outputs[name].nbytes)
        self._check(self._context.execute_async_v3(self._stream), "to run")
        for name, array in outputs.items():
            self._cuda.download(array, self._place(name, array.nbytes), self._stream)
        self._cuda.wait(self._stream)
        return outputs

    def release(self) -> None:
        """Give the GPU's memory back."""
        self._cuda.use()
        for buffer in self._buffers.values():
            buffer.release()
        self._context = None

    def _switch(self, profile: int) -> None:
        if profile != self._profile:
            switched = self._context.set_optimization_profile_async(profile, self._stream)
            self._check(switched, f"profile {profile}")
            self._cuda.wait(self._stream)
            self._profile = profile

    def _place(self, name: str, size: int) -> int:
        """Where a tensor lies, told to the context."""
        buffer = self._buffers.setdefault(name, Buffer(self._cuda))
        address = buffer.holding(size)
        self._check(self._context.set_tensor_address(name, address), f"the memory of {name}")
        return address

    def _check(self, accepted: bool, what: str) -> None:
        if not accepted:
            reason = self._logger.complaints() or "it gave no reason"
            raise EngineError(f"TensorRT refused {what}: {reason}")
