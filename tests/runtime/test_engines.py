"""Every engine passes one contract check; names that are wrong, early or missing are explained."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from vlp_deploy.cache import cache_folder
from vlp_deploy.engines import ENGINES, candidates, engine_class, load_engine
from vlp_deploy.engines.base import Engine, EngineOptions
from vlp_deploy.engines.check import check_engine
from vlp_deploy.engines.fake import FakeEngine
from vlp_deploy.engines.memory import give_back
from vlp_deploy.engines.onnx import (
    EXTERNAL_DATA,
    PIECE_BYTES,
    OnnxEngine,
    refuse_external_data,
)
from vlp_deploy.engines.openvino import OpenVinoEngine
from vlp_deploy.errors import EngineError, MissingExtraError
from vlp_deploy.formats.bundle import Bundle

SIZE, WIDTH, CLASSES = 32, 16, 4


def image_inputs() -> dict[str, NDArray[Any]]:
    generator = np.random.default_rng(0)
    return {
        "image": generator.integers(0, 256, (8, 3, SIZE, SIZE), np.uint8),
        "class_matrix": generator.standard_normal((WIDTH, CLASSES), np.float32),
        "class_bias": generator.standard_normal(CLASSES, np.float32),
    }


def text_inputs() -> dict[str, NDArray[Any]]:
    generator = np.random.default_rng(0)
    return {
        "input_ids": generator.integers(0, 49_408, (8, 12)),
        "eot_index": np.arange(4, 12),
        "slots": np.where(np.arange(12) % 5 == 1, 0, -1)[None].repeat(8, axis=0),
        "prompts": generator.standard_normal((1, 1, WIDTH), np.float32),
    }


@pytest.fixture
def onnx_graph(tmp_path: Path) -> Path:
    """uint8 image, class matrix and bias to embedding and logits: mean colours, projected."""
    onnx = pytest.importorskip("onnx", reason="writes a graph to run")
    pytest.importorskip("onnxruntime", reason="runs it")
    from onnx import TensorProto, helper, numpy_helper

    table = np.random.default_rng(1).standard_normal((3, WIDTH), np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["image"], ["real"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["real", "axes"], ["colours"], keepdims=0),
            helper.make_node("MatMul", ["colours", "table"], ["feature"]),
            helper.make_node("ReduceL2", ["feature", "last"], ["length"], keepdims=1),
            helper.make_node("Div", ["feature", "length"], ["embedding"]),
            helper.make_node("Gemm", ["embedding", "class_matrix", "class_bias"], ["logits"]),
        ],
        "tiny",
        [
            helper.make_tensor_value_info("image", TensorProto.UINT8, ["B", 3, SIZE, SIZE]),
            helper.make_tensor_value_info("class_matrix", TensorProto.FLOAT, [WIDTH, "K"]),
            helper.make_tensor_value_info("class_bias", TensorProto.FLOAT, ["K"]),
        ],
        [
            helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["B", WIDTH]),
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["B", "K"]),
        ],
        [
            numpy_helper.from_array(table, "table"),
            numpy_helper.from_array(np.array([2, 3]), "axes"),
            numpy_helper.from_array(np.array([1]), "last"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path = tmp_path / "image.onnx"
    onnx.save(model, path)
    return path


def test_fake_engine_keeps_the_contract(fake_bundle: Path) -> None:
    bundle = Bundle(fake_bundle)

    check_engine(FakeEngine, bundle.graph_path("image"), image_inputs(), items={"image"})
    check_engine(
        FakeEngine,
        bundle.graph_path("text"),
        text_inputs(),
        items={"input_ids", "eot_index", "slots"},
    )


def test_onnx_engine_keeps_the_contract(onnx_graph: Path) -> None:
    check_engine(OnnxEngine, onnx_graph, image_inputs(), items={"image"}, tolerance=1e-4)


def test_openvino_engine_keeps_the_contract(onnx_graph: Path) -> None:
    pytest.importorskip("openvino", reason="the engine under test")

    check_engine(OpenVinoEngine, onnx_graph, image_inputs(), items={"image"}, tolerance=1e-4)


def test_openvino_gives_onnxruntimes_answers(onnx_graph: Path) -> None:
    pytest.importorskip("openvino", reason="the engine under test")
    options = EngineOptions(threads=1)

    answers = [
        engine(onnx_graph, options).run(image_inputs()) for engine in (OnnxEngine, OpenVinoEngine)
    ]

    for name in ("embedding", "logits"):
        # float32 sums in another order, of logits up to 10
        np.testing.assert_allclose(answers[0][name], answers[1][name], rtol=0, atol=1e-4)


def test_openvino_without_room_for_a_request_is_an_engine_error(onnx_graph: Path) -> None:
    pytest.importorskip("openvino", reason="the engine under test")
    engine = OpenVinoEngine(onnx_graph, EngineOptions(threads=1))

    def no_room(_: object) -> None:
        raise RuntimeError("bad allocation")

    engine._compiled = type("Full", (), {"create_infer_request": no_room})()

    with pytest.raises(EngineError, match="openvino failed: bad allocation"):
        engine.run(image_inputs())


def test_openvino_has_no_cuda(onnx_graph: Path) -> None:
    pytest.importorskip("openvino", reason="the engine under test")

    with pytest.raises(EngineError, match="runs on the CPU"):
        OpenVinoEngine(onnx_graph, EngineOptions(device="cuda"))


@pytest.mark.parametrize("damage", ["weights", "cut", "missing list", "stray file"])
def test_damaged_cache_of_openvino_is_made_anew(onnx_graph: Path, damage: str) -> None:
    pytest.importorskip("openvino", reason="the engine under test")
    options = EngineOptions(threads=1)
    expected = OpenVinoEngine(onnx_graph, options).run(image_inputs())["logits"]
    (folder,) = (cache_folder() / "openvino").iterdir()
    (blob,) = folder.glob("*.blob")
    whole = blob.read_bytes()
    blob.chmod(0o644)
    table = np.random.default_rng(1).standard_normal((3, WIDTH), np.float32).tobytes()
    if damage == "weights":
        assert table in whole
        blob.write_bytes(whole.replace(table, bytes(len(table))))  # OpenVINO itself would run this
    elif damage == "cut":
        blob.write_bytes(whole[: len(whole) // 2])
    elif damage == "missing list":
        (folder / "SHA256SUMS").unlink()
    else:
        (folder / "stray.blob").write_bytes(whole)

    found = OpenVinoEngine(onnx_graph, options).run(image_inputs())["logits"]

    np.testing.assert_array_equal(found, expected)
    assert {path.name for path in folder.iterdir()} == {blob.name, "SHA256SUMS"}


def test_openvino_cache_follows_the_content_of_a_graph(onnx_graph: Path) -> None:
    """OpenVINO goes by path and time, and would serve the old graph here."""
    pytest.importorskip("openvino", reason="the engine under test")
    options, stamp = EngineOptions(threads=1), onnx_graph.stat()
    before = OpenVinoEngine(onnx_graph, options).run(image_inputs())["embedding"]
    content = onnx_graph.read_bytes()
    table = np.random.default_rng(1).standard_normal((3, WIDTH), np.float32)
    onnx_graph.write_bytes(content.replace(table.tobytes(), (-table).tobytes()))
    os.utime(onnx_graph, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))

    after = OpenVinoEngine(onnx_graph, options).run(image_inputs())["embedding"]

    np.testing.assert_allclose(after, -before, rtol=0, atol=1e-6)


def test_copies_of_a_graph_share_one_compiled_graph(onnx_graph: Path, tmp_path: Path) -> None:
    """OpenVINO names it by path, so it would keep one for each place a bundle is copied to."""
    pytest.importorskip("openvino", reason="the engine under test")
    copied = tmp_path / "copy.onnx"
    copied.write_bytes(onnx_graph.read_bytes())

    for graph in (onnx_graph, copied, copied):
        OpenVinoEngine(graph, EngineOptions(threads=1))

    assert len(list((cache_folder() / "openvino").glob("*/*.blob"))) == 1


def test_openvino_keeps_nothing_where_that_is_asked_for(onnx_graph: Path) -> None:
    pytest.importorskip("openvino", reason="the engine under test")

    assert OpenVinoEngine(onnx_graph, EngineOptions(threads=1, cached=False)).run(image_inputs())

    assert not (cache_folder() / "openvino").exists()


def test_openvino_without_a_cache_that_can_be_written_runs(
    onnx_graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino", reason="the engine under test")
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("VLP_CACHE", str(tmp_path / "file"))

    assert OpenVinoEngine(onnx_graph, EngineOptions(threads=1)).run(image_inputs())


def test_bf16_without_its_units_is_said_and_computed_in_float32(onnx_graph: Path) -> None:
    openvino = pytest.importorskip("openvino", reason="the engine under test")
    if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        engine = OpenVinoEngine(onnx_graph, EngineOptions(precision="bf16"))
        assert engine.version.endswith("bf16")
        return
    with pytest.warns(UserWarning, match="no bfloat16 units"):
        engine = OpenVinoEngine(onnx_graph, EngineOptions(precision="bf16"))
    assert engine.version.endswith("f32")


@pytest.mark.parametrize("package", ["onnxruntime", "openvino"])
def test_package_that_cannot_be_imported_is_an_engine_error(
    onnx_graph: Path, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = __import__

    def pretend(wanted: str, *arguments: Any, **options: Any) -> Any:
        if wanted == package:
            raise ImportError("libcudart.so.13: cannot open shared object file")
        return real(wanted, *arguments, **options)

    monkeypatch.setattr("builtins.__import__", pretend)
    engine = {"onnxruntime": OnnxEngine, "openvino": OpenVinoEngine}[package]

    with pytest.raises(EngineError, match=r"cannot be imported: libcudart.*Install it again"):
        engine(onnx_graph, EngineOptions())


class Broken(FakeEngine):
    """A fake engine with one fault, chosen by the subclass."""

    fault: ClassVar[Callable[[dict[str, NDArray[Any]], Mapping[str, NDArray[Any]]], None]]

    def _run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        outputs = super()._run(inputs)
        type(self).fault(outputs, inputs)
        return outputs


class BatchScale(Broken):
    @staticmethod
    def fault(outputs, inputs) -> None:
        outputs["logits"] = outputs["logits"] * (1 + 0.01 * len(inputs["image"]))


class WrongShape(Broken):
    @staticmethod
    def fault(outputs, inputs) -> None:
        outputs["embedding"] = outputs["embedding"][:1]


class WritesInput(Broken):
    @staticmethod
    def fault(outputs, inputs) -> None:
        inputs["class_bias"][0] = 7


class SharedOutput(Broken):
    buffer: ClassVar[NDArray[np.float32]] = np.zeros((8, CLASSES), np.float32)

    @staticmethod
    def fault(outputs, inputs) -> None:
        view = SharedOutput.buffer[: len(outputs["logits"])]
        view[:] = outputs["logits"]
        outputs["logits"] = view


class NeverCloses(FakeEngine):
    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("engine", "complaint"),
    [
        (BatchScale, "with the size of its batch"),
        (WrongShape, "embedding of batch 2 has shape"),
        (WritesInput, "changes its inputs"),
        (SharedOutput, "change with the next run"),
        (NeverCloses, "closed engine"),
    ],
)
def test_contract_check_catches_faults(engine, complaint: str, fake_bundle: Path) -> None:
    graph = Bundle(fake_bundle).graph_path("image")

    with pytest.raises(EngineError, match=complaint):
        check_engine(engine, graph, image_inputs(), items={"image"})


def test_memory_is_given_back_where_the_c_library_keeps_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept: list[int] = []
    glibc = type("Glibc", (), {"malloc_trim": kept.append})
    monkeypatch.setattr("ctypes.CDLL", lambda _: glibc)
    give_back()
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())  # musl's, macOS's
    give_back()

    assert kept == [0]


def test_every_registered_engine_goes_by_its_name() -> None:
    for name in ENGINES:
        engine = engine_class(name)
        assert issubclass(engine, Engine)
        assert engine.name == name


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("onx", "Did you mean 'onnx'"),
        (
            "",
            "there is no engine ''. Available: auto, onnx, openvino, tensorrt, tensorrt-rtx, fake",
        ),
        ("tensorrtx", "Did you mean 'tensorrt"),
    ],
)
def test_unknown_engine_is_explained(name: str, complaint: str) -> None:
    with pytest.raises(EngineError, match=complaint):
        engine_class(name)


def test_engine_that_cannot_read_the_graph_is_explained(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"'fake' reads \.fake files.*image\.onnx"):
        load_engine("fake", tmp_path / "image.onnx", EngineOptions())
    with pytest.raises(EngineError, match=r"no engine of this version runs fp32 graphs in \.xml"):
        candidates(".xml", EngineOptions())


def test_candidates_follow_from_file_precision_and_device() -> None:
    pytest.importorskip("openvino", reason="the second engine for ONNX files")

    assert candidates(".fake", EngineOptions()) == ["fake"]
    assert candidates(".onnx", EngineOptions()) == ["onnx", "openvino"]
    assert candidates(".onnx", EngineOptions(precision="bf16")) == ["openvino"]
    assert "openvino" not in candidates(".onnx", EngineOptions(device="cuda"))


def test_installed_version_imports_nothing_and_may_be_unknown() -> None:
    assert OnnxEngine.installed_version().startswith("onnxruntime")
    assert FakeEngine.installed_version() == ""


def test_missing_onnxruntime_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.__import__", _without("onnxruntime"))

    with pytest.raises(MissingExtraError, match=r"pip install 'vlp-deploy\[cpu\]'"):
        OnnxEngine(tmp_path / "image.onnx", EngineOptions())


def _without(name: str) -> Callable[..., Any]:
    real = __import__

    def pretend(wanted: str, *arguments: Any, **options: Any) -> Any:
        if wanted == name:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(wanted, *arguments, **options)

    return pretend


@pytest.mark.parametrize(
    "entry",
    [b"\x0a\x08location\x12\x04evil", b"\x12\x04evil\x0a\x08location"],  # fields in any order
)
def test_onnx_engine_refuses_rubbish_and_external_data(tmp_path: Path, entry: bytes) -> None:
    pytest.importorskip("onnxruntime", reason="its loader is tested")
    rubbish, external = tmp_path / "rubbish.onnx", tmp_path / "external.onnx"
    rubbish.write_bytes(b"no graph")
    external.write_bytes(b"\x08\x09" + entry)

    with pytest.raises(EngineError, match=r"cannot load .*rubbish\.onnx"):
        OnnxEngine(rubbish, EngineOptions())
    with pytest.raises(EngineError, match="tensors in other files, which is refused"):
        OnnxEngine(external, EngineOptions())


def test_marker_of_external_data_is_what_onnx_writes(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="writes a graph with external data")
    pytest.importorskip("onnxruntime", reason="its loader is tested")
    from onnx import TensorProto, helper, numpy_helper

    big = numpy_helper.from_array(np.zeros(1000, np.float32), "big")
    value = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1000])
    node = helper.make_node("Identity", ["big"], ["y"])
    graph = helper.make_graph([node], "g", [], [value], [big])
    path = tmp_path / "split.onnx"
    onnx.save(helper.make_model(graph), path, save_as_external_data=True, location="weights.bin")

    with pytest.raises(EngineError, match="other files"):
        OnnxEngine(path, EngineOptions())


def test_cuda_without_a_gpu_build_says_what_to_install(onnx_graph: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        OnnxEngine(onnx_graph, EngineOptions(device="cuda"))
        return
    with pytest.raises(MissingExtraError, match=r"uninstall onnxruntime.*vlp-deploy\[gpu\]"):
        OnnxEngine(onnx_graph, EngineOptions(device="cuda"))


def test_onnx_errors_at_run_become_engine_errors(onnx_graph: Path) -> None:
    engine = OnnxEngine(onnx_graph, EngineOptions(threads=1))

    with pytest.raises(EngineError, match="onnxruntime failed"):
        engine.run(image_inputs() | {"image": np.zeros((1, 3, 5, 5), np.float64)})


def test_external_data_is_found_across_the_border_of_two_pieces(tmp_path: Path) -> None:
    path = tmp_path / "image.onnx"
    for start in range(PIECE_BYTES - len(EXTERNAL_DATA), PIECE_BYTES + 1):
        path.write_bytes(bytes(start) + EXTERNAL_DATA + b"\x12\x04evil")

        with pytest.raises(EngineError, match="other files"):
            refuse_external_data(path)


@pytest.mark.parametrize(
    "options", [{"threads": 0}, {"threads": -2}, {"device": "tpu"}, {"precision": "fp4"}]
)
def test_options_check_themselves(options) -> None:
    with pytest.raises(EngineError, match="expected"):
        EngineOptions(**options)


def test_fake_engine_is_deterministic_and_tells_inputs_apart(fake_bundle: Path) -> None:
    graph = Bundle(fake_bundle).graph_path("image")
    first, second = (FakeEngine(graph, EngineOptions()) for _ in range(2))
    inputs = image_inputs()

    embeddings = first.run(inputs)["embedding"]

    np.testing.assert_array_equal(embeddings, second.run(inputs)["embedding"])
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-6)
    assert len(np.unique(embeddings.round(4), axis=0)) == 8


def test_fake_engine_reads_nothing_behind_the_end_of_text(fake_bundle: Path) -> None:
    engine = FakeEngine(Bundle(fake_bundle).graph_path("text"), EngineOptions())
    inputs = text_inputs()
    padded = {name: value.copy() for name, value in inputs.items()}
    for row, end in enumerate(inputs["eot_index"]):
        padded["input_ids"][row, end + 1 :] = 0

    expected = engine.run(inputs)["embedding"]

    np.testing.assert_array_equal(engine.run(padded)["embedding"], expected)


def test_fake_engine_refuses_other_files(tmp_path: Path) -> None:
    (tmp_path / "image.fake").write_bytes(b'{"role": "audio", "embed_dim": 3}')

    with pytest.raises(EngineError, match="no graph of the fake engine"):
        FakeEngine(tmp_path / "image.fake", EngineOptions())
