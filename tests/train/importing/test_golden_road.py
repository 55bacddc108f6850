"""Every golden case down the whole road: official file, import, export, logits without PyTorch,
in every engine of the CPU.

The official logits were computed by each method's public code; README.md of the golden data says
how. Small models come first, the large ones take half a minute each.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.export.golden.seeded_clip import seeded_pixels
from tests.train.importing.golden_cases import Case, cases, complete_case, model_files
from vlp_deploy import Classifier
from vlp_deploy.classes.tokenizer import Tokenizer
from vlp_deploy.cli import run
from vlp_deploy.formats.bundle import Bundle
from vlp_deploy.formats.checkpoint import PromptCheckpoint

pytest.importorskip("onnx_ir")
pytest.importorskip("openvino")

METHODS = {"cmpa": "dcp", "dpt_vpt": "vpt", "dpt_vlp": "ivlp"}  # in our words
# Float32 at a logit scale of 100; the official code differs from itself by 4e-5 between batch sizes
LOGIT_TOLERANCE = 2e-4
EMBEDDING_TOLERANCE = 2e-6


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A case, what `vlp import` made of its files, and the weights that it belongs to."""

    case: Case
    checkpoint: Path
    pretrained: str


@pytest.fixture(scope="module", params=cases())
def imported(
    request: pytest.FixtureRequest, models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Imported]:
    """Each case imported once, its files deleted in the end: they are large."""
    folder = tmp_path_factory.mktemp("golden")
    case = complete_case(request.param, folder / "files")
    model, pretrained = model_files(case.info, models)
    checkpoint = folder / "prompt.safetensors"
    words = ["import", str(case.files), "--model", model, "--pretrained", pretrained]
    words += ["--output", str(checkpoint)]
    words += ["--classes", str(case.class_file())] if case.needs_classes else []
    for option, value in case.options.items():
        words += ["-O", f"{option}={value}"]
    assert run(words) == 0
    yield Imported(case=case, checkpoint=checkpoint, pretrained=pretrained)
    shutil.rmtree(folder)


def test_official_files_become_neutral_tensors(imported: Imported) -> None:
    """Recognised by its keys, its classes recovered, its tensors as they were."""
    info, checkpoint = imported.case.info, PromptCheckpoint.load(imported.checkpoint)
    header, hyper = checkpoint.header, info["hyper_parameters"]

    assert header.method == METHODS.get(info["method"], info["method"])
    assert header.text_layout.tokens == hyper.get("m", 0)
    assert header.text_layout.position == hyper.get("ctp", "end")
    assert spelled(header.class_names) == spelled(info["classnames"])
    assert header.backbone.name == info["arch"]
    with np.load(imported.case.source / "expected.npz") as expected:
        check_tensors(checkpoint, dict(expected))


def spelled(names: list[str] | tuple[str, ...]) -> list[list[int]]:
    return [Tokenizer.default().encode(name.replace("_", " ")) for name in names]


def check_tensors(checkpoint: PromptCheckpoint, expected: dict[str, Any]) -> None:
    """The tensors that the official code computed, as far as a case tells."""
    prompts = [name for name in checkpoint.tensors if not name.startswith("reference.")]
    tensors = {name: checkpoint.tensors[name] for name in prompts}
    assert all(value.dtype == np.float32 for value in tensors.values())
    if "visual_prompts" in expected:  # float32 sums of 512 products
        np.testing.assert_allclose(
            tensors["visual.prompts"], expected["visual_prompts"], rtol=0, atol=1e-5
        )
    if "ctx_effective_P_prime" in expected:
        backbone = tensors["dpc.backbone.text.prompts"][0]
        np.testing.assert_array_equal(backbone, expected["ctx_stage1_P"])
        np.testing.assert_allclose(
            tensors["dpc.parallel.text.prompts"][0],
            expected["ctx_effective_P_prime"],
            rtol=0,
            atol=1e-6,
        )
    if "visual_context_b4" in expected:
        assert tensors["cmpa.visual_prompts"].shape == expected["visual_context_b4"].shape[1:]
    if "cavpt_prompts_image0" in expected:
        assert len(tensors["cavpt.context"]) == len(expected["cavpt_prompts_image0"])


def test_official_file_gives_the_official_logits(imported: Imported, workplace: Path) -> None:
    case = imported.case
    with np.load(case.source / "expected.npz") as arrays:
        expected = dict(arrays)
    export = ["export", str(imported.checkpoint), "--pretrained", imported.pretrained, "--force"]
    export += ["--output", str(workplace / "bundle")]
    CHECKS.get(case.info["method"], check_plain)(case, expected, export)


def exported(command: list[str], *more: str) -> Classifier:
    assert run([*command, *more]) == 0
    bundle = command[command.index("--output") + 1]
    return Classifier.load(Path(bundle), engine="onnx")


def pixels_of(case: Case) -> Any:
    return seeded_pixels(case.info["n_images"], case.info["image_size"], case.info["image_seed"])


def check_close(classifier: Classifier, case: Case, logits: Any, features: Any = None) -> None:
    """Logits of as many images as are expected, and class embeddings."""
    pixels = pixels_of(case)[: len(logits)]
    for served in (classifier, in_openvino(classifier)):
        found = served.logits(pixels)
        np.testing.assert_allclose(found, logits, rtol=0, atol=LOGIT_TOLERANCE)
    if features is not None:
        normalised = features / np.linalg.norm(features, axis=-1, keepdims=True)
        np.testing.assert_allclose(
            classifier.class_embeddings, normalised, rtol=0, atol=EMBEDDING_TOLERANCE
        )


def in_openvino(classifier: Classifier) -> Classifier:
    """The same bundle and classes in the other engine."""
    other = loaded_in_openvino(classifier.bundle.path, classifier.bundle.digest)
    assert other.engine == "openvino"
    same = other.classes == classifier.classes
    return other if same else other.with_classes(classifier.classes)


@lru_cache(maxsize=1)  # a bundle is asked again with other classes
def loaded_in_openvino(bundle: Path, digest: str) -> Classifier:
    assert Bundle(bundle).digest == digest
    return Classifier.load(bundle, engine="openvino")


def check_plain(case: Case, expected: dict[str, Any], export: list[str]) -> None:
    check_close(exported(export), case, expected["logits"], expected["text_features"])


def check_cocoop(case: Case, expected: dict[str, Any], export: list[str]) -> None:
    """There is one bank of class embeddings for each image, and none that a bundle could show."""
    check_close(exported(export), case, expected["logits"])


def check_dpc(case: Case, expected: dict[str, Any], export: list[str]) -> None:
    """The mixture for base classes, also as they were written; the first stage for new ones."""
    classifier = exported(export)
    features = expected["text_features_base_mixture"]
    check_close(classifier, case, expected["logits_base_mixture"], features)
    written = classifier.with_classes(case.info["classnames"])
    check_close(written, case, expected["logits_base_mixture"], features)
    new = classifier.with_classes(case.info["new_classnames"])
    check_close(new, case, expected["logits_new_wn0"], expected["text_features_new_wn0"])
    check_close(new, case, expected["logits_stage1_new"], expected["text_features_stage1_new"])

    alone = exported(export, "--mixing-weight", "1")

    # the official evaluation serves base classes by P' alone
    features = expected["text_features_base_official"]
    check_close(alone, case, expected["logits_base_official"], features)


def check_cmpa(case: Case, expected: dict[str, Any], export: list[str]) -> None:
    """Each image alone; then with the context of four, which are calibrated on."""
    alone = exported(export, "--context", "per_sample")
    check_close(alone, case, expected["logits_b1"], expected["text_features"])

    calibration = case.files / "calibration" / "images"
    calibration.mkdir(parents=True)
    for index, image in enumerate(pixels_of(case)[:4]):
        Image.fromarray(image.transpose(1, 2, 0)).save(calibration / f"{index}.png")
    frozen = exported(export, "--calibration", str(calibration.parent))

    check_close(frozen, case, expected["logits_b4"], expected["text_features"])


CHECKS = {"cocoop": check_cocoop, "dpc": check_dpc, "cmpa": check_cmpa}
