"""From a float32 graph to one whose large products take 8-bit factors, with scales fixed at export.

Quantised are the products of activations with constant matrices, as QuantizeLinear and
DequantizeLinear in front of MatMul, which engines fuse into kernels for int8 or fp8. An activation
has one scale, a matrix one for each column. No scale depends on the images of a batch, so no answer
depends on its neighbours. Attention's own products, of activations with each other, are 4 % of the
arithmetic and stay as they are, and so does what `vlp_export.exact` names.

Legend: d_in, d_out the shape of a matrix.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vlp_export.graph import Value
from vlp_export.ranges import ActivationRange, Floats, activation, large_products, matrix
from vlp_export.rewriting import Rewriter, constant

FP8_OPSET = 19  # the first whose QuantizeLinear knows fp8
MOST_NOISE = 5e-4  # of an activation's energy: 2 % of its length
LEAST_SCALE = 1e-12  # of what is always zero


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """The number formats of products, and how large a number may become in units of its scale."""

    activations: np.dtype[Any]
    weights: np.dtype[Any]
    largest: float

    @property
    def has_zero_point(self) -> bool:
        """Whether an activation's zero may be another number than 0."""
        return self.activations == np.uint8


# Processors multiply unsigned by signed bytes; TensorRT wants zero at 0, hence signed ones.
UNSIGNED = Scheme(activations=np.dtype(np.uint8), weights=np.dtype(np.int8), largest=127)
SIGNED = Scheme(activations=np.dtype(np.int8), weights=np.dtype(np.int8), largest=127)
_FP8 = np.dtype(ml_dtypes.float8_e4m3fn)
FP8 = Scheme(activations=_FP8, weights=_FP8, largest=448)


def quantised(model: ir.Model, ranges: Mapping[str, ActivationRange], scheme: Scheme) -> ir.Model:
    """A copy of `model` with large products in 8 bits; `ranges` by the name of the activation.

    A product stays in float32 if rounding its activation would drown more than `MOST_NOISE` of it.
    """
    rewriter = Rewriter(model)
    if scheme is FP8:
        rewriter.require_opset(FP8_OPSET)
    made: dict[Value, Value] = {}
    for node in large_products(rewriter.model):
        first, second = activation(node), matrix(node)
        found = ranges[str(first.name)]
        if noise(found, scheme) > MOST_NOISE:
            continue
        if first not in made:
            made[first] = _quantised_activation(rewriter, first, found, scheme, node)
        if second not in made:
            made[second] = _quantised_matrix(rewriter, second, scheme, node)
        node.replace_input_with(0, made[first])
        node.replace_input_with(1, made[second])
    return rewriter.finished()


def noise(found: ActivationRange, scheme: Scheme) -> float:
    """What rounding adds to an activation, as a share of its energy.

    Steps of one size Δ add Δ²/12 to every value; fp8 has steps that shrink with the value.
    """
    if not np.issubdtype(scheme.activations, np.integer):
        return 0.0
    scale, _ = _scale(found, scheme)
    return scale**2 / 12 / max(float(found.power.mean()), LEAST_SCALE)


def _scale(found: ActivationRange, scheme: Scheme) -> tuple[float, NDArray[Any]]:
    """The step of an activation, and the number that stands for zero."""
    low, high = min(float(found.low.min()), 0.0), max(float(found.high.max()), 0.0)
    if not scheme.has_zero_point:
        return max(high, -low, LEAST_SCALE) / scheme.largest, np.zeros((), scheme.activations)
    scale = max((high - low) / np.iinfo(np.uint8).max, LEAST_SCALE)
    return scale, np.array(round(-low / scale), scheme.activations)


def _quantised_activation(
    rewriter: Rewriter, value: Value, found: ActivationRange, scheme: Scheme, before: ir.Node
) -> Value:
    """There and back: what is left of an activation, as a node that engines fuse away."""
    (scale, zero), name = _scale(found, scheme), value.name
    parameters = (
        rewriter.weight(f"{name}.scale", np.array(scale, np.float32)),
        rewriter.weight(f"{name}.zero", zero),
    )
    there = rewriter.op("QuantizeLinear", value, *parameters, name=f"{name}.8bit", before=before)
    return rewriter.op(
        "DequantizeLinear", there, *parameters, name=f"{name}.rounded", before=before
    )


def _quantised_matrix(rewriter: Rewriter, matrix: Value, scheme: Scheme, before: ir.Node) -> Value:
    """A matrix (d_in, d_out) in 8 bits with a scale for each column."""
    array = constant(matrix)
    assert array is not None
    content, scales = rounded_matrix(array, scheme)
    name = matrix.name
    return rewriter.op(
        "DequantizeLinear",
        rewriter.weight(f"{name}.8bit", content),
        rewriter.weight(f"{name}.scale", scales),
        rewriter.weight(f"{name}.zero", np.zeros(len(scales), scheme.weights)),
        name=f"{name}.rounded",
        before=before,
        axis=1,
    )


def rounded_matrix(weights: Floats, scheme: Scheme) -> tuple[NDArray[Any], Floats]:
    """(d_in, d_out) in 8 bits, and the scales of the columns (d_out,)."""
    scales = np.maximum(np.abs(weights).max(axis=0) / scheme.largest, LEAST_SCALE)
    units = weights / scales
    if np.issubdtype(scheme.weights, np.integer):
        units = np.rint(units)
    return units.astype(scheme.weights), np.asarray(scales, np.float32)
