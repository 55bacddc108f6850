"""The whole road on embedded model and data: train, export, classify, measure, as a user would."""

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from vlp_deploy import Classifier, Prediction, embedded
from vlp_deploy.data.dataset import load_dataset
from vlp_deploy.formats.bundle import Bundle
from vlp_deploy.formats.checkpoint import PromptCheckpoint
from vlp_deploy.measuring.records import BenchReport
from vlp_deploy.tolerance import TOLERANCE_AT_100 as LOGIT_TOLERANCE

pytest.importorskip("torch")
pytest.importorskip("onnx_ir")

EMOJI = embedded.emoji_path()
BASE, NEW = EMOJI / "split_zhou_base.json", EMOJI / "split_zhou_new.json"
# prints the heavy modules that a verb has loaded, behind everything else
TELLING = """
import sys
from vlp_deploy.cli import run
code = run(sys.argv[1:])
print("loaded:", *sorted({"torch", "onnx", "onnxruntime"} & set(sys.modules)))
sys.exit(code)
"""


def vlp(*arguments: str | Path) -> str:
    """The stdout of a verb in a fresh process."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "error::UserWarning", "-c", TELLING, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CoOp run on one drawing a class."""
    folder = tmp_path_factory.mktemp("road") / "run"
    options = ["--method", "coop", "--shots", "1", "--epochs", "2", "--output", folder]
    vlp("train", BASE, *options, "-O", "words=a photo of a", "-O", "context_tokens=4")
    return folder


@pytest.fixture(scope="module")
def bundle(run: Path) -> Path:
    folder = run.parent / "bundle"
    assert "loaded: onnx onnxruntime\n" in vlp("export", run, "--output", folder)
    return folder


def test_the_run_holds_a_checkpoint_with_its_accuracy(run: Path) -> None:
    header = PromptCheckpoint.load(run).header

    assert len(header.class_names) == 122
    assert header.provenance["metrics"]["test"]["images"] == 348
    assert header.backbone.name == embedded.MODEL_NAME


def test_classify_takes_new_classes_without_torch(bundle: Path, tmp_path: Path) -> None:
    names = load_dataset(NEW).class_names
    (tmp_path / "new.txt").write_text("".join(f"{name}\n" for name in names))
    folder = EMOJI / "violin"

    out = vlp(
        *("classify", folder, "--bundle", bundle),
        *("--classes", tmp_path / "new.txt", "--format", "jsonl"),
    )

    *lines, loaded = out.splitlines()
    assert loaded == "loaded: onnxruntime"
    rows = [json.loads(line) for line in lines]
    assert [Path(row["path"]).name for row in rows] == sorted(os.listdir(folder))
    assert {row["label"] for row in rows} <= set(names)


def test_the_bundle_agrees_with_pytorch_on_every_test_image(bundle: Path, tmp_path: Path) -> None:
    options = ["--against", "torch", "--seconds", "0", "--batch", "1", "--no-cold-start"]
    vlp("bench", bundle, "--data", BASE, *options, "--output", tmp_path)

    report = msgspec.json.decode((tmp_path / "bench.json").read_bytes(), type=BenchReport)
    ours, torch = report.contenders
    assert torch.agreement is not None
    assert torch.agreement.images == torch.agreement.same_top1 == 348
    assert torch.agreement.max_logit_difference <= LOGIT_TOLERANCE
    apart = torch.agreement.top1_difference
    assert apart is not None
    assert apart.low < apart.value == 0 < apart.high
    assert ours.accuracy is not None
    assert torch.accuracy is not None
    assert ours.accuracy.top5 == torch.accuracy.top5
    # logits may differ by the tolerance, and a likelihood by twice as much
    assert ours.accuracy.nll == pytest.approx(torch.accuracy.nll, abs=2 * LOGIT_TOLERANCE)


def test_new_classes_agree_with_pytorch(bundle: Path, tmp_path: Path) -> None:
    options = ["--against", "torch", "--seconds", "0", "--batch", "1", "--no-cold-start"]
    vlp("bench", bundle, "--data", NEW, "--data-classes", *options, "--output", tmp_path)

    report = msgspec.json.decode((tmp_path / "bench.json").read_bytes(), type=BenchReport)
    agreement = report.contenders[1].agreement
    assert agreement is not None
    assert agreement.max_logit_difference <= LOGIT_TOLERANCE
    assert report.classes == 121


def test_the_embedded_zero_shot_is_ten_times_better_than_chance() -> None:
    dataset = load_dataset(EMOJI / "split_zhou_styles.json")
    classifier = Classifier.load()
    assert classifier.classes == dataset.class_names
    samples = [*dataset.split("train"), *dataset.split("test")]

    answers = classifier.classify([sample.path for sample in samples])

    right = sum(
        isinstance(answer, Prediction) and answer.label == dataset.class_names[sample.label]
        for answer, sample in zip(answers, samples, strict=True)
    )
    assert right / len(samples) >= 10 / len(dataset.class_names)


def test_the_default_bundle_is_whole_and_unpacked_once() -> None:
    path = embedded.default_bundle()
    written = (path / "image.onnx").stat().st_mtime_ns

    assert [complaint for _, complaint in Bundle(path).files.verify() if complaint] == []
    assert embedded.default_bundle() == path
    assert (path / "image.onnx").stat().st_mtime_ns == written


def test_the_default_bundle_is_of_the_embedded_weights() -> None:
    from vlp_deploy.formats.weights import fingerprint, load_weights

    weights = load_weights(embedded.weights_path(), embedded.config())

    assert Bundle(embedded.default_bundle()).manifest.backbone.sha256 == fingerprint(weights)
