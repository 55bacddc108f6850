"""PromptSRC: the three regularisers, and the average over the epochs, resumed or not."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.train.checkpoints import (
    LABELS,
    NAMES,
    PIXELS,
    build,
    check_export,
    enlarge,
    gradients,
    inputs,
)
from vlp_deploy.classes.prompts import text_rows
from vlp_deploy.classes.tokenizer import Tokenizer
from vlp_deploy.data.dataset import load_dataset
from vlp_deploy.errors import TrainingError
from vlp_train.clip import Clip
from vlp_train.fit import fit
from vlp_train.images import ImageSet
from vlp_train.methods import method_config
from vlp_train.methods.base import Training
from vlp_train.methods.promptsrc import SENTENCES, PromptSrc, PromptSrcConfig
from vlp_train.run import Run

TWO = ("art of the {}.", "a photo of many {}.")


def promptsrc(clip: Clip, **options: Any) -> PromptSrc:
    method = build(clip, "promptsrc", **{"templates": TWO} | options)
    assert isinstance(method, PromptSrc)
    return method


def test_the_tokens_of_both_towers_learn_and_nothing_else(tiny_clip: Clip) -> None:
    found = gradients(promptsrc(tiny_clip))

    assert {name: tuple(grad.shape) for name, grad in found.items()} == {
        "text": (3, 4, 24),
        "visual": (3, 4, 32),
    }
    assert all(grad.abs().max() > 0 for grad in found.values())


def test_the_teacher_averages_raw_features_of_its_sentences(tiny_clip: Clip) -> None:
    rows = [text_rows(NAMES, template, Tokenizer.default()) for template in TWO]
    with torch.no_grad():
        raw = [tiny_clip.encode_text(torch.from_numpy(row.ids)) for row in rows]

    expected = F.normalize((raw[0] + raw[1]) / 2, dim=1)

    found = promptsrc(tiny_clip).zero_shot
    assert (found - expected).abs().max() < 1e-5  # float32
    # CLIP's ensemble, which normalises twice, is another one
    ensemble = build(tiny_clip, "zeroshot", templates=TWO).class_features()
    assert (found - ensemble).abs().max() > 1e-4


def terms(method: PromptSrc) -> dict[str, float]:
    """The loss's four terms before weighting, written out."""
    images = method.image_features(torch.from_numpy(PIXELS[:4])).double()
    frozen = method.prompted.image_features(torch.from_numpy(PIXELS[:4]), {}).double()
    classes, teacher = method.class_features().double(), method.zero_shot.double()
    student, answer = (100 * images @ classes.T).softmax(1), (100 * frozen @ teacher.T).softmax(1)
    return {
        "entropy": -student[range(4), LABELS].log().mean().item(),
        "text": (classes - teacher).abs().sum().item() / (3 * 16),
        "image": (images - frozen).abs().sum().item() / (4 * 16),
        "logit": (answer * (answer / student).log()).sum().item() / (4 * 3),
    }


@pytest.mark.parametrize(
    ("options", "weights"),
    [
        ({}, (25, 10, 1)),
        ({"text_weight": 0, "image_weight": 0, "logit_weight": 0}, (0, 0, 0)),
        ({"text_weight": 7, "image_weight": 0, "logit_weight": 3}, (7, 0, 3)),
        ({"text_weight": 0, "image_weight": 5, "logit_weight": 0}, (0, 5, 0)),
    ],
)
def test_the_loss_is_cross_entropy_and_three_regularisers(
    tiny_clip: Clip, options: dict[str, float], weights: tuple[float, float, float]
) -> None:
    method = promptsrc(tiny_clip, **options)

    with torch.no_grad():
        _, loss = method.step(inputs(method))
        parts = terms(method)

    assert min(parts.values()) > 0.01  # every term is there to be seen
    expected = parts["entropy"] + sum(
        weight * parts[name]
        for name, weight in zip(("text", "image", "logit"), weights, strict=True)
    )
    assert loss.item() == pytest.approx(expected, rel=1e-3)  # float32 logits near 100


def test_epochs_are_weighted_as_officially() -> None:
    weights = PromptSrcConfig().epoch_weights(20)
    official = [math.exp(-0.5 * (epoch - 15) ** 2) for epoch in range(1, 21)]

    expected = torch.tensor(official, dtype=torch.float64) / sum(official)
    assert weights.allclose(expected, rtol=1e-9, atol=0)
    assert int(weights.argmax()) == 14


@pytest.mark.parametrize(
    ("options", "epochs", "best"),
    [
        ({}, 4, 3),  # scaled: three quarters of the epochs
        ({"average_epoch": 6, "average_width": 10}, 20, 6),
        ({"average_epoch": 1000}, 5, 5),  # never 0/0
    ],
)
def test_epoch_weights_follow_options(options: dict[str, float], epochs: int, best: int) -> None:
    weights = PromptSrcConfig(**options).epoch_weights(epochs)  # type: ignore[arg-type]

    assert weights.sum().item() == pytest.approx(1)
    assert int(weights.argmax()) == best - 1


def train(
    clip: Clip, data: Path, run: Run, *, stop: int | None = None
) -> tuple[PromptSrc, list[torch.Tensor]]:
    """Four epochs, or as many of them; the prompts after each."""
    method = promptsrc(clip, average_epoch=2, average_width=1)
    seen: list[torch.Tensor] = []
    end_of_epoch = method.end_of_epoch

    def recording(epoch: int) -> None:
        seen.append(method.text.detach().clone())
        end_of_epoch(epoch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(method, "end_of_epoch", recording)
        if stop is not None:
            patch.setattr("vlp_train.fit.range", lambda first, last: range(stop), raising=False)
            patch.setattr(method, "finish", lambda images: None)
        fit(
            method,
            ImageSet(load_dataset(data).split("train"), method.prompted.preprocessing),
            run,
            training=Training(epochs=4, learning_rate=0.01, batch_size=6),
            precision="fp32",
            options={},
            report=lambda step: None,
        )
    return method, seen


def test_the_result_is_the_average_of_the_epochs(
    tiny_clip: Clip, toy_data: Path, tmp_path: Path
) -> None:
    method, seen = train(tiny_clip, toy_data, Run(tmp_path / "run"))

    weights = [math.exp(-0.5 * (epoch - 2) ** 2) for epoch in (1, 2, 3, 4)]
    expected = sum(w * text for w, text in zip(weights, seen, strict=True)) / sum(weights)
    assert len(seen) == 4
    assert (seen[0] - seen[3]).abs().max() > 1e-3  # they moved
    assert (method.prompts()["text.prompts"] - expected).abs().max() < 1e-6  # float32


def test_a_resumed_run_ends_in_the_same_average(
    tiny_clip: Clip, toy_data: Path, tmp_path: Path
) -> None:
    straight, _ = train(tiny_clip, toy_data, Run(tmp_path / "straight"))

    broken, first = train(tiny_clip, toy_data, Run(tmp_path / "broken"), stop=2)
    resumed, second = train(tiny_clip, toy_data, Run(tmp_path / "broken"))

    assert (len(first), len(second)) == (2, 2)
    assert not broken.prompts()["text.prompts"].equal(straight.prompts()["text.prompts"])
    for name, value in straight.prompts().items():
        assert value.equal(resumed.prompts()[name])


def test_a_run_that_stopped_before_its_end_was_written_gives_the_average_again(
    tiny_clip: Clip, toy_data: Path, tmp_path: Path
) -> None:
    finished, _ = train(tiny_clip, toy_data, Run(tmp_path / "run"))

    again, seen = train(tiny_clip, toy_data, Run(tmp_path / "run"))

    assert seen == []
    assert again.prompts()["visual.prompts"].equal(finished.prompts()["visual.prompts"])


def test_the_export_equals_the_unfolded_forward_pass(tiny_clip: Clip) -> None:
    method = promptsrc(tiny_clip, visual_depth=2)
    enlarge(method)

    assert set(check_export(method, "promptsrc").prompts) == {"text.prompts", "visual.prompts"}


def test_the_teacher_has_many_different_sentences() -> None:
    assert len(set(SENTENCES)) == len(SENTENCES) >= 30


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text_weight": -1}, "text_weight must be 0 or more"),
        ({"average_width": 0}, "average_width must be above 0"),
        ({"templates": ()}, "at least one sentence"),
        ({"text_tokens": 5}, "more than the 4 of words"),
    ],
)
def test_wrong_options_say_what_is_wrong(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        method_config("promptsrc", options)
