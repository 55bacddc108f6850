"""From an ONNX file to a TensorRT plan, in a process of its own.

Building leaks memory and may crash; the process that asked for a plan survives both. What is asked
for goes to the child's stdin as JSON, the plan into a file, and what is known of it to stdout.
"""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec

from vlp_deploy.engines.tensorrt.messages import message_logger
from vlp_deploy.engines.tensorrt.profiles import Profile, default_profiles
from vlp_deploy.errors import EngineError
from vlp_deploy.files import write_atomic
from vlp_deploy.formats.architecture import Record

Shape = tuple[int | str, ...]  # sizes that are open by their symbol


class BuildRequest(Record, frozen=True, kw_only=True):
    """What to build."""

    module: str  # tensorrt or tensorrt_rtx
    graph: str  # path of the ONNX file
    plan: str  # where to write
    profiles: tuple[Profile, ...] = ()  # none: the defaults for the graph's symbols
    compute_capability: str | None = None  # "8.9"; None: of the GPU that is there
    timing_cache: str | None = None  # a file to read and to write


class BuildReport(Record, frozen=True, kw_only=True):
    """What was built."""

    inputs: dict[str, Shape]
    profiles: tuple[Profile, ...]
    layers: dict[str, int]  # kind -> how many, of all profiles, as the builder lists them
    input_types: dict[str, int]  # what layers read: Float, Half, Int8, FP8 … -> how many
    fused_attention: int  # layers that are a whole attention
    network_layers: int  # before optimisation


def build_plan(request: BuildRequest) -> BuildReport:
    """Build in a child process. Raises EngineError with the builder's own words."""
    command = [sys.executable, "-c", f"from {__name__} import main; main()"]
    done = subprocess.run(command, input=msgspec.json.encode(request), capture_output=True)
    if done.returncode == 0:
        return msgspec.json.decode(done.stdout, type=BuildReport)
    said = done.stderr.decode(errors="replace").strip().splitlines()
    how = f"died of signal {-done.returncode}" if done.returncode < 0 else "failed"
    raise EngineError(
        f"building a {request.module} engine of {request.graph} {how}: "
        f"{' '.join(said[-3:]) or 'it said nothing'}"
    )


def supported_compute_capabilities(module: str) -> tuple[str, ...]:
    """What engines can be built for without such a GPU; none for TensorRT proper."""
    offered = getattr(import_module(module), "ComputeCapability", None)
    if offered is None:
        return ()
    names = [name[2:] for name in offered.__members__ if name.startswith("SM")]
    return tuple(f"{name[:-1]}.{name[-1]}" for name in names)


def _build(request: BuildRequest) -> BuildReport:
    trt = import_module(request.module)
    logger = message_logger(trt, keep_layers=True)
    builder = trt.Builder(logger)
    # Precision is written in the graph: nothing else may decide it.
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(Path(request.graph).read_bytes()):
        errors = [parser.get_error(index).desc() for index in range(parser.num_errors)]
        raise EngineError(f"cannot be read: {'; '.join(errors)}")
    _allow_decomposition(trt, network)
    inputs = _inputs(network)
    profiles = request.profiles or default_profiles(symbols(inputs))
    config = _config(trt, builder, request)
    for profile in profiles:
        config.add_optimization_profile(_optimisation_profile(builder, inputs, profile))
    cache = _timing_cache(config, request.timing_cache)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(logger.complaints() or "the builder gave no reason")
    Path(request.plan).write_bytes(memoryview(plan))
    if cache is not None and request.timing_cache is not None:
        write_atomic(Path(request.timing_cache), bytes(memoryview(cache.serialize())))
    return BuildReport(
        inputs=inputs,
        profiles=profiles,
        layers=_counted(logger.layers, "LayerType: "),
        input_types=_counted(logger.layers, "Datatype: "),
        fused_attention=sum("mha" in line.partition(",")[0] for line in logger.layers),
        network_layers=network.num_layers,
    )


def _counted(layers: Sequence[str], key: str) -> dict[str, int]:
    """How often which word follows the key for the first time in a layer's line."""
    words = (line.partition(key)[2].partition(",")[0] for line in layers)
    return dict(sorted(Counter(word for word in words if word).items()))


def symbols(inputs: dict[str, Shape]) -> set[str]:
    """All names of open sizes."""
    return {size for shape in inputs.values() for size in shape if isinstance(size, str)}


def _allow_decomposition(trt: Any, network: Any) -> None:
    """Attention without a kernel of its own, in float32 say, becomes products and a softmax."""
    attention = getattr(trt.LayerType, "ATTENTION_INPUT", None)  # older versions have none
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == attention:
            layer.__class__ = trt.IAttentionInputLayer  # the bindings give every layer as ILayer
            layer.attention.decomposable = True


def _inputs(network: Any) -> dict[str, Shape]:
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    return {
        tensor.name: tuple(
            tensor.get_dimension_name(axis) if size < 0 else size
            for axis, size in enumerate(tensor.shape)
        )
        for tensor in tensors
    }


def _config(trt: Any, builder: Any, request: BuildRequest) -> Any:
    config = builder.create_builder_config()
    # By default float32 products would be computed from 10 bits of mantissa.
    config.clear_flag(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # layers keep their names
    if request.compute_capability is not None:
        name = "SM" + request.compute_capability.replace(".", "")
        config.num_compute_capabilities = 1
        if not config.set_compute_capability(trt.ComputeCapability.__members__[name], 0):
            raise EngineError(f"compute capability {request.compute_capability} was refused")
    return config


def _optimisation_profile(builder: Any, inputs: dict[str, Shape], ranges: Profile) -> Any:
    profile = builder.create_optimization_profile()
    for name, shape in inputs.items():
        if any(isinstance(size, str) for size in shape):
            profile.set_shape(name, *(_sized(shape, ranges, bound) for bound in range(3)))
    return profile


def _sized(shape: Shape, ranges: Profile, bound: int) -> tuple[int, ...]:
    return tuple(ranges[size][bound] if isinstance(size, str) else size for size in shape)


def _timing_cache(config: Any, path: str | None) -> Any:
    """Timings of earlier builds on this GPU, where the flavour times anything."""
    if path is None:
        return None
    file = Path(path)
    cache = config.create_timing_cache(file.read_bytes() if file.exists() else b"")
    config.set_timing_cache(cache, ignore_mismatch=True)
    return cache


def main() -> None:
    """The child process. What the libraries print must not get into the report."""
    report_to = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=BuildRequest)
    try:
        report = _build(request)
    except EngineError as error:
        sys.exit(str(error))
    with report_to:
        report_to.write(msgspec.json.encode(report))
