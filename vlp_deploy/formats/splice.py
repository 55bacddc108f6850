"""An ONNX graph without its weights, and the weights: put together again, byte for byte.

The embedded bundle keeps its weights once, as float16 tensors that the trainer reads too. Its
graphs are stored without them, and `splice` appends them: protobuf merges a repeated sub-message,
so the full model is the stripped model followed by one more `graph` field that holds only
initialisers. Two wire-format primitives are all of protobuf that this needs
(https://protobuf.dev/programming-guides/encoding).
"""

from collections.abc import Iterable, Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vlp_deploy.formats.architecture import Record

Floats = NDArray[np.float32]

# field numbers of onnx.proto
_MODEL_GRAPH, _GRAPH_INITIALIZER = 7, 5
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME, _TENSOR_RAW_DATA = 1, 2, 8, 9
_FLOAT32 = 1


class Graft(Record, frozen=True, kw_only=True):
    """One initialiser: which tensor of the weights it is, and what was done to it.

    `transposed` is the tensor as a right-hand factor; `packed_query_scaled` is an attention's
    packed input projection, transposed, with the query's part divided by the square root of the
    head width.
    """

    initializer: str
    tensor: str
    form: Literal["as_stored", "transposed", "packed_query_scaled"]
    head_width: int = 0

    def apply(self, weights: Mapping[str, Floats]) -> Floats:
        """The initialiser's value."""
        tensor = weights[self.tensor].astype(np.float32)
        if self.form == "as_stored":
            return tensor
        if self.form == "packed_query_scaled":
            width = len(tensor) // 3
            tensor[:width] *= np.float32(self.head_width**-0.5)
        return np.ascontiguousarray(tensor.T)


def splice(stripped: bytes, grafts: Iterable[Graft], weights: Mapping[str, Floats]) -> bytes:
    """The complete ONNX model: `stripped` with one initialiser for every graft."""
    initializers = (_tensor(graft.initializer, graft.apply(weights)) for graft in grafts)
    graph = b"".join(_field(_GRAPH_INITIALIZER, tensor) for tensor in initializers)
    return stripped + _field(_MODEL_GRAPH, graph)


def _tensor(name: str, value: Floats) -> bytes:
    dims = b"".join(_varint(_TENSOR_DIMS << 3) + _varint(size) for size in value.shape)
    kind = _varint(_TENSOR_TYPE << 3) + _varint(_FLOAT32)
    data = value.astype("<f4").tobytes()
    return dims + kind + _field(_TENSOR_NAME, name.encode()) + _field(_TENSOR_RAW_DATA, data)


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited field: bytes, text or a sub-message."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    """Base-128, least significant group first, the high bit set on all groups but the last."""
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])
