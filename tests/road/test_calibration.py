"""Calibration keeps its promises on drawings that nothing was fitted to, and `classify` serves it.

`python benchmarks/bench_calibration.py` asks the same of more seeds.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from bench_calibration import binomial, calibrated, check, emoji_logits, false_accepts

from vlp_deploy import cli, embedded
from vlp_deploy.data.dataset import Sample, load_dataset
from vlp_deploy.formats.bundle import Bundle, BundleContents, ClassBank, Golden, write_bundle

BASE, NEW = (embedded.emoji_path() / f"split_zhou_{part}.json" for part in ("base", "new"))


def test_probabilities_and_false_accepts_hold_on_held_out_drawings() -> None:
    logits, labels = emoji_logits()

    reports = [calibrated(logits, labels, seed, false_accept=0.05) for seed in range(8)]

    # each seed's count of false accepts has a chance of 1 in 1,000 to be lawful and not within
    counts = check(reports, level=0.999)
    assert counts["within_binomial"] >= 5  # 8 binomial 95 % intervals; 83 % hold the asked rate
    for report in reports:
        assert report.rejection is not None
        assert report.rejection.other_unknown_accepted is not None
        accepted = report.rejection.same_unknown_accepted.value
        assert report.rejection.known_accepted.value > accepted


def test_laws_are_laws() -> None:
    for law, mean in ((binomial(50, 0.1), 5.0), (false_accepts(99, 50, 0.1), 5.0)):
        assert law.sum() == pytest.approx(1)
        assert law @ np.arange(51) == pytest.approx(mean)  # E[Beta(10, 90)] = 0.1


@pytest.fixture
def base_bundle(tmp_path: Path) -> Path:
    """The embedded bundle with the base classes alone."""
    whole = Bundle(embedded.default_bundle())
    names = load_dataset(BASE).class_names
    kept = [whole.manifest.classes.index(name) for name in names]
    bank, golden = whole.class_bank(), whole.golden()
    assert bank.embeddings is not None
    contents = BundleContents(
        manifest=msgspec.structs.replace(whole.manifest, classes=names),
        graphs={
            graph.file: whole.files.read(graph.file) for graph in whole.manifest.graphs.values()
        },
        prompts=whole.prompts(),
        bank=ClassBank.from_embeddings(
            bank.embeddings[kept], logit_scale=whole.manifest.logit_scale
        ),
        golden=Golden(
            pixels=golden.pixels, embeddings=golden.embeddings, logits=golden.logits[:, kept]
        ),
        vocabulary=whole.vocabulary(),
    )
    write_bundle(contents, tmp_path / "base", replace=False)
    return tmp_path / "base"


def answers(
    bundle: Path, samples: tuple[Sample, ...], output: Path, *options: str
) -> Iterator[dict]:
    images = [str(sample.path) for sample in samples]
    command = ["classify", *images, "--bundle", str(bundle), "--output", str(output), *options]
    assert cli.run([*command, "--engine", "onnx"]) == 0
    return map(json.loads, output.read_bytes().splitlines())


def test_what_calibrate_fitted_is_what_classify_does(
    base_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fitted = tmp_path / "fitted"
    command = ["calibrate", str(base_bundle), str(BASE), "--unknown", str(NEW), "--multi-label"]
    assert cli.run([*command, "--engine", "onnx", "--output", str(fitted)]) == 0
    assert "--reject" in capsys.readouterr().out
    manifest = Bundle(fitted).manifest
    rejection = manifest.history[-1]["rejection"]

    shares = {}
    for what, source in (("known", BASE), ("unknown", NEW)):
        samples = load_dataset(source).split("test")
        found = list(answers(fitted, samples, tmp_path / f"{what}.jsonl", "--reject"))
        shares[what] = np.mean([answer["label"] is not None for answer in found])
        for answer in found:
            accepted = answer["probability"] >= manifest.reject_threshold
            # written with six digits
            if abs(answer["probability"] - manifest.reject_threshold) > 1e-6:
                assert (answer["label"] is not None) == accepted
    assert shares["known"] > 1.5 * shares["unknown"]
    assert shares["unknown"] <= 3 * rejection["asked"]  # half of these classes were not fitted to

    samples = load_dataset(BASE).split("test")
    several = list(answers(fitted, samples, tmp_path / "several.jsonl", "--multi-label"))
    names = load_dataset(BASE).class_names
    hits = [names[s.label] in answer["labels"] for s, answer in zip(samples, several, strict=True)]
    told = sum(len(answer["labels"]) for answer in several)
    # far more often right than as many labels drawn by lot would be
    assert np.mean(hits) > 5 * told / len(several) / len(names)
