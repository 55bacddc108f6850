"""The CUDA provider's settings and bound runs, with a stand-in for onnxruntime: needs no GPU."""

from types import ModuleType
from typing import Any

import numpy as np
import pytest

from vlp_deploy.engines.base import EngineOptions
from vlp_deploy.engines.onnx_cuda import SHAPES_KEPT, CudaRuns, cuda_providers
from vlp_deploy.errors import MissingExtraError


class Value:
    """An array on the GPU: what is given is copied, and what is read is a copy."""

    def __init__(self, array) -> None:
        self.array = np.array(array)

    @classmethod
    def ortvalue_from_numpy(cls, array, device: str, number: int) -> "Value":
        assert (device, number) == ("cuda", 0)
        return cls(array)

    def update_inplace(self, array) -> None:
        assert array.shape == self.array.shape
        self.array[...] = array

    def numpy(self):
        return self.array.copy()


class RunOptions:
    graph = "unset"

    def add_run_config_entry(self, key: str, value: str) -> None:
        assert key == "gpu_graph_id"
        self.graph = value


class Binding:
    def __init__(self) -> None:
        self.inputs: dict[str, Value] = {}
        self.outputs: dict[str, Value] = {}

    def bind_ortvalue_input(self, name: str, value: Value) -> None:
        self.inputs[name] = value

    def bind_ortvalue_output(self, name: str, value: Value) -> None:
        self.outputs[name] = value


class Output:
    name = "doubled"


class Session:
    """Doubles its input. `graphs` are the CUDA graphs that runs asked for."""

    def __init__(self) -> None:
        self.graphs: list[str] = []

    def get_outputs(self) -> list[Output]:
        return [Output()]

    def io_binding(self) -> Binding:
        return Binding()

    def run(self, names: list[str], inputs: dict[str, Any], options: RunOptions) -> list[Any]:
        assert names == ["doubled"]
        self.graphs.append(options.graph)
        return [2 * inputs["image"]]

    def run_with_iobinding(self, binding: Binding, options: RunOptions) -> None:
        self.graphs.append(options.graph)
        binding.outputs["doubled"].array[...] = 2 * binding.inputs["image"].array


@pytest.fixture
def runtime() -> ModuleType:
    module: Any = ModuleType("onnxruntime")
    module.OrtValue, module.RunOptions = Value, RunOptions
    module.get_available_providers = lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    return module


def image(batch: int, value: float = 1):
    return np.full((batch, 2), value, np.float32)


def test_answers_are_those_of_the_session_and_belong_to_the_caller(runtime) -> None:
    run = CudaRuns(runtime, Session())

    first = run({"image": image(2)})["doubled"]
    second = run({"image": image(2, 5)})["doubled"]

    np.testing.assert_array_equal(first, image(2, 2))  # also after the second run
    np.testing.assert_array_equal(second, image(2, 10))


def test_every_shape_has_a_graph_of_its_own_and_first_runs_capture_none(runtime) -> None:
    session = Session()
    run = CudaRuns(runtime, session)

    for batch in (1, 8, 1, 8):
        run({"image": image(batch)})

    assert session.graphs == ["-1", "0", "-1", "1", "0", "1"]


def test_more_shapes_than_are_kept_run_unbound(runtime) -> None:
    session = Session()
    run = CudaRuns(runtime, session)
    for batch in range(1, SHAPES_KEPT + 1):
        run({"image": image(batch)})
    session.graphs.clear()

    found = run({"image": image(SHAPES_KEPT + 1)})["doubled"]

    assert (len(found), session.graphs) == (SHAPES_KEPT + 1, ["-1"])


@pytest.mark.parametrize(("precision", "tf32"), [("fp32", "0"), ("fp16", "1")])
def test_float32_is_not_computed_in_tf32(runtime, precision: str, tf32: str) -> None:
    (name, settings), fallback = cuda_providers(runtime, EngineOptions(precision=precision))

    assert (name, fallback) == ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert settings["use_tf32"] == tf32


@pytest.mark.parametrize("wanted", [True, False])
def test_cuda_graphs_are_an_option(runtime, wanted: bool) -> None:
    (_, settings), _ = cuda_providers(runtime, EngineOptions(cuda_graphs=wanted))

    assert settings["enable_cuda_graph"] == str(int(wanted))


def test_missing_provider_says_what_to_install(runtime) -> None:
    runtime.get_available_providers = lambda: ["CPUExecutionProvider"]

    with pytest.raises(MissingExtraError, match=r"uninstall onnxruntime.*vlp-deploy\[gpu\]"):
        cuda_providers(runtime, EngineOptions(device="cuda"))
