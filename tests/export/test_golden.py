"""Exports of prompts that the methods' official code used, against the logits it computed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.export.golden.seeded_clip import (
    Floats,
    clip_config,
    fingerprint,
    seeded_pixels,
    seeded_weights,
)
from vlp_deploy.formats.architecture import Backbone, Preprocessing, TextLayout, VisualLayout
from vlp_deploy.formats.bundle import BundleContents
from vlp_deploy.formats.checkpoint import Header, PromptCheckpoint
from vlp_deploy.formats.structures import ClassAware, Conditioned, Plain, Structure
from vlp_deploy.formats.weights import fingerprint as weights_sha256
from vlp_export.dialects import DIALECTS, FUSED, PORTABLE, Dialect
from vlp_export.exporter import build_bundle

HERE = Path(__file__).parent / "golden"
LOCAL_CASES = sorted(path.parent.name for path in HERE.glob("*/case.json"))
# Seen are 5e-5; PyTorch itself, batch of 8 against single images, differs by 4e-5.
LOGIT_TOLERANCE = 2e-4
EMBEDDING_TOLERANCE = 1e-6


@pytest.fixture(scope="session")
def tiny_weights() -> dict[str, Floats]:
    weights = seeded_weights(clip_config("tiny-test-quickgelu"), 2024)
    assert fingerprint(weights) == "f1e05904"  # as recorded where the numbers were made
    return weights


def read_case(folder: Path) -> tuple[dict[str, Any], dict[str, Floats], dict[str, Floats]]:
    """Description, expected arrays and learned tensors of a case."""
    learned: dict[str, Floats] = {}
    if (folder / "learned.npz").exists():
        with np.load(folder / "learned.npz") as arrays:
            learned = {name: array.astype(np.float32) for name, array in arrays.items()}
    with np.load(folder / "expected.npz") as arrays:
        expected = dict(arrays)
    return json.loads((folder / "case.json").read_text()), expected, learned


def layer_by_layer(learned: dict[str, Floats], first: str, deep: str) -> list[Floats]:
    """Prompts of all layers from their official names."""
    layers = [learned[first]] if first in learned else []
    while (name := f"{deep}.resblocks.{len(layers)}.VPT_shallow") in learned:
        layers.append(learned[name])
    return layers


def dpt_tensors(learned: dict[str, Floats]) -> dict[str, Floats]:
    """DPT's tensors by the names of a checkpoint, of which class-aware ones are n times there."""

    def stacked(name: str) -> Floats:
        parts = (learned[f"extractor.{name}".replace("*", str(layer))] for layer in range(layers))
        return np.stack(list(parts))

    layers = len(learned["extractor.ctx"])
    return {
        "text.prompts": learned["prompt_learner.ctx"][None],
        "visual.prompts": learned["ctx_learner.ctx"],
        "cavpt.context": learned["extractor.ctx"],
        "cavpt.meta.weight": stacked("meta_nets.*.weight"),
        "cavpt.meta.bias": stacked("meta_nets.*.bias"),
        "cavpt.query.weight": stacked("attns.*.qmlp.weight"),
        "cavpt.key.weight": stacked("attns.*.kmlp.weight"),
        "cavpt.value.weight": stacked("attns.*.vmlp.weight"),
        "cavpt.norm.weight": stacked("lns2.*.weight"),
        "cavpt.norm.bias": stacked("lns2.*.bias"),
    }


def cocoop_tensors(learned: dict[str, Floats]) -> dict[str, Floats]:
    """CoCoOp's context and network by the names of a checkpoint."""
    network = {
        name.replace("meta_net", "cocoop"): value
        for name, value in learned.items()
        if name.startswith("meta_net.")
    }
    return {"text.prompts": learned["ctx"][None], **network}


def checkpoint_of(
    case: dict[str, Any],
    expected: dict[str, Floats],
    learned: dict[str, Floats],
    weights: dict[str, Floats],
) -> PromptCheckpoint:
    """The neutral checkpoint, with the official answers as its reference."""
    config = clip_config(case["arch"])
    size = config.vision.image_size
    tensors: dict[str, Any] = {
        "reference.pixels": seeded_pixels(8, size, case["image_seed"]),
        "reference.logits": expected["logits"],
    }
    of_dpt = case["method"].startswith("dpt")  # its image prompts join after `ln_pre`
    if case["method"] == "dpt":
        tensors |= dpt_tensors(learned)
    elif case["method"] == "cocoop":
        tensors |= cocoop_tensors(learned)
    elif of_dpt:
        tensors["visual.prompts"] = learned["ctx"]
    elif "ctx" in learned and learned["ctx"].ndim == 3:
        tensors["text.class_prompts"] = learned["ctx"]
    elif "ctx" in learned:
        tensors["text.prompts"] = learned["ctx"][None]
    elif text := layer_by_layer(learned, "prompt_learner.ctx", "text_encoder.transformer"):
        tensors["text.prompts"] = np.stack(text)
    if visual := layer_by_layer(learned, "image_encoder.VPT", "image_encoder.transformer"):
        tensors["visual.prompts"] = np.stack(visual)
    options = case["hyper_parameters"]
    tokens = options.get("m", 0)
    template = case["selector_or_zero_shot_template" if of_dpt else "template"]
    structure: Structure = Conditioned() if case["method"] == "cocoop" else Plain()
    if case["method"] == "dpt":
        structure = ClassAware(selected=options["cpn"], selector_template=template)
        template = "<learned> {}."
        tensors["reference.selector_logits"] = expected["selector_logits"]
    header = Header(
        method=case["method"],
        hyper_parameters=options,
        backbone=Backbone(
            name=case["arch"], pretrained="seeded", sha256=weights_sha256(weights), config=config
        ),
        class_names=tuple(case["classnames"]),
        templates=(template.replace("<learned>", " ".join(["X"] * tokens)),),
        text_layout=TextLayout(
            tokens=tokens, position=options.get("ctp", "end"), official_span=True
        ),
        visual_layout=VisualLayout(
            tokens=options.get("m_v", 0),
            pre_ln=not of_dpt,
            survive_last=case["method"] != "dpt",
        ),
        structure=structure,
        preprocessing=Preprocessing(image_size=size),
        provenance={"golden": case["name"]},
    )
    return PromptCheckpoint(header=header, tensors=tensors)


def check(contents: BundleContents, expected: dict[str, Floats]) -> None:
    """Compare logits, image embeddings and class embeddings with the official ones."""
    images, texts = (
        features / np.linalg.norm(features, axis=-1, keepdims=True)
        for features in (expected["image_features"], expected["text_features"])
    )
    differences = [row.max_logit_difference for row in contents.manifest.parity]
    assert max(differences) <= LOGIT_TOLERANCE
    tolerance = EMBEDDING_TOLERANCE
    np.testing.assert_allclose(contents.golden.embeddings, images, rtol=0, atol=tolerance)
    if contents.bank.embeddings is not None:  # not one for every image
        np.testing.assert_allclose(contents.bank.embeddings, texts, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dialect", [PORTABLE, FUSED], ids=["portable", "fused"])
@pytest.mark.parametrize("name", LOCAL_CASES)
def test_export_gives_the_official_logits(
    name: str,
    dialect: Dialect,
    tiny_weights: dict[str, Floats],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(DIALECTS, "onnx", dialect)
    case, expected, learned = read_case(HERE / name)
    checkpoint = checkpoint_of(case, expected, learned, tiny_weights)

    check(build_bundle(checkpoint, tiny_weights), expected)


@pytest.mark.parametrize(
    ("name", "dialect"), [("clip-zeroshot-b16", FUSED), ("clip-zeroshot-b32", PORTABLE)]
)
def test_full_size_export_gives_the_official_logits(
    name: str, dialect: Dialect, golden: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DIALECTS, "onnx", dialect)
    case, expected, _ = read_case(golden / name)
    weights = seeded_weights(clip_config(case["arch"]), case["clip_seed"])
    assert fingerprint(weights) == case["clip_fingerprint"]

    checkpoint = checkpoint_of(case, expected, {}, weights)

    check(build_bundle(checkpoint, weights), expected)
