"""Every golden case: recognised by its keys, its classes recovered, its tensors as they were."""

from pathlib import Path

import numpy as np
import pytest

from tests.train.importing.golden_cases import cases, complete_case, model_files
from vlp_deploy.classes.tokenizer import Tokenizer
from vlp_train.importing.road import Conversion, ImportRequest, convert

METHODS = {"cmpa": "dcp", "dpt_vpt": "vpt", "dpt_vlp": "ivlp"}  # in our words


@pytest.mark.parametrize("source", cases())
def test_official_files_become_neutral_tensors(source: Path, models: Path, workplace: Path) -> None:
    case = complete_case(source, workplace)
    info, hyper = case.info, case.info["hyper_parameters"]
    model, pretrained = model_files(info, models)

    conversion = convert(
        ImportRequest(
            path=workplace,
            model=model,
            pretrained=pretrained,
            classes=case.class_file() if case.needs_classes else None,
            options=case.options,
        )
    )

    header = conversion.header
    assert header.method == METHODS.get(info["method"], info["method"])
    assert header.text_layout.tokens == hyper.get("m", 0)
    assert header.text_layout.position == hyper.get("ctp", "end")
    assert spelled(header.class_names) == spelled(info["classnames"])
    assert header.backbone.name == info["arch"]
    with np.load(case.source / "expected.npz") as expected:
        check_expected(conversion, dict(expected))


def spelled(names: list[str] | tuple[str, ...]) -> list[list[int]]:
    return [Tokenizer.default().encode(name.replace("_", " ")) for name in names]


def check_expected(conversion: Conversion, expected: dict[str, np.ndarray]) -> None:
    """The tensors that the official code computed, as far as a case tells."""
    tensors = conversion.tensors
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
