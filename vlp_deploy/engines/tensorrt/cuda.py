"""The CUDA driver by its own library: memory, streams, and what the GPU is.

`libcuda.so.1` comes with NVIDIA's driver, so that it is there wherever an engine can run, and no
package is needed. Signatures are those of `cuda.h`; `_v2` are the 64-bit forms.
"""

import ctypes
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint64, c_void_p
from dataclasses import dataclass
from functools import cache
from typing import Any

from numpy.typing import NDArray

from vlp_deploy.errors import EngineError, MissingDeviceError

LIBRARY = "libcuda.so.1"
MAJOR, MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: does not wait for the default stream
NAME_BYTES = 256


@dataclass(frozen=True, kw_only=True)
class Device:
    """What a GPU is."""

    name: str  # NVIDIA GeForce RTX 4090
    compute_capability: str  # 8.9
    driver: str  # the newest CUDA that the driver knows: 13.0


class Cuda:
    """The first GPU, in the context that the CUDA runtime uses as well."""

    def __init__(self, library: Any) -> None:
        """Use `first_gpu`. Raises MissingDeviceError if there is no GPU."""
        self._library = library
        code = library.cuInit(0)
        if code != 0:
            raise MissingDeviceError(f"there is no GPU to run on: {self._reason(code)}. {ADVICE}")
        self._device, self._context = c_int(), c_void_p()
        self._call("cuDeviceGet", byref(self._device), 0)
        self._call("cuDevicePrimaryCtxRetain", byref(self._context), self._device)
        self.device = self._describe()

    def use(self) -> None:
        """Make the context that of the calling thread."""
        self._call("cuCtxSetCurrent", self._context)

    def stream(self) -> int:
        """A new stream; streams end with the process."""
        stream = c_void_p()
        self._call("cuStreamCreate", byref(stream), NON_BLOCKING)
        return int(stream.value or 0)

    def wait(self, stream: int) -> None:
        """Until all that was sent to the stream is done."""
        self._call("cuStreamSynchronize", c_void_p(stream))

    def allocate(self, size: int) -> int:
        """Address of `size` new bytes on the GPU."""
        address = c_uint64()
        self._call("cuMemAlloc_v2", byref(address), c_size_t(size))
        return int(address.value)

    def free(self, address: int) -> None:
        """Give memory back."""
        self._call("cuMemFree_v2", c_uint64(address))

    def upload(self, address: int, array: NDArray[Any], stream: int) -> None:
        """Copy a contiguous array to the GPU."""
        source = c_void_p(array.ctypes.data)
        size = c_size_t(array.nbytes)
        self._call("cuMemcpyHtoDAsync_v2", c_uint64(address), source, size, c_void_p(stream))

    def download(self, array: NDArray[Any], address: int, stream: int) -> None:
        """Copy from the GPU into a contiguous array, which is complete after `wait`."""
        target = c_void_p(array.ctypes.data)
        size = c_size_t(array.nbytes)
        self._call("cuMemcpyDtoHAsync_v2", target, c_uint64(address), size, c_void_p(stream))

    def _describe(self) -> Device:
        name = ctypes.create_string_buffer(NAME_BYTES)
        self._call("cuDeviceGetName", name, NAME_BYTES, self._device)
        version, major, minor = c_int(), c_int(), c_int()
        self._call("cuDriverGetVersion", byref(version))
        self._call("cuDeviceGetAttribute", byref(major), MAJOR, self._device)
        self._call("cuDeviceGetAttribute", byref(minor), MINOR, self._device)
        return Device(
            name=name.value.decode(),
            compute_capability=f"{major.value}.{minor.value}",
            driver=f"{version.value // 1000}.{version.value % 1000 // 10}",
        )

    def _call(self, function: str, *arguments: Any) -> None:
        code = getattr(self._library, function)(*arguments)
        if code != 0:
            raise EngineError(f"the GPU refused {function}: {self._reason(code)}")

    def _reason(self, code: int) -> str:
        text = c_char_p()
        self._library.cuGetErrorString(code, byref(text))
        words = (text.value or b"unknown error").decode()
        return f"{words} (CUDA error {code})"


ADVICE = (
    "Run it on a machine with an NVIDIA GPU and its driver, or choose --engine onnx or openvino. "
    "Engines can be built without a GPU: vlp export BUNDLE --engine tensorrt-rtx "
    "--compute-capability 8.9"
)


@cache
def first_gpu() -> Cuda:
    """The GPU that CUDA_VISIBLE_DEVICES puts first. Raises MissingDeviceError without one."""
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise MissingDeviceError(
            f"there is no NVIDIA driver on this machine: {error}. {ADVICE}"
        ) from None
    return Cuda(library)


class Buffer:
    """Memory on the GPU that grows when more is asked for."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._size = 0
        self._address: int | None = None

    def holding(self, size: int) -> int:
        """Its address, with room for `size` bytes; the content is lost if it has to grow."""
        size = max(size, 1)  # an input may be empty, but needs an address
        if self._address is None or size > self._size:
            self.release()
            self._address, self._size = self._cuda.allocate(size), size
        return self._address

    def release(self) -> None:
        """Give the memory back."""
        if self._address is not None:
            self._cuda.free(self._address)
            self._address = None
