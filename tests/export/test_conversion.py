"""`vlp export BUNDLE --precision`: a float32 bundle in another precision, from itself alone."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from tests.export.golden.seeded_clip import clip_config, seeded_pixels, seeded_weights
from tests.export.test_contexts import WEIGHTS as COUPLED_WEIGHTS
from tests.export.test_contexts import dcp
from tests.export.test_exporter import (
    WEIGHTS,
    coop_of_each_class,
    deep_prompts_on_both_sides,
    saved,
    zeroshot,
)
from tests.export.test_exporter import pretrained as pretrained
from tests.export.test_golden import HERE, checkpoint_of, read_case
from tests.export.test_precision_choice import data as data
from vlp_deploy import Classifier
from vlp_deploy.cli import run
from vlp_deploy.errors import BundleError, EngineError, ParityError
from vlp_deploy.formats.bundle import Bundle, BundleContents, write_bundle
from vlp_deploy.formats.checkpoint import PromptCheckpoint
from vlp_deploy.formats.fake_bundle import write_fake_bundle
from vlp_export import convert, export
from vlp_export.contexts import ContextChoice, settle_context
from vlp_export.exporter import build_bundle
from vlp_export.folding import Weights
from vlp_export.precision import PrecisionTarget, in_precision
from vlp_export.running import silent


def golden_case(name: str) -> tuple[PromptCheckpoint, Weights]:
    case, expected, learned = read_case(HERE / name)
    weights = seeded_weights(clip_config(case["arch"]), case["clip_seed"])
    return checkpoint_of(case, expected, learned, weights), weights


def coupled(context: str) -> tuple[PromptCheckpoint, Weights]:
    batch_size = 3 if context == "batch" else None
    choice = ContextChoice(context=context, batch_size=batch_size)  # type: ignore[arg-type]
    return settle_context(dcp(), COUPLED_WEIGHTS, choice, silent).checkpoint, COUPLED_WEIGHTS


CASES: dict[str, Callable[[], tuple[PromptCheckpoint, Weights]]] = {
    "plain": lambda: (zeroshot(), WEIGHTS),
    "each-class": lambda: (coop_of_each_class(), WEIGHTS),
    "deep": lambda: (deep_prompts_on_both_sides(), WEIGHTS),
    "conditioned": lambda: golden_case("cocoop-m4-tiny"),
    "class-aware": lambda: golden_case("dpt-bl3-tiny"),
    "coupled": lambda: coupled("per_sample"),
    "coupled-batch": lambda: coupled("batch"),
}


@pytest.fixture(scope="module", params=CASES)
def contents(request: pytest.FixtureRequest) -> BundleContents:
    """The float32 bundle of every structure, as an export from the checkpoint has it."""
    return build_bundle(*CASES[request.param]())


@pytest.fixture
def plain(tmp_path: Path, pretrained: str) -> Path:
    """A float32 bundle of no structure in particular."""
    export(saved(zeroshot(), tmp_path), tmp_path / "plain", pretrained=pretrained)
    return tmp_path / "plain"


def same_but_for_the_manifest(first: BundleContents, second: BundleContents) -> bool:
    """All but the manifest: graphs, prompts, classes, golden answers and vocabulary, exactly."""
    arrays = [
        {
            **each.prompts,
            **each.bank.inputs,
            **each.golden.further,
            **vars(each.golden),
            "of classes": each.bank.embeddings,
        }
        for each in (first, second)
    ]
    del arrays[0]["further"], arrays[1]["further"]
    return (
        first.graphs == second.graphs
        and first.vocabulary == second.vocabulary
        and arrays[0].keys() == arrays[1].keys()
        and all(np.array_equal(arrays[0][name], arrays[1][name]) for name in arrays[0])
    )


def test_contents_that_are_read_are_those_that_were_written(
    contents: BundleContents, tmp_path: Path
) -> None:
    write_bundle(contents, tmp_path / "b", replace=False)

    found = Bundle(tmp_path / "b").contents()

    assert same_but_for_the_manifest(found, contents)
    assert found.manifest == contents.manifest


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_bundle_gives_the_same_graphs_as_its_checkpoint(
    precision: str, contents: BundleContents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = contents.manifest.preprocessing.image_size
    images = seeded_pixels(16, size, 5)
    found = type("Found", (), {"pixels": images, "source": "seeded"})
    monkeypatch.setattr("vlp_export.precision_choice.evaluation_images", lambda *_, **__: found)
    write_bundle(contents, tmp_path / "fp32", replace=False)

    manifest = convert(tmp_path / "fp32", tmp_path / "low", precision=precision)

    expected = in_precision(contents, PrecisionTarget(precision=precision), images)  # type: ignore[arg-type]
    assert same_but_for_the_manifest(Bundle(tmp_path / "low").contents(), expected)
    assert manifest.parity == expected.manifest.parity
    assert manifest.graphs == expected.manifest.graphs
    assert manifest.precision == precision


def test_the_history_goes_on(plain: Path, data: Path, tmp_path: Path) -> None:
    before = Bundle(plain)

    manifest = convert(plain, tmp_path / "low", precision="int8", calibration=data)

    *earlier, last = manifest.history
    assert tuple(earlier) == before.manifest.history
    assert (last["step"], last["bundle"], last["sha256"]) == ("export", "plain", before.digest)
    assert last["precision"] == {"is": "int8", "ranges_of": data.name, "images": 20}
    assert Bundle(plain).digest == before.digest


def test_auto_is_asked_of_a_bundle_too(
    plain: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlp_export.precision_choice._speed", lambda *_: 0.9)

    manifest = convert(plain, tmp_path / "b", precision="auto", calibration=data)

    assert manifest.precision == "fp32"
    trials = manifest.history[-1]["precision"]["trials"]
    assert [trial["precision"] for trial in trials] == ["fp16", "bf16", "int8", "fp8"]


def test_another_engine_proves_the_graphs_itself(plain: Path, tmp_path: Path) -> None:
    manifest = convert(plain, tmp_path / "b", precision="fp16", engine="openvino")

    rows = [(row.engine, row.precision) for row in manifest.parity[::4]]
    assert manifest.engine == "openvino"
    assert rows == [("onnx", "fp32"), ("openvino", "fp32"), ("openvino", "fp16")]


def test_tensorrts_bundle_has_the_profiles_that_its_checkpoint_gives(
    plain: Path, tmp_path: Path, pretrained: str
) -> None:
    source = tmp_path / "prompt.safetensors"
    expected = export(
        source, tmp_path / "t", pretrained=pretrained, engine="tensorrt", precision="fp16"
    )

    manifest = convert(plain, tmp_path / "b", precision="fp16", engine="tensorrt")
    back = convert(plain, tmp_path / "c", precision="fp16")

    assert manifest.profiles == expected.profiles
    assert manifest.profiles
    assert not back.profiles


def test_fp32_for_another_engine_changes_the_engine_only(plain: Path, tmp_path: Path) -> None:
    manifest = convert(plain, tmp_path / "b", precision="fp32", engine="openvino")

    assert (manifest.engine, manifest.precision) == ("openvino", "fp32")
    assert same_but_for_the_manifest(Bundle(tmp_path / "b").contents(), Bundle(plain).contents())
    back = convert(tmp_path / "b", tmp_path / "c", precision="fp32", engine="onnx")
    rows = [(row.engine, row.batch) for row in back.parity]
    assert len(rows) == len(set(rows)) == len(manifest.parity)  # none is listed twice


def test_what_is_not_float32_is_refused_with_the_way_out(plain: Path, tmp_path: Path) -> None:
    convert(plain, tmp_path / "half", precision="fp16")

    with pytest.raises(BundleError, match=r"half is in fp16; expected .* fp32.*Name the fp32"):
        convert(tmp_path / "half", tmp_path / "b", precision="int8")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("place", [".", "inside", "../plain"])
def test_the_source_is_never_written_to(place: str, plain: Path) -> None:
    before = sorted(plain.iterdir()), Bundle(plain).digest

    with pytest.raises(BundleError, match=r"bundle to be rewritten.*another --output"):
        convert(plain, plain / place, precision="fp16", force=True)

    assert (sorted(plain.iterdir()), Bundle(plain).digest) == before


def test_graphs_of_no_onnx_are_refused(tmp_path: Path) -> None:
    write_fake_bundle(tmp_path / "fake", ("a", "b"))

    with pytest.raises(EngineError, match=r"holds image\.fake.*expected \.onnx"):
        convert(tmp_path / "fake", tmp_path / "b", precision="fp16")


def test_a_bundle_that_answers_otherwise_is_not_rewritten(plain: Path, tmp_path: Path) -> None:
    """The gate can fail: golden answers of other images."""
    contents = Bundle(plain).contents()
    pixels = np.ascontiguousarray(contents.golden.pixels[::-1])
    broken = replace(contents, golden=replace(contents.golden, pixels=pixels))
    write_bundle(broken, tmp_path / "broken", replace=False)

    with pytest.raises(ParityError, match="FAILS"):
        convert(tmp_path / "broken", tmp_path / "b", precision="fp16")
    assert not (tmp_path / "b").exists()


def test_the_command_writes_a_bundle_that_classifies(
    plain: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompt.safetensors").unlink()  # it is not needed
    words = ["export", str(plain), "--precision", "int8", "--calibration", str(data)]

    assert run([*words, "--output", str(tmp_path / "b")]) == 0, capsys.readouterr().err
    assert run([*words, "--output", str(tmp_path / "b")]) == 1
    assert "pass --force" in capsys.readouterr().err
    assert run([*words, "--output", str(tmp_path / "b"), "--force"]) == 0

    printed = capsys.readouterr()
    assert "int8" in printed.out
    assert "vlp classify" in printed.out
    assert Classifier.load(tmp_path / "b").bundle.manifest.precision == "int8"


def test_an_older_calibrated_bundle_is_told_to_be_calibrated_again(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contents = Bundle(plain).contents()
    older = [msgspec.structs.replace(row, batch_cosine=None) for row in contents.manifest.parity]
    manifest = msgspec.structs.replace(contents.manifest, temperature=1.5, parity=tuple(older))
    write_bundle(replace(contents, manifest=manifest), tmp_path / "calibrated", replace=False)
    words = ["export", str(tmp_path / "calibrated"), "--output", str(tmp_path / "b")]

    assert run([*words, "--precision", "fp16"]) == 0

    assert "vlp calibrate" in capsys.readouterr().err
    assert Bundle(tmp_path / "b").manifest.temperature == 1.5


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--precision", "fp16"), "Say where: --output NEW"),
        (("--precision", "fp16", "--compute-capability", "8.9"), "First the one"),
        (("--calibration", "x"), "--calibration is of --precision"),
        (("--force",), "--force is of --precision"),
    ],
)
def test_options_that_do_not_go_together_are_explained(
    options: tuple[str, ...], complaint: str, plain: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["export", str(plain), *options]) == 2

    assert complaint in capsys.readouterr().err


def test_help_of_a_bundle_teaches_precision(
    plain: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["export", str(plain), "--help"]) == 0

    text = " ".join(capsys.readouterr().out.split())
    for words in ("--precision", "--calibration", "BUNDLE has to be fp32", "--min-agreement"):
        assert words in text
