"""Options that every method shares: halves of the classes, accumulation, rates, caches, chunks."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vlp_deploy.data.dataset import load_dataset
from vlp_deploy.errors import TrainingError
from vlp_train.augment import random_view
from vlp_train.evaluate import evaluate
from vlp_train.fit import Step
from vlp_train.methods.base import Inputs, Method
from vlp_train.methods.coop import CoOp
from vlp_train.prompted import PromptedClip
from vlp_train.training import Outcome, Request, train

# Sums in another order, magnified by a logit scale of 100 and a handful of steps.
ROUNDING = 1e-5
GENTLE = {"learning_rate": 0.002, "warmup_epochs": 0, "epochs": 3}


class CrashError(Exception):
    """Stands for a crash in the middle of an epoch."""


@pytest.fixture(scope="module")
def five_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unsplit: a to e, six noisy squares each."""
    folder = tmp_path_factory.mktemp("five")
    random = np.random.default_rng(1)
    for name in "abcde":
        colour = random.integers(0, 255, 3)
        (folder / name).mkdir()
        for index in range(6):
            pixels = np.clip(colour + random.normal(0, 25, (20, 24, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{index}.png")
    return folder


def prompts(outcome: Outcome) -> np.ndarray:
    return outcome.checkpoint.tensors["text.prompts"]


# Base and new classes


def test_a_run_on_base_classes_tells_base_new_and_harmonic_mean(
    request_for: Callable[..., Request], five_classes: Path
) -> None:
    outcome = train(request_for(data=five_classes, subset="base", shots=4))

    header = outcome.checkpoint.header
    base, new = outcome.metrics["base"], outcome.metrics["new"]
    assert list(outcome.metrics) == ["base", "new"]
    assert header.class_names == ("a", "b", "c")
    assert header.provenance["training_images"] == 12
    assert (base.images, base.classes) == (6, 3)  # what was not drawn
    assert (new.images, new.classes) == (12, 2)
    assert new.top1 > 0  # or the mean below says nothing
    expected = 2 / (1 / base.top1 + 1 / new.top1)
    assert outcome.harmonic_mean == pytest.approx(expected)
    assert header.provenance["harmonic_mean"] == outcome.harmonic_mean


def test_new_classes_are_measured_as_any_other_data(
    request_for: Callable[..., Request], five_classes: Path, tmp_path: Path
) -> None:
    for name in "de":
        shutil.copytree(five_classes / name, tmp_path / "de" / name)

    outcome = train(request_for(data=five_classes, subset="base", evaluate=(tmp_path / "de",)))

    assert outcome.metrics["new"] == outcome.metrics["de"]


def test_new_classes_can_be_trained_on_alone(
    request_for: Callable[..., Request], five_classes: Path
) -> None:
    outcome = train(request_for(data=five_classes, subset="new", shots=4))

    assert outcome.checkpoint.header.class_names == ("d", "e")
    assert list(outcome.metrics) == ["new"]
    assert outcome.harmonic_mean is None
    assert outcome.checkpoint.header.provenance["harmonic_mean"] is None


def test_zero_shot_is_measured_on_base_and_new(
    request_for: Callable[..., Request], five_classes: Path, tmp_path: Path
) -> None:
    for split in ("train", "test"):
        shutil.copytree(five_classes, tmp_path / "split" / split)

    outcome = train(request_for(data=tmp_path / "split", method="zeroshot", subset="base"))

    assert outcome.metrics["base"] == outcome.metrics["ensemble"]
    assert outcome.metrics["new"].images == 12
    assert outcome.harmonic_mean is not None


def test_a_method_for_its_own_classes_says_why_new_ones_were_not_measured(
    request_for: Callable[..., Request], five_classes: Path
) -> None:
    options = {"context_tokens": 2, "class_specific": True}

    outcome = train(request_for(data=five_classes, subset="base", shots=4, method_options=options))

    assert list(outcome.metrics) == ["base"]
    (note,) = outcome.notes
    assert note.startswith("new classes were not measured: class-specific contexts were trained")


def test_a_run_does_not_resume_on_another_half(
    request_for: Callable[..., Request], five_classes: Path
) -> None:
    train(request_for(data=five_classes, subset="base", shots=4))

    with pytest.raises(TrainingError, match="subset was 'base', now 'new'"):
        train(request_for(data=five_classes, subset="new", shots=4, resume=True))


# Accumulation


@pytest.mark.parametrize("method", ["coop", "vpt"])
@pytest.mark.parametrize(("batch", "times"), [(3, 2), (2, 3), (4, 2), (9, 4)])
def test_accumulated_batches_are_one_large_batch(
    request_for: Callable[..., Request], method: str, batch: int, times: int
) -> None:
    """18 images: whole batches; one batch of 8 and one dropped; all images in one step."""
    large = train(request_for("large", method=method, **GENTLE, batch_size=batch * times))

    small = train(request_for("a", method=method, **GENTLE, batch_size=batch, accumulate=times))

    (name,) = [name for name in large.checkpoint.tensors if name.endswith("prompts")]
    one, other = (outcome.checkpoint.tensors[name] for outcome in (large, small))
    assert np.abs(one - other).max() < ROUNDING
    assert [e.loss for e in small.log] == pytest.approx([e.loss for e in large.log], rel=1e-4)
    assert [e.accuracy for e in small.log] == [e.accuracy for e in large.log]


def test_accumulating_sees_no_more_images_at_once(
    request_for: Callable[..., Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    good = Method.step

    def step(self: Method, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(len(inputs.labels))
        return good(self, inputs)

    monkeypatch.setattr(Method, "step", step)
    steps: list[Step] = []

    train(request_for(epochs=1, batch_size=4, accumulate=3), steps.append)

    assert seen == [4, 4, 4]
    assert [(step.step, step.steps) for step in steps] == [(1, 1)]


def test_a_loss_that_couples_images_is_accumulated_with_a_note(
    request_for: Callable[..., Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CoOp, "data_parallel", False)

    outcome = train(request_for(epochs=1, batch_size=4, accumulate=2))

    assert outcome.notes == (
        "the loss of coop couples the images of a batch: 2 batches of 4 are not one of 8",
    )


# Rates


def test_the_constant_schedule_stays_at_its_peak(request_for: Callable[..., Request]) -> None:
    outcome = train(request_for(schedule="constant"))

    assert [epoch.learning_rate for epoch in outcome.log] == [1e-5, 0.05, 0.05, 0.05]


@pytest.mark.parametrize("change", [{"momentum": 0.0}, {"weight_decay": 0.1}])
def test_momentum_and_weight_decay_matter_and_are_recorded(
    request_for: Callable[..., Request], change: dict[str, float]
) -> None:
    usual, changed = train(request_for("usual")), train(request_for("changed", **change))

    assert not np.array_equal(prompts(usual), prompts(changed))
    ((name, value),) = change.items()
    assert changed.checkpoint.header.provenance["options"][name] == value


def test_plain_gradient_descent_is_what_it_says(request_for: Callable[..., Request]) -> None:
    """One step over all images, from the prompts of a run that cannot move."""
    alone = {"epochs": 1, "batch_size": 18, "momentum": 0.0, "augment": False}
    start = prompts(train(request_for("start", **alone, learning_rate=1e-30, weight_decay=0)))
    decayed = train(request_for("decayed", **alone, learning_rate=0.01, weight_decay=0.5))
    free = train(request_for("free", **alone, learning_rate=0.01, weight_decay=0))

    # p - r·(g + w·p): the runs differ by r·w·p
    difference = prompts(free) - prompts(decayed)
    assert np.abs(difference - 0.01 * 0.5 * start).max() < 1e-7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accumulate": 0}, "accumulate must be at least 1"),
        ({"class_chunk": -1}, "class_chunk must be at least 0"),
        ({"views": 0, "cache_features": True}, "views must be at least 1"),
        ({"views": 2}, "--views says what --cache-features computes"),
        ({"views": 2, "cache_features": True, "augment": False}, "--no-augment takes none"),
        ({"momentum": 1.0}, "momentum must be from 0 to below 1, got 1.0"),
        ({"weight_decay": -1.0}, "weight decay must be 0 or more, got -1.0"),
        ({"method": "vpt", "cache_features": True}, "vpt learns prompts in the image tower"),
        ({"method": "zeroshot", "accumulate": 2}, "learns nothing: leave out accumulate"),
    ],
)
def test_options_that_make_no_sense_say_why(
    request_for: Callable[..., Request], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        train(request_for(**changes))


# Caches


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each pass of the image tower gets."""
    passes: list[int] = []
    encode = PromptedClip.image_features
    monkeypatch.setattr(
        PromptedClip,
        "image_features",
        lambda self, pixels, prompts: passes.append(len(pixels)) or encode(self, pixels, prompts),
    )
    return passes


MEASURED = 12 + 8  # test split, reference images


@pytest.mark.parametrize(
    ("changes", "images"),
    [
        ({}, 4 * 18),  # anew in every epoch
        ({"augment": False}, 18),
        ({"cache_features": True}, 18),
        ({"cache_features": True, "views": 3}, 3 * 18),
    ],
)
def test_cached_features_are_computed_once(
    request_for: Callable[..., Request], encoded: list[int], changes: dict[str, Any], images: int
) -> None:
    outcome = train(request_for(**changes))

    assert sum(encoded) == images + MEASURED
    assert len(outcome.notes) == (1 if changes else 0)


def test_caching_is_leaving_out_the_crops(request_for: Callable[..., Request]) -> None:
    plain, cached = (
        train(request_for("a", augment=False)),
        train(request_for("b", cache_features=True)),
    )

    assert prompts(plain).tobytes() == prompts(cached).tobytes()
    assert cached.notes == plain.notes
    assert "each image as served, never cropped" in cached.notes[0]


def test_as_many_views_as_epochs_are_the_crops_of_every_epoch(
    request_for: Callable[..., Request],
) -> None:
    fresh = train(request_for("fresh", **GENTLE))
    cached = train(request_for("cached", **GENTLE, cache_features=True, views=3))
    fewer = train(request_for("fewer", **GENTLE, cache_features=True, views=2))

    assert np.abs(prompts(fresh) - prompts(cached)).max() < ROUNDING
    assert np.abs(prompts(fresh) - prompts(fewer)).max() > 10 * ROUNDING


# Resuming, and losses that are no numbers


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 2, "accumulate": 3},
        {"cache_features": True, "views": 3},
        {"schedule": "constant", "momentum": 0.5, "weight_decay": 0.01},
        {"class_chunk": 2},
        {"method": "vpt", "batch_size": 4, "accumulate": 2, "class_chunk": 1},
    ],
)
def test_a_resumed_run_ends_in_the_same_bits_with_any_option(
    request_for: Callable[..., Request], changes: dict[str, Any]
) -> None:
    def crash(at: Step) -> None:
        if (at.epoch, at.step) == (3, 1):
            raise CrashError

    straight = train(request_for("straight", **changes))
    with pytest.raises(CrashError):
        train(request_for("broken", **changes), crash)

    resumed = train(request_for("broken", resume=True, **changes))

    for name, value in straight.checkpoint.tensors.items():
        assert value.tobytes() == resumed.checkpoint.tensors[name].tobytes(), name


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ({}, {"accumulate": 2}, "accumulate was 1, now 2"),
        ({}, {"schedule": "constant"}, "schedule was 'cosine', now 'constant'"),
        ({}, {"class_chunk": 2}, "class_chunk was None, now 2"),
        ({}, {"cache_features": True}, "augment was True, now False"),
        ({"cache_features": True}, {"cache_features": True, "views": 2}, "views was None, now 2"),
    ],
)
def test_a_run_does_not_resume_with_another_option(
    request_for: Callable[..., Request], one: dict[str, Any], other: dict[str, Any], message: str
) -> None:
    train(request_for(**one))

    with pytest.raises(TrainingError, match=message):
        train(request_for(resume=True, **other))


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_loss_that_is_no_number_names_the_image_it_came_of(
    request_for: Callable[..., Request],
    toy_data: Path,
    monkeypatch: pytest.MonkeyPatch,
    accumulate: int,
) -> None:
    """A white square is not in the data: its features turn out as no numbers."""
    culprit = toy_data / "train/green frog/3.png"
    encode = PromptedClip.image_features

    def poisoned(self: PromptedClip, pixels: torch.Tensor, prompts: Any) -> torch.Tensor:
        features = encode(self, pixels, prompts).clone()
        features[(pixels == 255).flatten(1).all(dim=1)] = torch.nan
        return features

    def view(image: Image.Image, size: int, random: Any, *, flip: bool) -> np.ndarray:
        seen = random_view(image, size, random, flip=flip)
        with Image.open(culprit) as other:
            white = image.tobytes() == other.convert("RGB").tobytes()
        return np.full_like(seen, 255) if white else seen

    monkeypatch.setattr(PromptedClip, "image_features", poisoned)
    monkeypatch.setattr("vlp_train.images.random_view", view)

    with pytest.raises(TrainingError) as caught:
        train(request_for(batch_size=6 // accumulate, accumulate=accumulate))

    message = str(caught.value)
    assert "the loss is nan in epoch 1, batch " in message
    assert f"It came of {culprit}: look at these images" in message
    assert "0.png" not in message


def test_a_loss_alone_that_is_no_number_names_the_batch(
    request_for: Callable[..., Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = Method.step

    def step(self: Method, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        logits, loss = good(self, inputs)
        return logits, loss * float("inf")

    monkeypatch.setattr(Method, "step", step)

    with pytest.raises(TrainingError, match=r"is inf.*(\.png, [^,]*){4}\.png and 1 more: look"):
        train(request_for())


# Chunks of classes


def test_chunks_of_classes_train_the_same_prompts(request_for: Callable[..., Request]) -> None:
    whole = train(request_for("whole", **GENTLE, class_chunk=0))
    chunked = train(request_for("chunked", **GENTLE, class_chunk=1))

    assert np.abs(prompts(whole) - prompts(chunked)).max() < ROUNDING


def test_a_checkpoint_trained_in_chunks_is_evaluated_like_any_other(
    request_for: Callable[..., Request], toy_data: Path, tiny_clip: Any
) -> None:
    outcome = train(request_for(class_chunk=2))

    again = evaluate(outcome.checkpoint, load_dataset(toy_data), clip=tiny_clip)
    assert again == outcome.metrics["test"]
