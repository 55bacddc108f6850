"""Whole runs on coloured squares: they learn, stop, resume, refuse, and say what they did."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vlp_deploy.data.dataset import load_dataset
from vlp_deploy.errors import (
    CheckpointError,
    ClassListError,
    DataError,
    TrainingError,
    VlpError,
)
from vlp_deploy.formats.checkpoint import PromptCheckpoint
from vlp_train.backbones import load_backbone
from vlp_train.evaluate import ENSEMBLE, evaluate, zero_shot_accuracies
from vlp_train.fit import Step
from vlp_train.methods.base import Inputs, Method
from vlp_train.prompted import PromptedClip
from vlp_train.reference import spread_samples
from vlp_train.training import Outcome, Request, train

COLOURS = ("red fox", "green frog", "blue_whale")


class CrashError(Exception):
    """Stands for a crash in the middle of an epoch."""


def stop_at(epoch: int, step: int) -> Callable[[Step], None]:
    def report(at: Step) -> None:
        if (at.epoch, at.step) == (epoch, step):
            raise CrashError

    return report


def same_prompts(one: Outcome, other: Outcome) -> bool:
    names = [name for name in one.checkpoint.tensors if not name.startswith("reference.")]
    assert names
    return all(
        one.checkpoint.tensors[name].tobytes() == other.checkpoint.tensors[name].tobytes()
        for name in names
    )


@pytest.mark.parametrize("method", ["coop", "vpt", "zeroshot"])
def test_a_run_ends_in_a_checkpoint_that_loads(
    request_for: Callable[..., Request], method: str
) -> None:
    outcome = train(request_for(method=method))

    checkpoint = PromptCheckpoint.load(outcome.path.parent)
    header = checkpoint.header
    assert header.method == method
    assert header.class_names == ("blue whale", "green frog", "red fox")
    assert header.provenance["metrics"]["test"]["images"] == 12
    assert header.provenance["metrics"]["test"]["top1"] == outcome.metrics["test"].top1
    assert checkpoint.tensors["reference.pixels"].shape == (8, 3, 16, 16)
    assert checkpoint.tensors["reference.logits"].shape == (8, 3)
    assert len(outcome.log) == (0 if method == "zeroshot" else 4)
    assert not list(outcome.path.parent.glob(".*"))


def test_reference_logits_are_the_models_answers(
    request_for: Callable[..., Request], tiny_model: Any
) -> None:
    checkpoint = train(request_for(method="vpt")).checkpoint
    clip, _ = load_backbone(tiny_model.model, tiny_model.pretrained)
    pixels = checkpoint.tensors["reference.pixels"].astype(np.float64) / 255
    mean, std = (
        np.array(c).reshape(3, 1, 1)
        for c in (checkpoint.header.preprocessing.mean, checkpoint.header.preprocessing.std)
    )
    images = torch.from_numpy((pixels - mean) / std).float()
    prompts = torch.from_numpy(checkpoint.tensors["visual.prompts"])

    with torch.no_grad():
        f = clip.encode_image(images, prompts, checkpoint.header.visual_layout)
        (name_ids,) = [_tokens(checkpoint.header.class_names)]
        t = clip.encode_text(name_ids)
        cosines = torch.nn.functional.cosine_similarity(f[:, None], t[None], dim=-1)

    difference = np.abs(100 * cosines.numpy() - checkpoint.tensors["reference.logits"])
    assert difference.max() < 1e-3  # float32 at a logit scale of 100


def _tokens(names: tuple[str, ...]) -> torch.Tensor:
    import open_clip

    return open_clip.tokenize([f"a photo of a {name}." for name in names])


def test_coop_learns_what_zero_shot_does_not_know(request_for: Callable[..., Request]) -> None:
    zero_shot = train(request_for("zero", method="zeroshot"))
    coop = train(request_for("coop", epochs=40, augment=False))

    assert zero_shot.metrics["test"].top1 < 0.8
    assert coop.metrics["test"].top1 > zero_shot.metrics["test"].top1 + 0.15
    assert coop.log[-1].loss < coop.log[0].loss


def test_vpt_learns_what_zero_shot_does_not_know(request_for: Callable[..., Request]) -> None:
    zero_shot = train(
        request_for("zero", method="zeroshot", method_options={"templates": ("a photo of a {}.",)})
    )
    vpt = train(request_for("vpt", method="vpt", epochs=20, augment=False))

    assert vpt.metrics["test"].top1 > zero_shot.metrics["test"].top1 + 0.15


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"augment": False},
        {"method": "vpt"},
        {"method_options": {"context_tokens": 2, "position": "middle"}},
        {"method_options": {"context_tokens": 2, "class_specific": True}},
        {"shots": 2},
        {"method": "vpt", "precision": "fp16"},  # skips steps while its loss scale is too high
    ],
)
def test_a_resumed_run_ends_in_the_same_bits(
    request_for: Callable[..., Request], changes: dict[str, Any]
) -> None:
    straight = train(request_for("straight", **changes))
    broken = request_for("broken", **changes)
    with pytest.raises(CrashError):
        train(broken, stop_at(epoch=2, step=1))

    resumed = train(request_for("broken", resume=True, **changes))

    assert same_prompts(straight, resumed)
    assert [(e.epoch, e.loss, e.accuracy) for e in straight.log] == [
        (e.epoch, e.loss, e.accuracy) for e in resumed.log
    ]


def test_a_run_resumed_with_two_threads_ends_in_the_same_bits(
    request_for: Callable[..., Request],
) -> None:
    torch.set_num_threads(2)

    test_a_resumed_run_ends_in_the_same_bits(request_for, {"method": "vpt"})

    assert torch.get_num_threads() == 2


def test_seeds_end_in_different_prompts(request_for: Callable[..., Request]) -> None:
    assert not same_prompts(train(request_for("a")), train(request_for("b", seed=2)))


def test_an_unfinished_run_is_no_checkpoint(request_for: Callable[..., Request]) -> None:
    request = request_for()
    with pytest.raises(CrashError):
        train(request, stop_at(epoch=3, step=2))

    with pytest.raises(CheckpointError, match="unfinished training run: finish it with"):
        PromptCheckpoint.load(request.output)
    with pytest.raises(CheckpointError):
        PromptCheckpoint.load(request.output / "resume.safetensors")


def test_an_unfinished_run_is_not_overwritten(request_for: Callable[..., Request]) -> None:
    with pytest.raises(CrashError):
        train(request_for(), stop_at(epoch=2, step=1))

    with pytest.raises(TrainingError, match=r"unfinished run\. Go on with --resume"):
        train(request_for())

    assert train(request_for(force=True)).log[0].epoch == 1


def test_a_finished_run_is_not_overwritten(request_for: Callable[..., Request]) -> None:
    first = train(request_for())

    with pytest.raises(TrainingError, match="finished run"):
        train(request_for())

    assert same_prompts(first, train(request_for(resume=True)))
    assert not same_prompts(first, train(request_for(force=True, seed=3)))


@pytest.mark.parametrize(
    "changes",
    [
        {"data": Path("nowhere")},
        {"method": "cop"},
        {"pretrained": "nowhere.safetensors"},
        {"method_options": {"context_tokens": 99}},
        {"evaluate": (Path("nowhere"),)},
    ],
)
def test_a_request_that_fails_deletes_and_leaves_nothing(
    request_for: Callable[..., Request], changes: dict[str, Any]
) -> None:
    first = train(request_for())
    content = first.path.read_bytes()

    with pytest.raises(VlpError):
        train(request_for(force=True, **changes))
    with pytest.raises(VlpError):
        train(request_for("new", **changes))

    assert first.path.read_bytes() == content
    assert not first.path.parent.with_name("new").exists()


def test_a_run_cannot_be_both_resumed_and_deleted(request_for: Callable[..., Request]) -> None:
    with pytest.raises(TrainingError, match="give one of them"):
        request_for(resume=True, force=True)


@pytest.mark.parametrize("finished", [False, True])
def test_a_run_does_not_resume_on_changed_pictures(
    request_for: Callable[..., Request], toy_data: Path, tmp_path: Path, finished: bool
) -> None:
    data = Path(shutil.copytree(toy_data, tmp_path / "data"))
    with contextlib.nullcontext() if finished else pytest.raises(CrashError):
        train(request_for(data=data), (lambda at: None) if finished else stop_at(2, 1))
    picture = data / "train/red fox/0.png"
    content = bytearray(picture.read_bytes())
    content[-1] ^= 1  # of the closing chunk's checksum: the same size, and the same pixels
    picture.write_bytes(content)

    with pytest.raises(TrainingError, match="data was"):
        train(request_for(data=data, resume=True))


def test_a_run_does_not_resume_on_a_model_of_other_activation_or_preprocessing(
    request_for: Callable[..., Request], open_clip_config: dict[str, Any], tmp_path: Path
) -> None:
    model = tmp_path / "changing.json"

    def request(resume: bool = False, **content: Any) -> Request:
        model.write_text(json.dumps({"model_cfg": open_clip_config, **content}))
        return request_for(model=str(model), resume=resume)

    with pytest.raises(CrashError):
        train(request(), stop_at(2, 1))

    with pytest.raises(TrainingError, match="preprocessing was"):
        train(request(resume=True, preprocess_cfg={"mean": [0.5, 0.5, 0.5]}))
    open_clip_config = {**open_clip_config, "quick_gelu": False}
    with pytest.raises(TrainingError, match="model configuration was"):
        train(request(resume=True))


def test_zero_shot_runs_are_resumed_with_the_same_options_only(
    request_for: Callable[..., Request],
) -> None:
    first = train(request_for(method="zeroshot"))

    assert train(request_for(method="zeroshot", resume=True)).metrics == first.metrics
    with pytest.raises(TrainingError, match=r"option templates was \["):
        train(
            request_for(method="zeroshot", method_options={"templates": ("the {}.",)}, resume=True)
        )
    with pytest.raises(TrainingError, match="method was 'zeroshot', now 'coop'"):
        train(request_for(resume=True))


def test_pictures_that_cannot_be_read_are_told_before_the_first_step(
    request_for: Callable[..., Request], toy_data: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(toy_data, tmp_path / "data"))
    for name in ("train/red fox/0.png", "test/red fox/1.png"):
        (data / name).write_text("no picture")

    with pytest.raises(DataError, match=r"2 of 30 images cannot be read"):
        train(request_for(data=data), stop_at(1, 1))


@pytest.mark.parametrize(
    ("changes", "warmup"),
    [({}, 1), ({"epochs": 1}, 0), ({"epochs": 2, "warmup_epochs": 0}, 0)],
)
def test_few_epochs_are_not_all_spent_warming_up(
    request_for: Callable[..., Request], changes: dict[str, Any], warmup: int
) -> None:
    outcome = train(request_for(**changes))

    options = outcome.checkpoint.header.provenance["options"]
    assert options["warmup_epochs"] == warmup
    assert outcome.log[-1].learning_rate > 1e-3


def test_zero_shot_reads_every_picture_once(
    request_for: Callable[..., Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    encode = PromptedClip.image_features
    monkeypatch.setattr(
        PromptedClip,
        "image_features",
        lambda self, pixels, prompts: seen.append(len(pixels)) or encode(self, pixels, prompts),
    )

    train(request_for(method="zeroshot"))

    assert sum(seen) == 12 + 8  # test split, reference images


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 2}, "seed was 1, now 2"),
        ({"epochs": 5}, "epochs was 4, now 5"),
        ({"method_options": {"context_tokens": 5}}, "option context_tokens was 4, now 5"),
        ({"shots": 3}, "data was .* shots was None, now 3"),
        ({"flip": False}, "flip was True, now False"),
    ],
)
@pytest.mark.parametrize("finished", [False, True])
def test_a_run_does_not_resume_with_other_options(
    request_for: Callable[..., Request], changes: dict[str, Any], message: str, finished: bool
) -> None:
    if finished:
        train(request_for())
    else:
        with pytest.raises(CrashError):
            train(request_for(), stop_at(epoch=2, step=1))

    with pytest.raises(TrainingError, match=message):
        train(request_for(resume=True, **changes))


def test_a_loss_that_is_no_number_stops_the_run(
    request_for: Callable[..., Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    good = Method.step

    def step(self: Method, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(1)
        logits, loss = good(self, inputs)
        return logits, loss * float("nan") if len(calls) == 5 else loss

    monkeypatch.setattr(Method, "step", step)

    with pytest.raises(TrainingError, match=r"loss is nan in epoch 2, batch 2"):
        train(request_for())

    assert not request_for().output.joinpath("prompt.safetensors").exists()


def test_other_data_goes_by_its_own_name_and_by_its_folder_where_that_is_taken(
    request_for: Callable[..., Request], toy_data: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(toy_data / "test", tmp_path / "caltech/test"))
    rows = [[f"{name}/{i}.png", label, name] for label, name in enumerate(COLOURS) for i in (0, 1)]
    coop = tmp_path / "caltech/test/split_zhou_Caltech101.json"
    coop.write_text(json.dumps({"test": rows}))

    outcome = train(request_for(epochs=1, evaluate=(toy_data, folder, coop, folder)))

    names = ["test", toy_data.name, "caltech/test", "Caltech101"]
    assert list(outcome.metrics) == names
    assert [outcome.metrics[name].images for name in names] == [12, 12, 12, 6]


def test_other_data_is_measured_too(request_for: Callable[..., Request], toy_data: Path) -> None:
    outcome = train(request_for(evaluate=(toy_data,)))

    assert outcome.metrics[toy_data.name] == outcome.metrics["test"]
    saved = PromptCheckpoint.load(outcome.path).header.provenance["metrics"]
    assert saved[toy_data.name]["top1"] == outcome.metrics["test"].top1


def test_a_finished_run_is_measured_on_other_data_with_resume(
    request_for: Callable[..., Request], toy_data: Path
) -> None:
    first = train(request_for())

    again = train(request_for(resume=True, evaluate=(toy_data,)))

    assert same_prompts(first, again)
    assert again.metrics[toy_data.name] == again.metrics["test"]
    saved = PromptCheckpoint.load(again.path).header.provenance["metrics"]
    assert set(saved) == {"test", toy_data.name}


def test_other_data_is_refused_before_training(
    request_for: Callable[..., Request], toy_data: Path, tmp_path: Path
) -> None:
    twins = [Path(shutil.copytree(toy_data, tmp_path / f"{i}/set/test")) for i in range(3)]
    new_classes = Path(shutil.copytree(toy_data, tmp_path / "new"))
    for split in ("train", "test"):
        (new_classes / split / "red fox").rename(new_classes / split / "cat")

    for error, message, changes in (
        (TrainingError, "told as 'set/test', which is taken", {"evaluate": tuple(twins)}),
        (
            ClassListError,
            "first difference at index 1: 'green frog' against",
            {
                "evaluate": (new_classes,),
                "method_options": {"context_tokens": 2, "class_specific": True},
            },
        ),
    ):
        with pytest.raises(error, match=message):
            train(request_for(**changes), stop_at(1, 1))


def test_data_without_splits_is_measured_on_what_was_not_drawn(
    request_for: Callable[..., Request], toy_data: Path
) -> None:
    outcome = train(request_for(data=toy_data / "train", shots=2))

    assert outcome.metrics["test"].images == 18 - 6
    assert outcome.checkpoint.header.provenance["training_images"] == 6


def test_class_specific_contexts_are_not_measured_on_other_classes(
    request_for: Callable[..., Request], toy_data: Path
) -> None:
    options = {"context_tokens": 2, "class_specific": True}
    outcome = train(request_for(method_options=options))
    dataset = load_dataset(toy_data / "train")
    renamed = type(dataset)(
        class_names=("blue whale", "cat", "red fox"), splits=dataset.splits, source=dataset.source
    )

    with pytest.raises(ClassListError, match="index 1: 'green frog' against 'cat'"):
        evaluate(outcome.checkpoint, renamed)


def test_zero_shot_accuracies_of_every_template_and_of_all(
    toy_data: Path, tiny_model: Any, request_for: Callable[..., Request]
) -> None:
    templates = ("a photo of a {}.", "art of the {}.", "an icon of a {}.")
    clip, _ = load_backbone(tiny_model.model, tiny_model.pretrained)
    run = train(request_for(method="zeroshot", method_options={"templates": templates}))

    accuracies = zero_shot_accuracies(
        clip,
        load_dataset(toy_data),
        templates=templates,
        preprocessing=run.checkpoint.header.preprocessing,
    )

    assert list(accuracies) == [*templates, ENSEMBLE]
    assert accuracies[ENSEMBLE] == run.metrics["test"]


def test_reference_images_are_spread_over_classes(toy_data: Path) -> None:
    samples = load_dataset(toy_data).split("test")

    assert [s.label for s in spread_samples(samples)] == [0, 0, 0, 1, 1, 1, 2, 2]
    assert len(spread_samples(samples[:3])) == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"shots": 0}, "shots must be at least 1"),
        ({"learning_rate": -1.0}, "learning rate must be above 0"),
        ({"warmup_epochs": 4}, "4 warm-up epochs leave none of 4 epochs"),
        ({"method": "zeroshot", "epochs": 3}, "learns nothing: leave out epochs"),
        ({"device": "tpu9"}, "device 'tpu9' cannot be used"),
    ],
)
def test_wrong_requests_say_what_is_wrong(
    request_for: Callable[..., Request], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        train(request_for(**changes))


def test_killed_runs_end_in_the_same_bits(
    request_for: Callable[..., Request], toy_data: Path, tiny_model: Any, tmp_path: Path
) -> None:
    """kill -9 at random moments of a real process, resumed with the same command line."""
    command = [
        *(sys.executable, "-m", "vlp_deploy", "train", str(toy_data), "--method", "coop"),
        *("--model", tiny_model.model, "--pretrained", tiny_model.pretrained, "--seed", "5"),
        *("-O", "context_tokens=4", "--epochs", "40", "--batch-size", "2", "--resume"),
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    seed = random.randrange(1 << 30)
    delays = random.Random(seed)
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    options = {"method_options": {"context_tokens": 4}, "epochs": 40, "batch_size": 2, "seed": 5}
    train(request_for("straight", learning_rate=None, **options))

    kills = 0
    for _ in range(2):
        done = len(_log_lines(killed))
        process = subprocess.Popen([*command, "--output", killed], env=environment)
        while process.poll() is None and len(_log_lines(killed)) <= done:
            time.sleep(0.01)
        time.sleep(delays.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        if not (killed / "prompt.safetensors").exists():
            with pytest.raises(CheckpointError):
                PromptCheckpoint.load(killed)
    subprocess.run([*command, "--output", killed], env=environment, check=True)

    assert kills > 0, f"every run ended before it was killed (delays of seed {seed})"
    one, other = PromptCheckpoint.load(straight), PromptCheckpoint.load(killed)
    for name, value in one.tensors.items():
        assert value.tobytes() == other.tensors[name].tobytes(), f"{name} (delays of seed {seed})"
    logs = [[json.loads(line) for line in _log_lines(folder)] for folder in (straight, killed)]
    timeless = [[{**line, "seconds": 0} for line in log] for log in logs]
    assert timeless[0] == timeless[1]
    assert [line["epoch"] for line in logs[1]] == list(range(1, 41))
    leftovers = [path.name for path in killed.iterdir() if path.name.startswith(".")]
    assert leftovers == []


def _log_lines(folder: Path) -> list[str]:
    path = folder / "log.jsonl"
    return path.read_text().splitlines() if path.exists() else []
