"""DPC runs, from request to checkpoint: stage 1, validation, metrics, resuming."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.train.conftest import OPEN_CLIP_CONFIG, ModelFiles, random_weights
from vlp_deploy.errors import TrainingError
from vlp_deploy.formats.architecture import ClipConfig
from vlp_deploy.formats.structures import Dual
from vlp_train.request import Request
from vlp_train.training import Outcome, train

WEIGHTS = {"0.1", "0.2", "0.3", "0.5", "1.0"}


def request(data: Path, model: ModelFiles, output: Path, **options: Any) -> Request:
    return Request(
        data=data,
        output=output,
        model=model.model,
        pretrained=model.pretrained,
        **{"method": "dpc", "epochs": 2, "learning_rate": 0.01, "augment": False} | options,
    )


@pytest.fixture
def coop(toy_data: Path, tiny_model: ModelFiles, tmp_path: Path) -> Outcome:
    return train(request(toy_data, tiny_model, tmp_path / "coop", method="coop", shots=4))


def test_a_run_measures_the_mixture_and_each_prompt_alone(
    toy_data: Path, tiny_model: ModelFiles, coop: Outcome, tmp_path: Path
) -> None:
    outcome = train(
        request(toy_data, tiny_model, tmp_path / "dpc", stage1=coop.path.parent, shots=4)
    )

    header = outcome.checkpoint.header
    assert set(outcome.metrics) == {"test", "parallel", "backbone"}
    assert outcome.metrics["backbone"] == coop.metrics["test"]
    assert header.base_classes == header.class_names == coop.checkpoint.header.class_names
    first = outcome.checkpoint.tensors["dpc.backbone.text.prompts"]
    assert np.array_equal(first, coop.checkpoint.tensors["text.prompts"])
    # one of four shots a class is held out, and the first of the best weights chosen
    told = header.provenance
    assert told["training_images"] == 9
    assert told["mixing_weight"] == "best of 5 on 3 validation images"
    assert told["validation_accuracy"].keys() == WEIGHTS
    assert isinstance(header.structure, Dual)
    best = max(told["validation_accuracy"].values())
    assert told["validation_accuracy"][str(header.structure.mixing_weight)] == best


@pytest.mark.parametrize(
    ("shots", "options", "images", "how"),
    [
        (2, {}, 6, "the paper's: too few shots to hold some out"),
        (4, {"mixing_weight": 0.2}, 12, "as asked"),
    ],
)
def test_no_shot_is_held_out_where_no_weight_is_to_be_chosen(
    toy_data: Path,
    tiny_model: ModelFiles,
    coop: Outcome,
    tmp_path: Path,
    shots: int,
    options: dict[str, float],
    images: int,
    how: str,
) -> None:
    outcome = train(
        request(
            toy_data,
            tiny_model,
            tmp_path / "dpc",
            stage1=coop.path,  # the file, too
            shots=shots,
            method_options=options,
        )
    )

    provenance = outcome.checkpoint.header.provenance
    assert (provenance["training_images"], provenance["mixing_weight"]) == (images, how)
    assert outcome.checkpoint.header.structure == Dual(method="coop", mixing_weight=0.2)


def test_another_first_stage_is_another_run(
    toy_data: Path, tiny_model: ModelFiles, coop: Outcome, tmp_path: Path
) -> None:
    asked = request(toy_data, tiny_model, tmp_path / "dpc", stage1=coop.path.parent, shots=4)
    finished = train(asked)

    again = train(replace(asked, resume=True))

    assert again.metrics == finished.metrics
    other = train(request(toy_data, tiny_model, tmp_path / "other", method="coop", shots=4, seed=2))
    with pytest.raises(TrainingError, match=r"stage1 was '[0-9a-f]{64}', now '[0-9a-f]{64}'"):
        train(replace(asked, resume=True, stage1=other.path.parent))


def test_a_first_stage_of_another_clip_is_refused(
    toy_data: Path, tiny_model: ModelFiles, coop: Outcome, tmp_path: Path
) -> None:
    config = ClipConfig.from_open_clip(OPEN_CLIP_CONFIG)
    (tmp_path / "other.json").write_text(json.dumps(OPEN_CLIP_CONFIG))
    save_file(random_weights(config, seed=1), tmp_path / "other.safetensors")
    other = ModelFiles(str(tmp_path / "other.json"), str(tmp_path / "other.safetensors"))

    with pytest.raises(TrainingError, match=r"was tuned on .*Give the same --model"):
        train(request(toy_data, other, tmp_path / "dpc", stage1=coop.path.parent, shots=4))


def test_other_methods_have_no_first_stage(
    toy_data: Path, tiny_model: ModelFiles, coop: Outcome, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match="--stage1 is for dpc; ivlp starts by itself"):
        train(request(toy_data, tiny_model, tmp_path / "x", method="ivlp", stage1=coop.path))
