"""DPC: what it mines, what it minimises, how both prompts are served, and what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.train.checkpoints import LABELS, NAMES, PIXELS, build, checkpoint_of, enlarge
from vlp_deploy.classes.dual import base_rows
from vlp_deploy.data.dataset import load_dataset
from vlp_deploy.errors import ClassListError, TrainingError
from vlp_deploy.formats.architecture import Preprocessing
from vlp_train.clip import Clip
from vlp_train.dual import DualClip
from vlp_train.fit import fit
from vlp_train.forward import prompted_clip
from vlp_train.images import ImageSet
from vlp_train.methods import METHODS, Task, method_config
from vlp_train.methods.base import Inputs, Training
from vlp_train.methods.dpc import Dpc, contrastive_loss, hard_negatives
from vlp_train.run import Run

BACKBONES = ["coop", "ivlp", "maple", "promptsrc"]
TOY = ("red fox", "green frog", "blue whale")  # the toy data's classes, in another order
TRAINING = Training(epochs=2, learning_rate=0.01, batch_size=4)


def dpc_on(
    clip: Clip, backbone: str, *, names: tuple[str, ...] = NAMES, seed: int = 1, **options: Any
) -> Dpc:
    """DPC on an untrained backbone with large prompts."""
    stage1 = build(clip, backbone)
    enlarge(stage1, 8.0)
    task = Task(
        clip=clip,
        class_names=names,
        preprocessing=Preprocessing(image_size=16),
        seed=seed,
        stage1=checkpoint_of(stage1, backbone),
    )
    method = METHODS["dpc"].method(method_config("dpc", options), task)
    assert isinstance(method, Dpc)
    return method


def toy_images(data: Path, **options: Any) -> ImageSet:
    return ImageSet(load_dataset(data).split("train"), Preprocessing(image_size=16), **options)


def part(method: Dpc, prefix: str) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(prefix): value.detach()
        for name, value in method.prompts().items()
        if name.startswith(prefix)
    }


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_second_prompt_starts_as_the_first_and_learns_alone(
    tiny_clip: Clip, toy_data: Path, backbone: str
) -> None:
    method = dpc_on(tiny_clip, backbone)
    first, second = part(method, "dpc.backbone."), part(method, "dpc.parallel.")
    assert first.keys() == second.keys() == build(tiny_clip, backbone).prompts().keys()
    assert all(first[name].equal(second[name]) for name in first)
    assert method.learns_image == ("visual.prompts" in first)

    method.start(toy_images(toy_data), TRAINING)
    images = torch.from_numpy(PIXELS[:4])
    features = images if method.learns_image else method.image_features(images).detach()
    _, loss = method.step(Inputs(images=features, class_features=None, labels=LABELS, epoch=0))
    loss.backward()

    learned = dict(method.named_parameters())
    assert {f"parallel.{name.replace('.', '_')}" for name in first} == learned.keys()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in learned.values())
    assert all(p.grad is None for p in tiny_clip.parameters())


def test_maple_goes_on_from_projected_prompts(tiny_clip: Clip) -> None:
    stage1 = build(tiny_clip, "maple")
    expected = checkpoint_of(stage1, "maple").tensors["visual.prompts"]
    task = Task(
        clip=tiny_clip,
        class_names=NAMES,
        preprocessing=Preprocessing(image_size=16),
        seed=1,
        stage1=checkpoint_of(stage1, "maple"),
    )
    method = METHODS["dpc"].method(method_config("dpc", {}), task)

    found = method.prompts()["dpc.parallel.visual.prompts"].detach().numpy()
    assert np.array_equal(found, expected)


def negatives(
    logits: Any, labels: list[int], *, count: int, usable: Any = None, seed: int = 0
) -> list[int]:
    logits = np.array(logits, np.float32)
    every = np.ones(logits.shape[1], np.bool_)
    return hard_negatives(
        logits,
        labels,
        count=count,
        usable=every if usable is None else np.array(usable),
        random=np.random.default_rng(seed),
    )


def test_negatives_are_the_likely_wrong_classes_once_each() -> None:
    likely_first = [9, 8, 7, 6, 5, 4, 3, 2]  # class 0 first

    found = negatives([likely_first, likely_first], [0, 7], count=4)

    # image 0: 0 is its own, then 1, 2, 3. Image 1: 0 is in the batch, 1 to 3 are taken: two drawn
    assert found[:3] == [1, 2, 3]
    assert len(found) == 5
    assert set(found[3:]) < {4, 5, 6}


def test_an_image_has_at_most_one_negative_less_than_it_has_likely_classes() -> None:
    # its own class is not among the likely ones
    assert negatives([[9, 8, 7, 6, 0]], [4], count=3) == [0, 1]


def test_no_class_of_the_batch_is_a_negative_and_none_comes_twice() -> None:
    random = np.random.default_rng(1)
    for classes in (2, 3, 5, 20):
        for count in (2, 8, 50):
            labels = random.integers(0, classes, 4).tolist()
            found = negatives(random.normal(size=(4, classes)), labels, count=count)
            assert len(set(found)) == len(found)
            assert not set(found) & set(labels)
            assert set(found) <= set(range(classes))


def test_more_likely_classes_than_there_are_is_all_of_them() -> None:
    assert sorted(negatives([[1, 2, 3, 4, 5]], [2], count=8)) == [0, 1, 3, 4]


def test_each_image_gets_two_negatives_while_there_are_unused_classes() -> None:
    same = [[5, 4, 3, 2, 1, 0]] * 3

    found = negatives(same, [0, 0, 0], count=2)

    assert sorted(found) == [1, 2, 3, 4, 5]  # 2 + 2 + the last one
    assert negatives([[1, 0]], [0], count=2) == [1]
    assert negatives([[1]], [0], count=2) == []


def test_a_class_without_images_is_no_negative() -> None:
    found = negatives([[5, 4, 3, 2]], [0], count=4, usable=[True, False, True, True])

    assert found == [2, 3]


def test_the_loss_is_contrastive_both_ways() -> None:
    logits = torch.tensor(np.random.default_rng(0).normal(0, 3, (3, 6)))
    labels = torch.tensor([4, 1, 5])
    scores, right = logits[:, labels], torch.arange(3)

    expected = (F.cross_entropy(scores, right) + F.cross_entropy(scores.T, right)) / 2

    assert contrastive_loss(logits, labels).item() == pytest.approx(expected.item())


def test_two_images_of_a_class_are_both_right() -> None:
    logits = torch.tensor([[2.0, 0.5, 9.0], [1.0, 0.0, 9.0], [0.0, 3.0, 9.0]])
    labels = torch.tensor([0, 0, 1])
    present = logits[:, :2]
    of_classes = present.T.log_softmax(dim=1)  # class 0 has images 0 and 1

    expected = F.cross_entropy(present, labels) / 2
    expected += -((of_classes[0, 0] + of_classes[0, 1]) / 2 + of_classes[1, 2]) / 4

    assert contrastive_loss(logits, labels).item() == pytest.approx(expected.item())


@pytest.mark.parametrize(("backbone", "augment"), [("coop", False), ("coop", True), ("ivlp", True)])
def test_a_step_contrasts_the_batch_with_images_of_its_negatives(
    tiny_clip: Clip, toy_data: Path, backbone: str, augment: bool
) -> None:
    method = dpc_on(tiny_clip, backbone, names=TOY)
    images = toy_images(toy_data, augment=augment)
    method.start(images, TRAINING)
    seen: list[torch.Tensor] = []
    features_of = method.prompted.image_features

    def spying(pixels: torch.Tensor, prompts: Any) -> torch.Tensor:
        seen.append(pixels)
        return features_of(pixels, prompts)

    indices = np.array([0, 1])  # both of class 0
    (batch,) = images.batches([indices], epoch=0)
    given = batch.pixels if method.learns_image else method.image_features(batch.pixels).detach()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(method.prompted, "image_features", spying)
        logits, loss = method.step(
            Inputs(images=given, class_features=None, labels=batch.labels, epoch=0)
        )

    drawn = seen[-1][2:] if method.learns_image else seen[-1]
    assert len(drawn) == 2  # one of each other class
    own = {label: [] for label in (0, 1, 2)}
    for each in images.batches([np.array([i]) for i in range(len(images))], epoch=0):
        own[int(each.labels)].append(each.pixels[0])
    classes = [k for pixels in drawn for k in own if any(pixels.equal(p) for p in own[k])]
    assert sorted(classes) == [1, 2]  # training images, in the views of this epoch
    assert logits.shape == (2, 3)
    assert torch.isfinite(loss)


def test_the_official_steps_are_larger_by_the_weight_squared(tiny_clip: Clip) -> None:
    def factor(**options: Any) -> float:
        (group,) = dpc_on(tiny_clip, "coop", **options).parameter_groups()
        return float(group["rate_factor"])

    assert factor() == 1
    assert factor(lr_mult=3) == 3
    assert factor(preset="official_converse", mixing_weight=0.5) == pytest.approx(4)
    assert factor(preset="official_converse") == pytest.approx(25)

    # the official parameter is M = w P' + (1 - w) P, and P' is what the model reads
    weight, first = 0.2, torch.tensor([0.3, -1.0])
    mixed = torch.nn.Parameter(first.clone())
    direct = torch.nn.Parameter(first.clone())
    official = torch.optim.SGD([mixed], lr=0.01, momentum=0.9)
    ours = torch.optim.SGD([direct], lr=0.01 / weight**2, momentum=0.9)
    for _ in range(3):
        for optimiser, read in (
            (official, lambda: (mixed - (1 - weight) * first) / weight),
            (ours, lambda: direct),
        ):
            optimiser.zero_grad()
            (read() - 2).square().sum().backward()
            optimiser.step()
    assert ((mixed - (1 - weight) * first) / weight).allclose(direct, rtol=1e-4)


def test_a_resumed_run_ends_in_the_same_bits(
    tiny_clip: Clip, toy_data: Path, tmp_path: Path
) -> None:
    def train_epochs(run: Run, *, stop: int | None = None) -> Dpc:
        method = dpc_on(tiny_clip, "coop", names=TOY)
        with pytest.MonkeyPatch.context() as patch:
            if stop is not None:
                patch.setattr("vlp_train.fit.range", lambda a, b: range(stop), raising=False)
            fit(
                method,
                toy_images(toy_data, augment=True),
                run,
                training=replace(TRAINING, warmup_epochs=0),
                precision="fp32",
                options={},
                report=lambda step: None,
            )
        return method

    straight = train_epochs(Run(tmp_path / "straight"))
    broken = train_epochs(Run(tmp_path / "broken"), stop=1)
    resumed = train_epochs(Run(tmp_path / "broken"))

    expected = part(straight, "dpc.parallel.")["text.prompts"]
    assert not expected.equal(part(straight, "dpc.backbone.")["text.prompts"])
    assert not expected.equal(part(broken, "dpc.parallel.")["text.prompts"])
    assert expected.equal(part(resumed, "dpc.parallel.")["text.prompts"])


def served(method: Dpc, names: tuple[str, ...], weight: float, offset: float = 0.0) -> DualClip:
    """The forward pass of a checkpoint of `method`, for any classes."""
    header = checkpoint_of(method, "dpc").header
    structure = msgspec.structs.replace(
        method.prompted.structure, mixing_weight=weight, base_offset=offset
    )
    header = msgspec.structs.replace(header, structure=structure, base_classes=NAMES)
    found = prompted_clip(header, method.prompted.clip, names)
    assert isinstance(found, DualClip)
    return found


@torch.no_grad()
def answers(prompted: Any, prompts: Any) -> torch.Tensor:
    return prompted.predict(torch.from_numpy(PIXELS), prompts, prompted.classes(prompts))


def apart(clip: Clip, backbone: str) -> Dpc:
    """DPC whose prompts differ a lot."""
    method = dpc_on(clip, backbone)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.neg_()
    return method


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_weight_leads_from_the_first_prompt_to_the_second(
    tiny_clip: Clip, backbone: str
) -> None:
    method = apart(tiny_clip, backbone)
    prompts, alone = method.prompts(), build(tiny_clip, backbone).prompted

    first = answers(alone, part(method, "dpc.backbone."))
    second = answers(alone, part(method, "dpc.parallel."))
    assert (first - second).abs().max() > 1
    assert answers(served(method, NAMES, 1.0), prompts).equal(second)
    assert (answers(served(method, NAMES, 1e-7), prompts) - first).abs().max() < 1e-2
    half = {
        name: (value + part(method, "dpc.parallel.")[name]) / 2
        for name, value in part(method, "dpc.backbone.").items()
    }
    mixture = answers(served(method, NAMES, 0.5), prompts)
    assert (mixture - answers(alone, half)).abs().max() < 1e-3  # float32, at a scale of 100


@pytest.mark.parametrize("backbone", BACKBONES)
def test_new_classes_are_answered_by_the_first_stage_bit_for_bit(
    tiny_clip: Clip, backbone: str
) -> None:
    method, new = apart(tiny_clip, backbone), ("tree", "stone", "river", "cloud")
    header = checkpoint_of(build(tiny_clip, backbone), backbone).header

    stage1 = prompted_clip(header, tiny_clip, new)

    expected = answers(stage1, part(method, "dpc.backbone."))
    assert answers(served(method, new, 0.3), method.prompts()).equal(expected)


def test_base_and_new_classes_side_by_side_have_their_own_prompts(tiny_clip: Clip) -> None:
    method, both = apart(tiny_clip, "coop"), ("tree", "Green Frog", "red fox")
    with pytest.warns(UserWarning, match=r"'Green Frog', 'red fox' were tuned on and 'tree'.*0\.5"):
        mixed = served(method, both, 0.3, offset=0.5)

    found = answers(mixed, method.prompts())

    base = answers(served(method, both[1:], 0.3), method.prompts())
    new = answers(served(method, both[:1], 0.3), method.prompts())
    assert (found[:, 1:] - base - 0.5).abs().max() < 1e-3  # float32, at a scale of 100
    assert (found[:, :1] - new).abs().max() < 1e-3


def test_names_that_the_text_tower_reads_alike_are_one_class() -> None:
    names = [("737-800",), ("Sea_Lion",), ("lion", "sea lion"), ("sea",), ("lion",)]

    found = base_rows(names, ["7 3 7 - 8 0 0", "sea lion"])  # as an import recovers them

    assert found.tolist() == [True, True, True, False, False]


def test_base_and_new_classes_side_by_side_are_refused_with_visual_prompts(
    tiny_clip: Clip,
) -> None:
    with pytest.raises(ClassListError, match=r"'red fox' were tuned on and 'tree' were not"):
        served(apart(tiny_clip, "ivlp"), ("tree", "red fox"), 0.3)


@pytest.mark.parametrize(
    ("names", "backbone", "options", "message"),
    [
        (("red fox", "tree", "blue whale"), "coop", {}, "3 classes.* has 3.*'green_frog'"),
        (NAMES[:2], "coop", {}, "3 classes and the data has 2, which are others"),
        (NAMES, "vpt", {}, "a prompt of vpt .visual.prompts.*needs text prompts"),
        (NAMES, "zeroshot", {}, "a prompt of zeroshot"),
    ],
)
def test_a_first_stage_that_does_not_fit_is_refused(
    tiny_clip: Clip, names: tuple[str, ...], backbone: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        dpc_on(tiny_clip, backbone, names=names, **options)


def test_class_specific_contexts_are_refused(tiny_clip: Clip) -> None:
    stage1 = checkpoint_of(build(tiny_clip, "coop", class_specific=True), "coop")
    task = Task(
        clip=tiny_clip,
        class_names=NAMES,
        preprocessing=Preprocessing(image_size=16),
        seed=1,
        stage1=stage1,
    )

    with pytest.raises(TrainingError, match="without class_specific"):
        METHODS["dpc"].method(method_config("dpc", {}), task)


def test_without_a_first_stage_it_says_how_to_give_one(tiny_clip: Clip) -> None:
    with pytest.raises(TrainingError, match="give --stage1 RUN"):
        build(tiny_clip, "dpc")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hard_negatives": 1}, "hard_negatives must be at least 2, got 1"),
        ({"mixing_weight": 0}, "mixing_weight must be above 0, at most 1, got 0"),
        ({"mixing_weight": 1.5}, "at most 1, got 1.5"),
        ({"lr_mult": 0}, "lr_mult must be above 0"),
        ({"preset": "official_converse", "lr_mult": 2}, "give one of them"),
        ({"preset": "official"}, "Invalid enum value 'official'"),
    ],
)
def test_wrong_options_say_what_is_wrong(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        method_config("dpc", options)
