"""From a graph and images to how large the factors of its large products get.

Legend: T rows of an activation over all images, d its width.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vlp_export.exact import exact_nodes
from vlp_export.graph import to_bytes
from vlp_export.rewriting import constant
from vlp_export.session import Session

Floats = NDArray[np.float32]
RunGraph = Callable[[Mapping[str, NDArray[Any]]], dict[str, Floats]]  # inputs → outputs
MATRIX_RANK = 2


@dataclass(frozen=True, kw_only=True)
class ActivationRange:
    """The least and the largest value of every channel of an activation, and its mean square."""

    low: Floats  # (d,)
    high: Floats  # (d,)
    power: Floats  # (d,)
    rows: int  # that were seen

    @property
    def magnitude(self) -> Floats:
        """(d,), the largest absolute value."""
        return np.maximum(np.abs(self.low), np.abs(self.high))

    def joined(self, other: "ActivationRange") -> "ActivationRange":
        """The range of both."""
        rows = self.rows + other.rows
        return ActivationRange(
            low=np.minimum(self.low, other.low),
            high=np.maximum(self.high, other.high),
            power=np.average([self.power, other.power], axis=0, weights=[self.rows, other.rows]),
            rows=rows,
        )

    def divided(self, divisors: Floats) -> "ActivationRange":
        """The range after every channel was divided by a positive number."""
        return replace(
            self,
            low=self.low / divisors,
            high=self.high / divisors,
            power=self.power / divisors**2,
        )


def large_products(model: ir.Model) -> list[ir.Node]:
    """The products of an activation with a constant matrix that need not be exact."""
    exact = exact_nodes(model)
    return [
        node
        for node in model.graph
        if node.op_type == "MatMul" and node not in exact and _is_matrix(node.inputs[1])
    ]


def activation(product: ir.Node) -> ir.Value:
    """The first factor of a product."""
    value = product.inputs[0]
    assert value is not None
    return value


def matrix(product: ir.Node) -> ir.Value:
    """The second factor of a product."""
    value = product.inputs[1]
    assert value is not None
    return value


def measure_ranges(
    model: ir.Model, drive: Callable[[RunGraph], None]
) -> dict[str, ActivationRange]:
    """Ranges of the first factors of `large_products`, by their names.

    `drive` runs the graph on whatever it likes; all that is seen counts.
    """
    probe = model.clone()
    activations = {str(value.name): value for value in map(activation, large_products(probe))}
    for value in activations.values():
        value.dtype = ir.DataType.FLOAT
        probe.graph.outputs.append(value)
    session = Session(to_bytes(probe))
    found: dict[str, ActivationRange] = {}

    def run(inputs: Mapping[str, NDArray[Any]]) -> dict[str, Floats]:
        outputs = session(inputs)
        for name in activations:
            seen = _range_of(outputs[name])
            found[name] = found[name].joined(seen) if name in found else seen
        return outputs

    drive(run)
    return found


def _range_of(activation: Floats) -> ActivationRange:
    rows = activation.reshape(-1, activation.shape[-1])  # (T, d)
    return ActivationRange(
        low=rows.min(axis=0), high=rows.max(axis=0), power=(rows**2).mean(axis=0), rows=len(rows)
    )


def _is_matrix(value: ir.Value | None) -> bool:
    array = constant(value)
    return array is not None and array.ndim == MATRIX_RANK and array.dtype == np.float32
