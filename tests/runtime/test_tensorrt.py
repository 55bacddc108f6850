"""TensorRT without a GPU: plans are kept and checked, and a GPU of NumPy runs them."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.runtime.fake_tensorrt import (
    SIZE,
    WIDTH,
    Context,
    Engine,
    FakeDriver,
    fake_build,
    fake_module,
)
from vlp_deploy.engines import tensorrt
from vlp_deploy.engines.base import EngineOptions
from vlp_deploy.engines.check import check_engine
from vlp_deploy.engines.tensorrt import TensorRtEngine, TensorRtRtxEngine, builder
from vlp_deploy.engines.tensorrt.builder import BuildReport, BuildRequest, build_plan
from vlp_deploy.engines.tensorrt.cuda import Cuda, first_gpu
from vlp_deploy.engines.tensorrt.plans import PLAN, SIDECAR, PlanTarget, plan_for, plans_folder
from vlp_deploy.engines.tensorrt.profiles import (
    default_profiles,
    fitting,
    item_symbol,
    most_items,
)
from vlp_deploy.errors import EngineError, MissingDeviceError, MissingExtraError

TARGET = PlanTarget(engine="tensorrt-rtx", version="1", graph="abc", compute_capability="8.9")
REPORT = BuildReport(
    inputs={}, profiles=(), layers={}, input_types={}, fused_attention=0, network_layers=0
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLP_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    path = tmp_path / "image.onnx"
    path.write_bytes(b"a graph")
    return path


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    """A GPU and a TensorRT for RTX, both fake."""
    driver = FakeDriver()
    monkeypatch.setattr(tensorrt, "first_gpu", lambda: Cuda(driver))
    monkeypatch.setattr(tensorrt, "build_plan", fake_build)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", fake_module(driver))
    monkeypatch.setattr(Engine, "contexts", [])
    return driver


def inputs(batch: int, classes: int = 4) -> dict[str, NDArray[Any]]:
    generator = np.random.default_rng(0)
    return {
        "image": generator.integers(0, 256, (batch, 3, SIZE, SIZE), np.uint8),
        "class_matrix": generator.standard_normal((WIDTH, classes), np.float32),
        "class_bias": generator.standard_normal(classes, np.float32),
    }


# profiles


@pytest.mark.parametrize(("batch", "profile"), [(1, 0), (2, 1), (8, 1), (9, 2), (33, 3), (128, 3)])
def test_a_batch_takes_the_smallest_profile_that_holds_it(batch: int, profile: int) -> None:
    profiles = default_profiles({"B", "K"})

    assert fitting(profiles, {"B": batch, "K": 1000}) == profile


def test_ranges_are_within_each_other_and_batches_leave_no_gap() -> None:
    for symbols in ({"B", "K"}, {"B", "K", "S"}, {"N", "L", "m"}, {"K", "L"}, {"B"}, set()):
        for profile in default_profiles(symbols, classes=3, context_length=77):
            assert profile.keys() == symbols
            assert all(low <= best <= high for low, best, high in profile.values())
    batches = [profile["B"] for profile in default_profiles({"B"})]
    assert [low for low, _, _ in batches[1:]] == [high + 1 for _, _, high in batches[:-1]]


def test_graphs_know_what_their_items_are() -> None:
    assert item_symbol({"B", "K"}) == "B"
    assert item_symbol({"N", "L", "m"}) == "N"
    assert item_symbol({"K", "L"}) == "K"
    assert item_symbol(set()) is None


def test_items_of_a_run_depend_on_the_other_sizes() -> None:
    profiles = default_profiles({"B", "K", "S"})

    assert most_items(profiles, {"B": 9, "K": 100, "S": 8}, "B") == 16
    assert most_items(profiles, {"B": 9, "K": 1000, "S": 8}, "B") == 1
    with pytest.raises(EngineError, match=r"not built for K = 9000, S = 8. It takes B 1 to 1, K 1"):
        most_items(profiles, {"B": 9, "K": 9000, "S": 8}, "B")


def test_unknown_symbol_is_explained() -> None:
    with pytest.raises(EngineError, match="leaves the size 'time' open"):
        default_profiles({"B", "time"})


# plans


def build_once(path: Path) -> BuildReport:
    path.write_bytes(b"plan")
    return REPORT


def never(path: Path) -> BuildReport:
    raise AssertionError("built again")


def test_a_plan_is_built_once_and_kept_pure() -> None:
    first = plan_for(TARGET, build_once)
    second = plan_for(TARGET, never)

    assert (first.fresh, second.fresh) == (True, False)
    assert (second.folder / PLAN).read_bytes() == second.content == b"plan"
    assert second.folder == plans_folder() / TARGET.key


@pytest.mark.parametrize(
    "change",
    [
        {"version": "2"},
        {"graph": "abd"},
        {"compute_capability": "8.6"},
        {"device": "NVIDIA L4"},
        {"driver": "13.1"},
        {"profiles": ({"B": (1, 1, 1)},)},
        {"flags": ()},
    ],
)
def test_a_plan_for_anything_else_is_not_found(change: dict[str, Any]) -> None:
    plan_for(TARGET, build_once)
    other = PlanTarget(
        **{field: getattr(TARGET, field) for field in TARGET.__struct_fields__} | change
    )

    assert plan_for(other, build_once).fresh


def flip_a_byte(folder: Path) -> None:
    (folder / PLAN).write_bytes(b"plaN")


def cut_the_sidecar(folder: Path) -> None:
    (folder / SIDECAR).write_bytes((folder / SIDECAR).read_bytes()[:-9])


def exchange_the_sidecar(folder: Path) -> None:
    text = (folder / SIDECAR).read_text()
    (folder / SIDECAR).write_text(text.replace('"8.9"', '"8.6"'))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_a_byte, "is built again: its sha256 is .*, expected"),
        (cut_the_sidecar, "is built again: model.json cannot be read"),
        (exchange_the_sidecar, "is built again: it was built for something else"),
    ],
)
def test_a_damaged_plan_is_said_and_built_again(damage: Any, message: str) -> None:
    damage(plan_for(TARGET, build_once).folder)

    with pytest.warns(UserWarning, match=message):
        plan = plan_for(TARGET, build_once)

    assert plan.content == b"plan"
    assert not plan_for(TARGET, never).fresh


def test_a_plan_without_its_sidecar_is_built_again() -> None:
    (plan_for(TARGET, build_once).folder / SIDECAR).unlink()

    with pytest.warns(UserWarning, match="cannot be read"):
        assert plan_for(TARGET, build_once).fresh


def test_a_plan_is_read_where_nothing_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    plan_for(TARGET, build_once)

    def read_only(folder: Path) -> NoReturn:
        raise PermissionError(folder)

    monkeypatch.setattr("vlp_deploy.engines.tensorrt.plans._lock", read_only)
    assert not plan_for(TARGET, never).fresh


def test_a_cache_that_cannot_be_written_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("VLP_CACHE", str(tmp_path / "file"))

    with pytest.raises(EngineError, match=r"plans cannot be kept in .*Name another folder"):
        plan_for(TARGET, build_once)


def test_a_failed_build_leaves_nothing_behind() -> None:
    def fail(path: Path) -> BuildReport:
        path.write_bytes(b"half")
        raise EngineError("no kernel")

    with pytest.raises(EngineError, match="no kernel"):
        plan_for(TARGET, fail)

    assert [path.suffix for path in plans_folder().iterdir()] == [".lock"]
    assert plan_for(TARGET, build_once).fresh


BUILD_IN_A_PROCESS = """
import os, signal, sys, time
from vlp_deploy.engines.tensorrt.builder import BuildReport
from vlp_deploy.engines.tensorrt.plans import PlanTarget, plan_for

def build(path):
    print("built", flush=True)
    path.write_bytes(b"plan")
    if "die" in sys.argv:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.2)  # so that the others find the lock taken
    return BuildReport(
        inputs={}, profiles=(), layers={}, input_types={}, fused_attention=0, network_layers=0
    )

target = PlanTarget(engine="tensorrt-rtx", version="1", graph="abc", compute_capability="8.9")
plan_for(target, build)
"""


def start_building(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", BUILD_IN_A_PROCESS, *arguments],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        text=True,
    )


def test_processes_that_want_one_plan_build_it_once() -> None:
    processes = [start_building() for _ in range(3)]
    said = [process.communicate()[0] for process in processes]

    assert [process.returncode for process in processes] == [0, 0, 0]
    assert "".join(said) == "built\n"
    assert not plan_for(TARGET, never).fresh


def test_a_killed_build_is_swept_and_done_again() -> None:
    process = start_building("die")
    assert process.communicate()[0] == "built\n"
    assert process.returncode == -signal.SIGKILL

    assert plan_for(TARGET, build_once).content == b"plan"
    assert sorted(path.suffix for path in plans_folder().iterdir()) == ["", ".lock"]


# the child process


def request(module: str, graph: Path) -> BuildRequest:
    return BuildRequest(module=module, graph=str(graph), plan=str(graph.with_suffix(".plan")))


def test_a_builder_that_crashes_is_an_error_here(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deadly.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.pathsep.join(sys.path)}")

    with pytest.raises(EngineError, match=r"building a deadly engine .* died of signal 11"):
        build_plan(request("deadly", graph))


def test_a_graph_that_is_none_is_explained_in_the_builders_words(
    graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="the builder under test")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))

    with pytest.raises(EngineError, match=r"tensorrt_rtx engine .* failed: .*cannot be read"):
        build_plan(request("tensorrt_rtx", graph))


# the engine


def test_the_engine_keeps_the_contract(gpu: FakeDriver, graph: Path) -> None:
    check_engine(TensorRtRtxEngine, graph, inputs(8), items={"image"}, tolerance=1e-6)


def test_more_images_than_a_profile_holds_are_run_in_parts(gpu: FakeDriver, graph: Path) -> None:
    engine = TensorRtRtxEngine(graph, EngineOptions(device="cuda"))
    many = inputs(300)

    outputs = engine.run(many)

    single = engine.run({**many, "image": many["image"][299:]})
    assert outputs["logits"].shape == (300, 4)
    np.testing.assert_array_equal(outputs["logits"][299:], single["logits"])


def test_contexts_and_memory_are_used_again_and_given_back(gpu: FakeDriver, graph: Path) -> None:
    engine = TensorRtRtxEngine(graph, EngineOptions(device="cuda"))
    for batch in (1, 8, 1, 8):
        engine.run(inputs(batch))

    assert len(Engine.contexts) == 1
    assert len(gpu.memory) == 5  # one for each tensor, of the largest size
    engine.close()
    assert not gpu.memory


def test_wrong_shapes_and_types_never_reach_the_gpu(gpu: FakeDriver, graph: Path) -> None:
    engine = TensorRtRtxEngine(graph, EngineOptions(device="cuda"))
    good = inputs(2)

    for bad, complaint in (
        ({"image": good["image"].astype(np.float32)}, "image is float32; the graph takes uint8"),
        ({"image": good["image"][:, :1]}, r"image has shape \(2, 1, 32, 32\); .* \(B, 3, 32, 32\)"),
        ({"class_bias": good["class_bias"][:3]}, r"class_bias has shape \(3,\)"),
        ({"image": good["image"][:0]}, "was not built for"),
    ):
        with pytest.raises(EngineError, match=complaint):
            engine.run(good | bad)
    assert not gpu.memory


def test_a_run_that_fails_gives_its_memory_back(
    gpu: FakeDriver, graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = TensorRtRtxEngine(graph, EngineOptions(device="cuda"))
    with monkeypatch.context() as failing:
        failing.setattr(Context, "execute_async_v3", lambda *_: False)
        with pytest.raises(EngineError, match="TensorRT refused to run: it gave no reason"):
            engine.run(inputs(1))

    assert not gpu.memory
    assert engine.run(inputs(1))["logits"].shape == (1, 4)


def test_the_second_load_builds_nothing(
    gpu: FakeDriver, graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = TensorRtRtxEngine(graph, EngineOptions(device="cuda"))
    assert first.version == (
        "tensorrt-rtx 1.7 NVIDIA GeForce RTX 4090 (compute capability 8.9, driver 13.0)"
    )
    first.run(inputs(1))
    first.close()
    monkeypatch.setattr(tensorrt, "build_plan", never)

    TensorRtRtxEngine(graph, EngineOptions(device="cuda")).run(inputs(1))

    (folder,) = (path for path in plans_folder().iterdir() if path.is_dir())
    assert {path.suffix for path in folder.iterdir()} == {".plan", ".json", ".kernels"}


def test_a_plan_that_tensorrt_refuses_is_built_again(gpu: FakeDriver, graph: Path) -> None:
    TensorRtRtxEngine(graph, EngineOptions(device="cuda")).close()
    (folder,) = (path for path in plans_folder().iterdir() if path.is_dir())
    _replace_plan(folder, b"of another world")

    with pytest.warns(UserWarning, match="is built again: TensorRT cannot load the plan: Serial"):
        engine = TensorRtRtxEngine(graph, EngineOptions(device="cuda"))

    assert engine.run(inputs(1))["logits"].shape == (1, 4)


def _replace_plan(folder: Path, content: bytes) -> None:
    """Another plan with a sidecar that vouches for it."""
    from vlp_deploy.files import sha256_of

    before = sha256_of(folder / PLAN)
    (folder / PLAN).write_bytes(content)
    text = (folder / SIDECAR).read_text()
    (folder / SIDECAR).write_text(text.replace(before, sha256_of(folder / PLAN)))


def test_a_plan_that_was_built_ahead_is_used(
    gpu: FakeDriver, graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    TensorRtRtxEngine.build_ahead(graph, (), "8.9")
    monkeypatch.setattr(tensorrt, "build_plan", never)

    TensorRtRtxEngine(graph, EngineOptions(device="cuda"))
    with pytest.raises(EngineError, match=r"'9\.0' cannot be built for; .* of 8\.6, 8\.9"):
        TensorRtRtxEngine.build_ahead(graph, (), "9.0")


def test_a_gpu_that_rtx_does_not_know_is_refused(
    gpu: FakeDriver, graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt, "supported_compute_capabilities", lambda _: ("12.0",))

    with pytest.raises(MissingDeviceError, match=r"does not know NVIDIA.* knows 12\.0\. Choose"):
        TensorRtRtxEngine(graph, EngineOptions(device="cuda"))


def test_no_gpu_says_what_the_driver_says() -> None:
    with pytest.raises(MissingDeviceError, match=r"no GPU to run on: no CUDA-capable .* error 100"):
        Cuda(FakeDriver(devices=0))


def test_no_driver_says_what_to_do(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx", reason="the builder under test")
    monkeypatch.setattr("vlp_deploy.engines.tensorrt.cuda.LIBRARY", "libno-such-driver.so")
    first_gpu.cache_clear()

    with pytest.raises(MissingDeviceError, match=r"no NVIDIA driver.*--engine onnx or openvino"):
        TensorRtRtxEngine(graph, EngineOptions(device="cuda"))


def test_missing_tensorrt_names_the_extra(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)

    with pytest.raises(MissingExtraError, match=r"pip install 'vlp-deploy\[tensorrt\]'"):
        TensorRtEngine(graph, EngineOptions(device="cuda"))


def test_the_builder_names_the_gpus_it_builds_for() -> None:
    pytest.importorskip("tensorrt_rtx", reason="the builder under test")

    assert builder.supported_compute_capabilities("tensorrt_rtx")[:2] == ("7.5", "8.0")
