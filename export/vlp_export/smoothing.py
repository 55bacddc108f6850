"""From a graph to the same function with activations that are easier to quantise.

One scale has to serve all channels of an activation, so one large channel takes the resolution of
all others. Channels are brought to like ranges by dividing the gain and bias of the LayerNorm that
makes them, and multiplying the rows of the matrices that read them: SmoothQuant (arXiv:2211.10438,
equation 4 with α = 0.5). In float32 no answer changes.

Legend: d width of an activation, its channels.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from vlp_export.exact import exact_nodes
from vlp_export.ranges import ActivationRange, Floats, activation, large_products, matrix
from vlp_export.rewriting import Rewriter, constant

PICKS = ("Gather", "GatherND")  # one token of all: channels stay what they are
LEAST = np.float32(1e-5)  # of a channel that is never used


@dataclass(kw_only=True)
class _Group:
    """All LayerNorms of one gain, and the products that read them."""

    norms: list[ir.Node] = field(default_factory=list)
    products: list[ir.Node] = field(default_factory=list)

    def divisors(self, ranges: Mapping[str, ActivationRange]) -> Floats:
        """(d,), of geometric mean 1: `sqrt(max |activation| / max |row of a matrix|)`."""
        magnitudes = [ranges[str(activation(node).name)].magnitude for node in self.products]
        rows = [np.abs(_array(matrix(node))).max(axis=1) for node in self.products]
        ratio = np.maximum(np.max(magnitudes, axis=0), LEAST) / np.maximum(
            np.max(rows, axis=0), LEAST
        )
        divisors = np.sqrt(ratio)
        return np.asarray(divisors / np.exp(np.log(divisors).mean()), np.float32)


def smoothed(
    model: ir.Model, ranges: Mapping[str, ActivationRange]
) -> tuple[ir.Model, dict[str, ActivationRange]]:
    """A copy of `model` with like channels, and the ranges of its activations."""
    rewriter = Rewriter(model)
    changed = dict(ranges)
    for group in _groups(rewriter.model):
        divisors = group.divisors(ranges)
        for norm in group.norms:
            for index in (1, 2):
                value = norm.inputs[index]
                assert value is not None
                scaled = rewriter.weight(f"{value.name}.smooth", _array(value) / divisors)
                norm.replace_input_with(index, scaled)
        for product in group.products:
            value = matrix(product)
            scaled = rewriter.weight(f"{value.name}.smooth", _array(value) * divisors[:, None])
            product.replace_input_with(1, scaled)
            name = str(activation(product).name)
            changed[name] = ranges[name].divided(divisors)
    return rewriter.finished(), changed


def _groups(model: ir.Model) -> list[_Group]:
    """Groups whose every reader is a large product, directly or through a picked token."""
    exact, large = exact_nodes(model), set(large_products(model))
    groups: dict[str, _Group] = {}
    mixed: set[str] = set()
    for node in model.graph:
        if node.op_type != "LayerNormalization" or node in exact:
            continue
        gain = node.inputs[1]
        name = "" if gain is None else str(gain.name)
        readers = _readers(node.outputs[0])
        parameters = [constant(value) is not None for value in node.inputs[1:]]
        if parameters != [True, True] or not readers or not set(readers) <= large:
            mixed.add(name)
            continue
        group = groups.setdefault(name, _Group())
        group.norms.append(node)
        group.products += readers
    return [group for name, group in groups.items() if name not in mixed]


def _readers(value: ir.Value) -> list[ir.Node]:
    found: list[ir.Node] = []
    for node, index in value.uses():
        if node.op_type in PICKS and index == 0:
            found += _readers(node.outputs[0])
        else:
            found.append(node)
    return found


def _array(value: ir.Value) -> Floats:
    array = constant(value)
    assert array is not None
    return np.asarray(array, np.float32)
