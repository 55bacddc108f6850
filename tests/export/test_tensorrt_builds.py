"""TensorRT for RTX really builds the graphs that are written, and keeps what is written in them.

No GPU is needed to build for a compute capability. What the builder made is read from its own list
of layers. Nothing is run here.
"""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tests.export.test_precision import STRUCTURES
from vlp_deploy.engines.tensorrt import TensorRtRtxEngine, deserialised
from vlp_deploy.engines.tensorrt.builder import BuildReport, BuildRequest, build_plan
from vlp_deploy.engines.tensorrt.cuda import first_gpu
from vlp_deploy.engines.tensorrt.messages import message_logger
from vlp_deploy.engines.tensorrt.profiles import Profile, default_profiles
from vlp_deploy.errors import EngineError, MissingDeviceError
from vlp_deploy.formats.architecture import ClipConfig, Preprocessing
from vlp_deploy.formats.weights import Floats, expected_shapes
from vlp_export.dialects import DIALECTS
from vlp_export.graph import to_bytes
from vlp_export.image_graph import write_image_graph
from vlp_export.profiles import open_sizes
from vlp_export.quantised import FP8, SIGNED, quantised
from vlp_export.ranges import ActivationRange, activation, large_products
from vlp_export.text_graph import write_text_graph
from vlp_export.typed import typed

DIALECT = DIALECTS["tensorrt-rtx"]
SINGLE: tuple[Profile, ...] = ({"B": (1, 1, 1), "K": (1, 10, 1000)},)


def config(*, size: int, patch: int, width: int, layers: int) -> ClipConfig:
    return ClipConfig.from_open_clip(
        {
            "embed_dim": 64,
            "quick_gelu": True,
            "vision_cfg": {
                "image_size": size,
                "patch_size": patch,
                "width": width,
                "layers": layers,
            },
            "text_cfg": {
                "context_length": 20,
                "vocab_size": 60,
                "width": 128,
                "heads": 2,
                "layers": 2,
            },
        }
    )


TINY = config(size=64, patch=8, width=256, layers=2)
VIT_B_16 = config(size=224, patch=16, width=768, layers=12)


def weights(config: ClipConfig) -> dict[str, Floats]:
    generator = np.random.default_rng(0)
    return {
        name: generator.normal(0, 0.05, shape).astype(np.float32)
        for name, shape in expected_shapes(config).items()
    }


def image_graph(config: ClipConfig, precision: str) -> ir.Model:
    model = write_image_graph(
        config,
        weights(config),
        preprocessing=Preprocessing(image_size=config.image_size),
        dialect=DIALECT,
    )
    if precision in ("fp16", "bf16"):
        return typed(model, precision)
    if precision in ("int8", "fp8"):
        three, one = np.full(8, 3, np.float32), np.ones(8, np.float32)
        seen = ActivationRange(low=-three, high=three, power=one, rows=1)
        ranges = {str(activation(node).name): seen for node in large_products(model)}
        return quantised(model, ranges, {"int8": SIGNED, "fp8": FP8}[precision])
    return model


def build(
    model: ir.Model,
    folder: Path,
    profiles: tuple[Profile, ...] = SINGLE,
    *,
    timing_cache: Path | None = None,
) -> BuildReport:
    pytest.importorskip("tensorrt_rtx", reason="the builder under test")
    (folder / "graph.onnx").write_bytes(to_bytes(model))
    report = build_plan(
        BuildRequest(
            module="tensorrt_rtx",
            graph=str(folder / "graph.onnx"),
            plan=str(folder / "model.plan"),
            profiles=profiles,
            compute_capability="8.9",
            timing_cache=None if timing_cache is None else str(timing_cache),
        )
    )
    assert (folder / "model.plan").stat().st_size > 100_000
    return report


@pytest.mark.parametrize(
    ("precision", "kind"),
    [("fp32", "Float"), ("fp16", "Half"), ("bf16", "BFloat16"), ("int8", "Int8"), ("fp8", "FP8")],
)
def test_an_engine_computes_in_the_precision_of_its_graph(
    precision: str, kind: str, tmp_path: Path
) -> None:
    report = build(image_graph(TINY, precision), tmp_path)

    assert report.inputs["image"] == ("B", 3, 64, 64)
    assert report.input_types[kind] >= 8  # four products a block, two blocks
    narrow = {"Half", "BFloat16", "Int8", "FP8"} & report.input_types.keys()
    assert narrow == ({kind} - {"Float"})
    assert report.layers["gemm"] + report.layers.get("runtime_fusion", 0) >= 8


def test_a_text_graph_with_four_open_sizes_is_built(tmp_path: Path) -> None:
    model = write_text_graph(TINY, weights(TINY), dialect=DIALECT)

    timings = tmp_path / "kernels.timings"
    report = build(model, tmp_path, (), timing_cache=timings)

    assert report.inputs["prompts"] == (1, "m", 128)
    assert [set(profile) for profile in report.profiles] == [{"N", "L", "m"}]
    assert timings.stat().st_size > 0  # as TensorRT proper would keep them


@pytest.mark.parametrize("structure", sorted(STRUCTURES))
def test_the_image_graph_of_every_structure_is_built(structure: str, tmp_path: Path) -> None:
    model = STRUCTURES[structure](DIALECT).model
    (single, *_) = default_profiles(open_sizes(model))

    report = build(model, tmp_path, (single,))

    assert report.inputs["image"] == ("B", 3, 32, 32)
    assert sum(report.layers.values()) < report.network_layers / 2


def test_vit_b_16_in_float16_has_all_its_attention_fused(tmp_path: Path) -> None:
    report = build(image_graph(VIT_B_16, "fp16"), tmp_path)

    assert report.fused_attention == 12
    assert sum(report.layers.values()) < 250  # 338 operators in the graph
    assert (tmp_path / "model.plan").stat().st_size < 200e6  # 86 million weights of two bytes


def test_a_plan_is_loaded_only_where_there_is_a_gpu(tmp_path: Path) -> None:
    build(image_graph(TINY, "fp32"), tmp_path)
    trt = TensorRtRtxEngine.package()
    logger = message_logger(trt)
    runtime, plan = trt.Runtime(logger), (tmp_path / "model.plan").read_bytes()

    try:
        first_gpu()
    except MissingDeviceError:
        with pytest.raises(EngineError, match=r"TensorRT cannot load the plan: .*Cuda Runtime"):
            deserialised(runtime, plan, logger)
    else:
        assert deserialised(runtime, plan, logger).num_optimization_profiles == 1
