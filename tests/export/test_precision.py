"""Graphs in other precisions: what changes in them, and how near they stay to float32.

Every structure's graphs go through every rewrite; answers come from onnxruntime, those of bfloat16
from an emulation that is held against ONNX's reference implementation.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from tests.export.test_class_aware_graph import class_inputs as class_aware_inputs
from tests.export.test_class_aware_graph import random_tensors
from tests.export.test_conditioned_graph import CONFIG as CONDITIONED
from tests.export.test_conditioned_graph import META_NET, PREPROCESSING
from tests.export.test_conditioned_graph import PROMPTS as CONDITIONED_PROMPTS
from tests.export.test_conditioned_graph import class_inputs as conditioned_inputs
from tests.export.test_contexts import WEIGHTS as COUPLED_WEIGHTS
from tests.export.test_contexts import dcp
from tests.export.tiny_clip import (
    CLASSES,
    make_checkpoint,
    make_config,
    make_pixels,
    make_prompts,
    make_weights,
)
from vlp_deploy.formats.architecture import VisualLayout
from vlp_deploy.formats.checkpoint import PromptCheckpoint
from vlp_deploy.formats.structures import Decoupled
from vlp_deploy.tolerance import LEAST_BATCH_COSINES, LEAST_COSINES, logit_tolerance
from vlp_export.class_aware_graph import write_class_aware_graph
from vlp_export.conditioned_graph import write_conditioned_graph
from vlp_export.coupled_graph import write_coupled_graph
from vlp_export.decoupled_graph import write_decoupled_graph
from vlp_export.dialects import FUSED, PORTABLE, Dialect
from vlp_export.exact import exact_nodes
from vlp_export.flops import count_flops
from vlp_export.graph import to_bytes
from vlp_export.image_graph import write_image_graph
from vlp_export.quantised import FP8, MOST_NOISE, SIGNED, UNSIGNED, noise, quantised
from vlp_export.ranges import ActivationRange, RunGraph, activation, large_products, measure_ranges
from vlp_export.session import Session
from vlp_export.smoothing import smoothed
from vlp_export.text_graph import write_text_graph
from vlp_export.typed import emulated, typed

Floats = NDArray[np.float32]
PIXELS = make_pixels(count=16)
CALIBRATION = make_pixels(count=32, seed=9)
CONFIG = make_config()
WEIGHTS = make_weights(CONFIG)
PRECISIONS = ("fp16", "bf16", "int8", "int8-signed", "fp8")
# fp8 rounds by 6 %: sums of 32 terms average less of that than those of a real CLIP
LEAST = {**LEAST_COSINES, "fp8": 0.97}
SCHEMES = {"int8": UNSIGNED, "int8-signed": SIGNED, "fp8": FP8}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A graph and what it is given beside the image."""

    model: ir.Model
    inputs: Mapping[str, NDArray[Any]]

    def answers(self, model: ir.Model, pixels: NDArray[np.uint8]) -> dict[str, Floats]:
        return Session(to_bytes(model))({"image": pixels, **self.inputs})


def head() -> dict[str, Floats]:
    matrix = np.random.default_rng(3).normal(size=(24, 5))
    unit = 100 * matrix / np.linalg.norm(matrix, axis=0)
    return {"class_matrix": unit.astype(np.float32), "class_bias": np.zeros(5, np.float32)}


def plain(dialect: Dialect) -> Case:
    model = write_image_graph(CONFIG, WEIGHTS, preprocessing=PREPROCESSING, dialect=dialect)
    return Case(model=model, inputs=head())


def prompted(dialect: Dialect) -> Case:
    """Constant keys and values in one block, prompts that travel from another on."""
    model = write_image_graph(
        CONFIG,
        WEIGHTS,
        preprocessing=PREPROCESSING,
        prompts=make_prompts(2, 4, 32),
        layout=VisualLayout(tokens=4, survive_last=True),
        dialect=dialect,
    )
    return Case(model=model, inputs=head())


def class_aware(dialect: Dialect, *, selected: int | None = 3) -> Case:
    inputs = class_aware_inputs(CONFIG, 2, 7)
    if selected is None:
        del inputs["selector_matrix"]
    model = write_class_aware_graph(
        CONFIG,
        WEIGHTS,
        preprocessing=PREPROCESSING,
        tensors=random_tensors(CONFIG, 2),
        selected=selected,
        dialect=dialect,
    )
    return Case(model=model, inputs=inputs)


def class_aware_small(dialect: Dialect) -> Case:
    return class_aware(dialect, selected=None)


def conditioned(dialect: Dialect) -> Case:
    model = write_conditioned_graph(
        CONDITIONED,
        make_weights(CONDITIONED),
        preprocessing=PREPROCESSING,
        prompts=CONDITIONED_PROMPTS,
        meta_net=META_NET,
        dialect=dialect,
    )
    return Case(model=model, inputs=conditioned_inputs(CLASSES))


def coupled(dialect: Dialect) -> Case:
    return Case(model=write_coupled_graph(dcp(), COUPLED_WEIGHTS, dialect), inputs=head())


def decoupled(dialect: Dialect) -> Case:
    tensors = {
        "dpl.visual_prompts": make_prompts(2, 4, 32),
        "dpl.visual_gates": np.random.default_rng(4).normal(size=(2, 2)).astype(np.float32),
    }
    weights = make_weights(CONDITIONED)
    plainly = make_checkpoint(CONDITIONED, weights)
    header = msgspec.structs.replace(plainly.header, structure=Decoupled(mode="bias"))
    made = PromptCheckpoint(header=header, tensors={**plainly.tensors, **tensors})
    return Case(model=write_decoupled_graph(made, weights, dialect), inputs=head())


STRUCTURES: dict[str, Callable[[Dialect], Case]] = {
    function.__name__: function
    for function in (
        plain,
        prompted,
        class_aware,
        class_aware_small,
        conditioned,
        coupled,
        decoupled,
    )
}
DIALECTS = {"portable": PORTABLE, "fused": FUSED}


@cache
def case(structure: str, dialect: str = "portable") -> Case:
    return STRUCTURES[structure](DIALECTS[dialect])


@cache
def rewritten(structure: str, precision: str, dialect: str = "portable") -> ir.Model:
    """The graph as it is written."""
    made = case(structure, dialect)
    if precision not in SCHEMES:
        return typed(made.model, precision)

    smooth, ranges = smoothed(made.model, measured(structure, dialect))
    return quantised(smooth, ranges, SCHEMES[precision])


@cache
def measured(structure: str, dialect: str = "portable") -> Mapping[str, ActivationRange]:
    made = case(structure, dialect)

    def drive(run: RunGraph) -> None:
        run({"image": CALIBRATION, **made.inputs})

    return measure_ranges(made.model, drive)


def runnable(model: ir.Model, precision: str) -> ir.Model:
    return emulated(model) if precision == "bf16" else model


def cosines(first: Floats, second: Floats) -> Floats:
    """Of rows, whatever their lengths."""
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    found: Floats = (first * second).sum(axis=1) / lengths
    return found


COMBINATIONS = [
    pytest.param(structure, precision, "portable")
    for structure in STRUCTURES
    for precision in PRECISIONS
]
COMBINATIONS += [pytest.param("prompted", precision, "fused") for precision in PRECISIONS]


@pytest.mark.parametrize(("structure", "precision", "dialect"), COMBINATIONS)
def test_answers_stay_near_float32(structure: str, precision: str, dialect: str) -> None:
    made, model = case(structure, dialect), rewritten(structure, precision, dialect)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)

    expected = made.answers(made.model, PIXELS)
    found = made.answers(runnable(model, precision), PIXELS)

    least = LEAST[precision.split("-")[0]]
    assert cosines(found["embedding"], expected["embedding"]).min() >= least
    off = np.abs(found["logits"] - expected["logits"]).max()
    assert off <= logit_tolerance(100, precision.split("-")[0])
    assert not np.array_equal(found["embedding"], expected["embedding"])


@pytest.mark.parametrize(("structure", "precision", "dialect"), COMBINATIONS)
def test_no_answer_depends_on_its_neighbours(structure: str, precision: str, dialect: str) -> None:
    made, model = case(structure, dialect), rewritten(structure, precision, dialect)
    session = Session(to_bytes(runnable(model, precision)))
    board = np.indices((32, 32)).sum(axis=0) % 2 * 255  # as unlike a picture as can be
    outliers = np.broadcast_to(board, (3, 3, 32, 32)).astype(np.uint8)

    for image in PIXELS[:4]:
        alone = session({"image": image[None], **made.inputs})
        among = session({"image": np.concatenate([outliers, image[None]]), **made.inputs})

        least = LEAST_BATCH_COSINES[precision.split("-")[0]]
        assert cosines(among["embedding"][3:], alone["embedding"])[0] >= least


def test_a_scale_for_the_whole_batch_would_be_noticed() -> None:
    """What quantise_dynamic of onnxruntime does: the same tensor, scaled by what is beside it."""
    made, model = case("plain"), rewritten("plain", "int8").clone()
    scale = next(v for name, v in model.graph.initializers.items() if name.endswith(".scale"))
    image = PIXELS[:1]
    honest = made.answers(model, image)["embedding"]
    assert scale.const_value is not None
    scale.const_value = ir.tensor(4 * scale.const_value.numpy(), name=scale.name)

    dependent = made.answers(model, image)["embedding"]

    assert cosines(dependent, honest)[0] < LEAST_BATCH_COSINES["int8"]


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_arithmetic_is_counted_as_before(structure: str, precision: str) -> None:
    made, model = case(structure), rewritten(structure, precision)
    shapes = {"image": (1, 3, 32, 32), **{name: x.shape for name, x in made.inputs.items()}}

    assert count_flops(model, shapes) == count_flops(made.model, shapes)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_weights_take_half_the_bytes(precision: str) -> None:
    small, large = (
        sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value)
        for model in (rewritten("plain", precision), case("plain").model)
    )

    # the patch embedding and the projection stay
    kept = 4 * (32 * 3 * 64 + 17 * 32 + 32 * 24)
    assert small - kept < 0.55 * (large - kept)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_inputs_and_outputs_keep_their_types(precision: str) -> None:
    before, after = case("plain").model.graph, rewritten("plain", precision).graph

    for first, second in ((before.inputs, after.inputs), (before.outputs, after.outputs)):
        assert [(v.name, v.dtype, v.shape) for v in first] == [
            (v.name, v.dtype, v.shape) for v in second
        ]


def test_what_stays_exact_is_the_patches_the_tail_and_the_softmax() -> None:
    model = case("plain").model

    kinds = [node.op_type for node in exact_nodes(model)]

    tail = ["LayerNormalization", "MatMul", "ReduceL2", "Div", "Gemm"]
    assert sorted(kinds) == sorted(["Cast", "Conv", *["Softmax"] * 3, *tail])


def test_the_tower_that_selects_is_exact() -> None:
    made = case("class_aware")

    expected = made.answers(made.model, PIXELS)["selector_logits"]
    for precision in ("fp16", "int8"):
        found = made.answers(rewritten("class_aware", precision), PIXELS)["selector_logits"]
        # float32 rounding at a logit scale of 100
        np.testing.assert_allclose(found, expected, atol=1e-3)


def test_smoothing_changes_no_answer_but_evens_out_channels() -> None:
    made = case("plain")

    def drive(run: RunGraph) -> None:
        run({"image": CALIBRATION, **made.inputs})

    ranges = measure_ranges(made.model, drive)
    smooth, changed = smoothed(made.model, ranges)

    np.testing.assert_allclose(
        made.answers(smooth, PIXELS)["logits"],
        made.answers(made.model, PIXELS)["logits"],
        atol=2e-4,  # float32 rounding at a logit scale of 100
    )
    seen = measure_ranges(smooth, drive)
    for name, range_ in changed.items():
        np.testing.assert_allclose(seen[name].magnitude, range_.magnitude, rtol=1e-4)
    assert {name for name in ranges if not np.array_equal(ranges[name].low, changed[name].low)}


def test_the_emulation_of_bfloat16_is_what_onnx_means() -> None:
    made, model = case("plain"), rewritten("plain", "bf16")

    (expected,) = ReferenceEvaluator(ir.to_proto(model)).run(
        ["embedding"], {"image": PIXELS, **made.inputs}
    )

    found = made.answers(emulated(model), PIXELS)["embedding"]
    # sums in another order may round to the next bfloat16, 2^-8 away, here and there
    assert cosines(found, expected).min() >= 1 - 1e-4


def test_text_graphs_are_rewritten_too() -> None:
    model = write_text_graph(CONFIG, WEIGHTS)
    inputs = {
        "input_ids": np.arange(20, dtype=np.int64)[None] % 60,
        "eot_index": np.array([7]),
        "slots": np.full((1, 20), -1),
        "prompts": np.zeros((1, 0, 16), np.float32),
    }

    expected, found = (
        Session(to_bytes(graph))(inputs)["embedding"] for graph in (model, typed(model, "fp16"))
    )

    assert 0.999 < cosines(found, expected)[0] < 1


def test_every_large_product_is_quantised_and_nothing_else() -> None:
    model = rewritten("plain", "int8")

    dequantised = [node for node in model.graph if node.op_type == "MatMul" and _from_8_bits(node)]
    assert len(dequantised) == len(large_products(case("plain").model)) == 3 * 4 + 1
    assert sum(node.op_type == "QuantizeLinear" for node in model.graph) == len(
        {activation(node).name for node in large_products(case("plain").model)}
    )


def test_a_product_of_a_drowned_activation_stays_in_float32() -> None:
    made, ranges = case("plain"), dict(measured("plain"))
    name = str(activation(large_products(made.model)[3]).name)
    peak = replace(ranges[name], high=30 * ranges[name].high)  # one value far above all others
    assert noise(ranges[name], UNSIGNED) < MOST_NOISE < noise(peak, UNSIGNED)

    model = quantised(made.model, ranges | {name: peak}, UNSIGNED)

    kept = [str(activation(node).name) for node in large_products(model)]
    assert kept == [name]


def _from_8_bits(node: ir.Node) -> bool:
    producers = [value.producer() for value in node.inputs if value is not None]
    return all(p is not None and p.op_type == "DequantizeLinear" for p in producers)
