"""A bundle stripped of its weights and completed again is the bundle, byte for byte in effect."""

from pathlib import Path

import msgspec
import numpy as np
import onnxruntime
import pytest

from tests.export.tiny_clip import (
    VOCABULARY,
    Floats,
    make_checkpoint,
    make_config,
    make_prompts,
    make_weights,
    save_weights,
)
from vlp_deploy import embedded
from vlp_deploy.errors import IntegrityError
from vlp_deploy.formats.architecture import VisualLayout
from vlp_deploy.formats.bundle import Bundle, write_bundle
from vlp_deploy.formats.splice import Graft
from vlp_export.exporter import build_bundle
from vlp_export.strip import strip_bundle

CONFIG = make_config(vocab_size=VOCABULARY)
WEIGHTS = make_weights(CONFIG)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    checkpoint = make_checkpoint(
        CONFIG,
        WEIGHTS,
        method="vpt",
        visual_layout=VisualLayout(tokens=4),
        tensors={"visual.prompts": make_prompts(2, 4, 32)},
    )
    write_bundle(build_bundle(checkpoint, WEIGHTS), tmp_path / "bundle", replace=False)
    return tmp_path / "bundle"


def logits_of(bundle: Bundle) -> Floats:
    bank = bundle.class_bank()
    session = onnxruntime.InferenceSession(str(bundle.graph_path("image")))
    feeds = {"image": bundle.golden().pixels, **bank.inputs}
    logits: Floats = session.run(["logits"], feeds)[0]
    return logits


def test_a_stripped_bundle_is_completed_to_the_same_answers(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = save_weights(WEIGHTS, tmp_path / "clip.safetensors")
    stripped, completed = tmp_path / "stripped", tmp_path / "completed"
    monkeypatch.setattr(embedded, "weights_path", lambda: weights)

    strip_bundle(bundle, stripped, WEIGHTS)
    completed.mkdir()
    embedded.complete_bundle(stripped, completed)

    assert {complaint for _, complaint in Bundle(completed).files.verify()} == {None}
    np.testing.assert_array_equal(logits_of(Bundle(completed)), logits_of(Bundle(bundle)))
    before, after = ((folder / "image.onnx").stat().st_size for folder in (bundle, stripped))
    assert after < before / 2


def test_the_packed_projection_of_each_tower_is_found(bundle: Path, tmp_path: Path) -> None:
    strip_bundle(bundle, tmp_path / "stripped", WEIGHTS)

    content = (tmp_path / "stripped" / embedded.GRAFTS).read_bytes()
    grafts = msgspec.json.decode(content, type=dict[str, tuple[Graft, ...]])
    forms = {
        graft.initializer: graft.head_width
        for of_graph in grafts.values()
        for graft in of_graph
        if graft.form == "packed_query_scaled"
    }
    widths = {
        "visual.": CONFIG.vision.width // CONFIG.vision.heads,
        "": CONFIG.text.width // CONFIG.text.heads,
    }
    assert forms
    for name, width in forms.items():
        assert width == widths["visual." if name.startswith("visual.") else ""]


def test_a_damaged_bundle_is_not_stripped(bundle: Path, tmp_path: Path) -> None:
    content = bytearray((bundle / "text.onnx").read_bytes())
    content[-100] ^= 1
    (bundle / "text.onnx").write_bytes(content)

    with pytest.raises(IntegrityError, match=r"is damaged \(text\.onnx: "):
        strip_bundle(bundle, tmp_path / "stripped", WEIGHTS)

    assert not (tmp_path / "stripped").exists()
