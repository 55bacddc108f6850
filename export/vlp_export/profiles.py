"""From the graphs of a bundle to the sizes that TensorRT builds its engines for."""

from collections.abc import Mapping

import onnx_ir as ir

from vlp_deploy.engines.tensorrt import TENSORRT
from vlp_deploy.engines.tensorrt.profiles import Profile, default_profiles


def profiles_for(
    engine: str, models: Mapping[str, ir.Model], *, classes: int, context_length: int
) -> dict[str, tuple[Profile, ...]]:
    """Profiles by role; engines that take any size have none. `classes` is the number tuned for."""
    if engine not in TENSORRT:
        return {}
    return {
        role: default_profiles(open_sizes(model), classes=classes, context_length=context_length)
        for role, model in models.items()
    }


def open_sizes(model: ir.Model) -> set[str]:
    """Names of the sizes that a graph's inputs leave open."""
    return {
        str(size.value)
        for tensor in model.graph.inputs
        for size in tensor.shape or ()
        if isinstance(size, ir.SymbolicDim)
    }
