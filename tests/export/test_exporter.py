"""Export of whole checkpoints: what is written, what is refused, what a killed export leaves."""

import os
import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from tests.export.tiny_clip import (
    CLASSES,
    VOCABULARY,
    Floats,
    class_embeddings,
    image_embeddings,
    make_checkpoint,
    make_clip,
    make_config,
    make_pixels,
    make_prompts,
    make_weights,
    save_weights,
)
from vlp_deploy import Classifier, embedded
from vlp_deploy.engines.base import Arrays
from vlp_deploy.engines.openvino import OpenVinoEngine
from vlp_deploy.errors import (
    BundleError,
    CheckpointError,
    ClassListError,
    EngineError,
    MissingExtraError,
    ModelError,
    ParityError,
)
from vlp_deploy.formats.architecture import Backbone, ClipConfig, TextLayout, VisualLayout
from vlp_deploy.formats.bundle import Bundle
from vlp_deploy.formats.checkpoint import RUN_FILE, PromptCheckpoint
from vlp_deploy.formats.weights import fingerprint
from vlp_export import export
from vlp_export.backbone import load_backbone

CONFIG = make_config(vocab_size=VOCABULARY)
WEIGHTS = make_weights(CONFIG)
LEARNED = "a photo of {}."  # its first tokens are replaced


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_weights(WEIGHTS, tmp_path_factory.mktemp("weights") / "clip.safetensors"))


def zeroshot() -> PromptCheckpoint:
    return make_checkpoint(CONFIG, WEIGHTS)


def coop() -> PromptCheckpoint:
    return make_checkpoint(
        CONFIG,
        WEIGHTS,
        method="coop",
        templates=(LEARNED,),
        text_layout=TextLayout(tokens=3, position="middle"),
        tensors={"text.prompts": make_prompts(1, 3, 16)},
    )


def coop_of_each_class() -> PromptCheckpoint:
    return make_checkpoint(
        CONFIG,
        WEIGHTS,
        method="coop",
        templates=(LEARNED,),
        text_layout=TextLayout(tokens=3),
        tensors={"text.class_prompts": make_prompts(len(CLASSES), 3, 16)},
    )


def deep_prompts_on_both_sides() -> PromptCheckpoint:
    return make_checkpoint(
        CONFIG,
        WEIGHTS,
        method="ivlp",
        templates=(LEARNED,),
        text_layout=TextLayout(tokens=2),
        visual_layout=VisualLayout(tokens=4, survive_last=True),
        tensors={"text.prompts": make_prompts(3, 2, 16), "visual.prompts": make_prompts(2, 4, 32)},
    )


def vpt() -> PromptCheckpoint:
    return make_checkpoint(
        CONFIG,
        WEIGHTS,
        method="vpt",
        visual_layout=VisualLayout(tokens=4, pre_ln=False),
        tensors={"visual.prompts": make_prompts(3, 4, 32)},
    )


def saved(checkpoint: PromptCheckpoint, folder: Path) -> Path:
    checkpoint.save(folder / "prompt.safetensors")
    return folder / "prompt.safetensors"


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    "make", [zeroshot, coop, coop_of_each_class, deep_prompts_on_both_sides, vpt]
)
def test_bundle_classifies_as_the_unfolded_model(
    make: type[PromptCheckpoint], tmp_path: Path, pretrained: str
) -> None:
    checkpoint = make()
    source, output = saved(checkpoint, tmp_path), tmp_path / "bundle"

    manifest = export(source, output, pretrained=pretrained)

    bundle = Bundle(output)
    assert {complaint for _, complaint in bundle.files.verify()} == {None}
    assert bundle.manifest == manifest
    bank, golden = bundle.class_bank(), bundle.golden()
    session = onnxruntime.InferenceSession(str(bundle.graph_path("image")))
    feeds = {**bank.inputs, "image": golden.pixels}
    embeddings, logits = session.run(["embedding", "logits"], feeds)
    reference = checkpoint.tensors["reference.logits"]
    np.testing.assert_array_equal(golden.logits, reference)
    np.testing.assert_allclose(logits, reference, rtol=0, atol=2e-3)
    np.testing.assert_allclose(embeddings, golden.embeddings, rtol=0, atol=1e-6)
    np.testing.assert_allclose(100 * embeddings @ bank.embeddings.T, logits, rtol=0, atol=1e-3)


def test_manifest_tells_where_everything_comes_from(tmp_path: Path, pretrained: str) -> None:
    checkpoint = deep_prompts_on_both_sides()

    manifest = export(saved(checkpoint, tmp_path), tmp_path / "bundle", pretrained=pretrained)

    assert manifest.classes == CLASSES
    assert manifest.logit_scale == pytest.approx(100)
    assert manifest.backbone == checkpoint.header.backbone
    assert manifest.visual_layout == checkpoint.header.visual_layout
    assert set(manifest.tools) == {"vlp-deploy", "onnx", "onnx-ir", "onnxruntime", "numpy"}
    assert [row.batch for row in manifest.parity] == [1, 2, 5, 8]
    assert max(row.max_logit_difference for row in manifest.parity) < 2e-4
    assert [step["step"] for step in manifest.history] == ["prompts", "export"]
    assert manifest.graphs["image"].flops > manifest.graphs["text"].flops > 0
    assert str(tmp_path) not in msgspec.json.encode(manifest).decode()  # no path of this machine


def test_prompts_travel_with_the_bundle(tmp_path: Path, pretrained: str) -> None:
    checkpoint = deep_prompts_on_both_sides()

    export(saved(checkpoint, tmp_path), tmp_path / "bundle", pretrained=pretrained)

    prompts = Bundle(tmp_path / "bundle").prompts()
    assert set(prompts) == {"text.prompts", "visual.prompts"}
    np.testing.assert_array_equal(prompts["text.prompts"], checkpoint.tensors["text.prompts"])


def test_zeroshot_bundle_has_empty_prompts_for_the_text_graph(
    tmp_path: Path, pretrained: str
) -> None:
    export(saved(zeroshot(), tmp_path), tmp_path / "bundle", pretrained=pretrained)

    assert Bundle(tmp_path / "bundle").prompts()["text.prompts"].shape == (1, 0, 16)


def test_folder_of_a_training_run_is_a_source(tmp_path: Path, pretrained: str) -> None:
    zeroshot().save(tmp_path / "run" / RUN_FILE)

    manifest = export(tmp_path / "run", tmp_path / "bundle", pretrained=pretrained)

    assert manifest.history[1]["checkpoint"] == RUN_FILE


def test_other_classes_are_baked_with_their_synonyms(tmp_path: Path, pretrained: str) -> None:
    names = tmp_path / "names.txt"
    names.write_text("tree kangaroo\trose\nsea_lion\n")

    manifest = export(
        saved(zeroshot(), tmp_path), tmp_path / "bundle", pretrained=pretrained, classes=names
    )

    bank, golden = Bundle(tmp_path / "bundle").class_bank(), Bundle(tmp_path / "bundle").golden()
    own = class_embeddings(
        make_clip(CONFIG, WEIGHTS),
        ("a photo of a {}.", "a drawing of a {}."),
        TextLayout(),
        np.zeros((1, 0, 16), np.float32),
    ).numpy()
    assert manifest.classes == ("tree kangaroo", "sea_lion")
    np.testing.assert_allclose(bank.embeddings[1], own[2], rtol=0, atol=1e-6)
    assert bank.embeddings[0] @ own[1] < 0.9999  # the synonym has moved it
    expected = 100 * image_embeddings(make_clip(CONFIG, WEIGHTS), make_pixels()).numpy()
    np.testing.assert_allclose(golden.logits, expected @ bank.embeddings.T, rtol=0, atol=1e-3)


def test_classes_with_contexts_of_their_own_take_no_others(tmp_path: Path, pretrained: str) -> None:
    source, names = saved(coop_of_each_class(), tmp_path), tmp_path / "names.txt"
    names.write_text("zebra\n")

    manifest = export(source, tmp_path / "bundle", pretrained=pretrained)
    with pytest.raises(ClassListError, match="a context of its own"):
        export(source, tmp_path / "other", pretrained=pretrained, classes=names)

    assert not manifest.new_classes.allowed
    assert "a context of its own" in manifest.new_classes.reason
    assert not (tmp_path / "other").exists()


def test_parity_failure_shows_the_table_and_leaves_nothing(tmp_path: Path, pretrained: str) -> None:
    checkpoint = zeroshot()
    wrong: dict[str, Floats] = dict(checkpoint.tensors)
    wrong["reference.logits"] = wrong["reference.logits"] + np.float32(0.01)
    source = saved(replace(checkpoint, tensors=wrong), tmp_path)

    with pytest.raises(ParityError, match=r"batch +max \|Δlogit\|(.|\n)*1.00e-02(.|\n)*FAILS"):
        export(source, tmp_path / "bundle", pretrained=pretrained)

    assert leftovers(tmp_path) == ["prompt.safetensors"]


def test_ignored_survivors_would_not_pass_the_gate(tmp_path: Path, pretrained: str) -> None:
    checkpoint = deep_prompts_on_both_sides()
    header = msgspec.structs.replace(
        checkpoint.header, visual_layout=VisualLayout(tokens=4, survive_last=False)
    )

    with pytest.raises(ParityError):
        export(
            saved(replace(checkpoint, header=header), tmp_path),
            tmp_path / "bundle",
            pretrained=pretrained,
        )


def test_other_weights_are_refused_by_fingerprint(tmp_path: Path) -> None:
    other = save_weights(make_weights(CONFIG, seed=9), tmp_path / "other.safetensors")

    with pytest.raises(ModelError, match=r"wrong backbone: .*test-clip \(random\)"):
        export(saved(zeroshot(), tmp_path), tmp_path / "bundle", pretrained=str(other))


def test_prompts_of_another_embedded_model_are_refused() -> None:
    weights = {"logit_scale": np.zeros((), np.float32)}  # whatever: only the name counts here
    backbone = Backbone(
        name=embedded.MODEL_NAME,
        pretrained=embedded.PRETRAINED,
        sha256=fingerprint(weights),
        config=embedded.config(),
    )

    with pytest.raises(ModelError, match=r"wrong backbone: .*vlp-tiny .*train them again"):
        load_backbone(backbone, None)


def test_a_tag_is_resolved_by_the_train_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[object, ...]] = []

    def resolve(model: str, tag: str, config: ClipConfig) -> dict[str, Floats]:
        asked.append((model, tag, config))
        return WEIGHTS if tag != "other" else make_weights(CONFIG, seed=9)

    monkeypatch.setattr("vlp_export.backbone.load_function", lambda target, *, what: resolve)
    source = saved(zeroshot(), tmp_path)

    export(source, tmp_path / "own", pretrained=None)
    export(source, tmp_path / "given", pretrained="laion")
    with pytest.raises(ModelError, match=r"wrong backbone: the weights in test-clip \(other\)"):
        export(source, tmp_path / "wrong", pretrained="other")

    assert asked == [("test-clip", tag, CONFIG) for tag in ("random", "laion", "other")]


def test_the_resolver_exists_and_knows_no_test_clip(tmp_path: Path) -> None:
    pytest.importorskip("open_clip")

    with pytest.raises(ModelError, match=r"not part of the installation\. Pass them with"):
        export(saved(zeroshot(), tmp_path), tmp_path / "bundle")


def test_a_tag_without_the_train_extra_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "vlp_train.backbones", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)

    with pytest.raises(MissingExtraError, match=r"'random' of test-clip.*vlp-deploy\[train\]"):
        export(saved(zeroshot(), tmp_path), tmp_path / "bundle")


def test_prompts_of_a_local_file_need_that_file() -> None:
    backbone = msgspec.structs.replace(zeroshot().header.backbone, pretrained="clip.safetensors")

    with pytest.raises(ModelError, match=r"clip\.safetensors, .*Pass that file with --pretrained"):
        load_backbone(backbone, None)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("clip.pt", "can run code when it is opened"),
        ("missing.safetensors", "does not exist"),
    ],
)
def test_weights_that_cannot_be_had_say_what_to_do(
    weights: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=message):
        export(saved(zeroshot(), tmp_path), tmp_path / "bundle", pretrained=weights)


@pytest.mark.parametrize(
    ("engine", "precision", "complaint"),
    [
        ("onnx", "fp8", r"engine onnx does not take fp8.*\nengine +fp32"),
        ("onnx", "fp4", r"precision is 'fp4'; expected one of fp32"),
        ("abacus", "fp32", r"exports for onnx, openvino"),
    ],
)
def test_unsupported_engines_and_precisions_list_what_works(
    engine: str, precision: str, complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(EngineError, match=complaint):
        export(tmp_path / "none", tmp_path / "bundle", engine=engine, precision=precision)


def test_bundle_as_a_source_is_refused(tmp_path: Path, pretrained: str) -> None:
    export(saved(zeroshot(), tmp_path), tmp_path / "bundle", pretrained=pretrained)

    with pytest.raises(EngineError, match="is a bundle already"):
        export(tmp_path / "bundle", tmp_path / "other", pretrained=pretrained)


def test_existing_output_is_kept_unless_forced(tmp_path: Path, pretrained: str) -> None:
    source, output = saved(zeroshot(), tmp_path), tmp_path / "bundle"
    export(source, output, pretrained=pretrained)
    before = Bundle(output).digest

    with pytest.raises(BundleError, match="pass --force"):
        export(source, output, pretrained=pretrained)
    assert Bundle(output).digest == before
    saved(coop(), tmp_path)
    export(source, output, pretrained=pretrained, force=True)

    assert Bundle(output).manifest.method == "coop"
    assert leftovers(tmp_path) == ["bundle", "prompt.safetensors"]


def test_promised_prompts_that_are_missing_are_an_error(tmp_path: Path, pretrained: str) -> None:
    checkpoint = coop()
    tensors = {k: v for k, v in checkpoint.tensors.items() if k != "text.prompts"}

    with pytest.raises(CheckpointError, match="3 learned tokens, but there is neither"):
        export(
            saved(replace(checkpoint, tensors=tensors), tmp_path),
            tmp_path / "bundle",
            pretrained=pretrained,
        )


EXPORT_ONCE = """
export(Path(sys.argv[1]), Path(sys.argv[2]), pretrained=sys.argv[3])
heavy = {"torch", "open_clip", "vlp_train"} & {name.split(".")[0] for name in sys.modules}
sys.exit(f"imported {heavy}" if heavy else 0)
"""
EXPORT_FOR_EVER = """
while True:
    export(Path(sys.argv[1]), Path(sys.argv[2]), pretrained=sys.argv[3], force=True)
    print("exported", flush=True)
"""


def start(program: str, *arguments: str | Path) -> subprocess.Popen[str]:
    """A process that exports; it sees the same code as this one."""
    program = f"import sys\nfrom pathlib import Path\nfrom vlp_export import export\n{program}"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_export_never_imports_torch(tmp_path: Path, pretrained: str) -> None:
    with start(EXPORT_ONCE, saved(coop(), tmp_path), tmp_path / "bundle", pretrained) as process:
        assert process.wait() == 0

    assert Bundle(tmp_path / "bundle").manifest.method == "coop"


@pytest.mark.parametrize("seed", range(4))
def test_killed_export_leaves_a_whole_bundle_or_none(
    seed: int, tmp_path: Path, pretrained: str
) -> None:
    source, output = saved(zeroshot(), tmp_path), tmp_path / "bundle"

    with start(EXPORT_FOR_EVER, source, output, pretrained) as process:
        assert process.stdout is not None
        started = time.perf_counter()
        for _ in range(2):
            assert process.stdout.readline() == "exported\n"
        duration = (time.perf_counter() - started) / 2
        time.sleep(random.Random(seed).uniform(0.3, 1) * duration)  # somewhere inside an export
        process.kill()

    assert {complaint for _, complaint in Bundle(output).files.verify()} == {None}
    export(source, output, pretrained=pretrained, force=True)
    assert leftovers(tmp_path) == ["bundle", "prompt.safetensors"]  # rubbish was swept


def test_progress_tells_every_step(tmp_path: Path, pretrained: str) -> None:
    steps: list[str] = []

    export(
        saved(zeroshot(), tmp_path),
        tmp_path / "bundle",
        pretrained=pretrained,
        progress=steps.append,
    )

    assert steps == [
        "reading checkpoint and weights",
        "writing graphs",
        "embedding class names, 5 of 10 prompts",
        "embedding class names, 10 of 10 prompts",
        "comparing with the un-folded model",
        "writing the bundle",
    ]


def test_output_that_cannot_be_written_is_explained(tmp_path: Path, pretrained: str) -> None:
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(BundleError, match="file is not a folder"):
        export(saved(zeroshot(), tmp_path), tmp_path / "file" / "bundle", pretrained=pretrained)


def test_export_for_openvino_is_proven_in_openvino_too(tmp_path: Path, pretrained: str) -> None:
    source, output = saved(coop(), tmp_path), tmp_path / "bundle"

    manifest = export(source, output, pretrained=pretrained, engine="openvino")

    rows = [(row.engine, row.batch) for row in manifest.parity]
    assert rows == [(name, batch) for name in ("onnx", "openvino") for batch in (1, 2, 5, 8)]
    assert Classifier.load(output, "openvino").bundle.manifest.engine == "openvino"


def test_export_for_openvino_fails_where_openvino_answers_wrongly(
    tmp_path: Path, pretrained: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = OpenVinoEngine._run

    def off(self: OpenVinoEngine, inputs: Arrays) -> dict[str, NDArray[Any]]:
        found = real(self, inputs)
        return {**found, "logits": found["logits"] + np.float32(0.01)}

    monkeypatch.setattr(OpenVinoEngine, "_run", off)

    with pytest.raises(ParityError, match=r"openvino +fp32 .*FAILS"):
        export(
            saved(coop(), tmp_path), tmp_path / "bundle", pretrained=pretrained, engine="openvino"
        )
    assert leftovers(tmp_path) == ["prompt.safetensors"]
