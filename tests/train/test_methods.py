"""The table of methods, their options, and what each one learns."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from vlp_deploy.classes.tokenizer import Tokenizer
from vlp_deploy.data.dataset import load_dataset
from vlp_deploy.errors import TrainingError
from vlp_deploy.formats.architecture import ClipConfig, Preprocessing, TextLayout, VisualLayout
from vlp_deploy.formats.methods import METHODS as KNOWN_METHODS
from vlp_train.clip import Clip
from vlp_train.fit import fit
from vlp_train.images import ImageSet
from vlp_train.methods import METHODS, Method, Task, method_config, method_entry
from vlp_train.methods.base import Inputs, Training
from vlp_train.methods.coop import CoOp, CoOpConfig
from vlp_train.run import Run

NAMES = ("red fox", "green_frog", "blue whale")
PIXELS = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 3, 16, 16), dtype=np.uint8))


def build(clip: Clip, name: str, seed: int = 1, **options: Any) -> Method:
    task = Task(
        clip=clip,
        class_names=NAMES,
        preprocessing=Preprocessing(image_size=16),
        seed=seed,
    )
    return method_entry(name).method(method_config(name, options), task)


def loss_of(method: Method) -> torch.Tensor:
    images = PIXELS if method.learns_image else method.image_features(PIXELS)
    labels = torch.tensor([0, 1, 2, 0])
    _, loss = method.step(Inputs(images=images, class_features=None, labels=labels, epoch=0))
    return loss


def test_methods_that_train_are_those_that_vlp_methods_lists() -> None:
    assert METHODS.keys() == KNOWN_METHODS.keys()


# dpc goes on from one of the others: test_methods_dpc.py
@pytest.mark.parametrize("name", [name for name in METHODS if name != "dpc"])
def test_a_method_learns_its_prompts_and_nothing_else(tiny_clip: Clip, name: str) -> None:
    method = build(tiny_clip, name)
    parameters = list(method.parameters())

    if parameters:
        loss_of(method).backward()

    assert bool(parameters) == (method.learns_text or method.learns_image)
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in parameters)
    assert all(p.grad is None and not p.requires_grad for p in tiny_clip.parameters())
    assert all(prompt.requires_grad for prompt in method.prompts().values())


@pytest.mark.parametrize("name", ["coop", "vpt"])
def test_initial_prompts_are_a_function_of_the_seed(tiny_clip: Clip, name: str) -> None:
    one, again, other = (
        next(iter(build(tiny_clip, name, seed=seed).parameters())) for seed in (1, 1, 2)
    )

    assert one.equal(again)
    assert not one.equal(other)
    assert 0.015 < one.std() < 0.025  # N(0, 0.02²)


def test_loss_is_the_cross_entropy_of_scaled_cosines(tiny_clip: Clip) -> None:
    method = build(tiny_clip, "coop", context_tokens=4)
    images, texts = method.image_features(PIXELS), method.class_features()
    cosines = (images @ texts.T).double()
    probabilities = (cosines * tiny_clip.logit_scale.exp().double()).softmax(dim=1)
    expected = -probabilities[[0, 1, 2, 3], [0, 1, 2, 0]].log().mean()

    assert loss_of(method).item() == pytest.approx(expected.item(), rel=1e-4)
    assert cosines.abs().max() <= 1 + 1e-6


def test_coop_from_words_starts_as_the_zero_shot_sentence(tiny_clip: Clip) -> None:
    coop = build(tiny_clip, "coop", words="a photo of a")
    zero_shot = build(tiny_clip, "zeroshot", templates=("a photo of a {}.",))

    with torch.no_grad():
        difference = (coop.class_features() - zero_shot.class_features()).abs().max()

    assert difference < 1e-5
    assert coop.prompted.text_layout == TextLayout(tokens=4)
    assert coop.prompted.templates == ("a photo of a {}.",)


def test_coop_context_of_words_is_their_embeddings(tiny_clip: Clip) -> None:
    coop = build(tiny_clip, "coop", words="a photo of a")
    ids = Tokenizer.default().encode("a photo of a")

    assert coop.prompts()["text.prompts"][0].equal(tiny_clip.token_embedding.weight[ids])


def test_coop_has_sixteen_tokens_unless_told_otherwise(tiny_clip: Clip) -> None:
    assert build(tiny_clip, "coop").prompts()["text.prompts"].shape == (1, 16, 24)
    assert build(tiny_clip, "coop", context_tokens="4").prompts()["text.prompts"].shape[1] == 4


def test_coop_class_specific_contexts_are_one_a_class(tiny_clip: Clip) -> None:
    coop = build(tiny_clip, "coop", context_tokens=2, class_specific="true")

    assert coop.prompts()["text.class_prompts"].shape == (3, 2, 24)


@pytest.mark.parametrize(
    ("options", "layout", "depth"),
    [
        ({}, VisualLayout(tokens=8, pre_ln=True, survive_last=False), 3),
        ({"depth": 1}, VisualLayout(tokens=8, pre_ln=True, survive_last=True), 1),
        (
            {"depth": 2, "survive_last": False, "pre_ln": False, "visual_tokens": 4},
            VisualLayout(tokens=4, pre_ln=False, survive_last=False),
            2,
        ),
    ],
)
def test_vpt_layouts(
    tiny_clip: Clip, options: dict[str, Any], layout: VisualLayout, depth: int
) -> None:
    vpt = build(tiny_clip, "vpt", **options)

    assert vpt.prompted.visual_layout == layout
    assert vpt.prompts()["visual.prompts"].shape == (depth, layout.tokens, 32)


def test_vpt_deeper_than_the_tower_is_refused(tiny_clip: Clip) -> None:
    with pytest.raises(TrainingError, match="more prompted layers than the image tower's 3"):
        build(tiny_clip, "vpt", depth=4)


def test_coop_contexts_are_as_long_as_the_tower_reads(tiny_config: ClipConfig) -> None:
    text = msgspec.structs.replace(tiny_config.text, context_length=10)
    clip = Clip(msgspec.structs.replace(tiny_config, text=text))

    with pytest.raises(TrainingError, match=r"tower reads 10 tokens.*Give at most 6"):
        build(clip, "coop", context_tokens=7)


def test_logits_are_float32_also_in_half_precision(tiny_clip: Clip) -> None:
    method = build(tiny_clip, "vpt")

    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        images, classes = method.image_features(PIXELS), method.class_features()
        logits = method.logits(images, classes)

    assert logits.dtype == images.dtype == classes.dtype == torch.float32
    exact = tiny_clip.logit_scale.exp().double() * images.double() @ classes.double().T
    assert (logits - exact).abs().max() < 1e-4  # bfloat16 has steps of 0.25 at 50


class WeightedCoOp(CoOp):
    """What other methods need: images in the loss, groups, a state that an epoch's end changes."""

    def __init__(self, config: CoOpConfig, task: Task) -> None:
        super().__init__(config, task)
        self.register_buffer("mean", torch.zeros_like(self.context))
        self.idle = torch.nn.Parameter(torch.ones(2))

    def step(self, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        logits, loss = super().step(inputs)
        return logits, loss * (1 + inputs.epoch) + self.class_features().square().mean()

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": [self.context], "weight_decay": 0.0}, {"params": [self.idle]}]

    def end_of_epoch(self, epoch: int) -> None:
        self.mean += self.context.detach() / (1 + epoch)  # type: ignore[has-type]


def test_a_method_may_have_a_state_and_parameters_that_never_move(
    tiny_clip: Clip, toy_data: Path, tmp_path: Path
) -> None:
    preprocessing = Preprocessing(image_size=16)
    images = ImageSet(load_dataset(toy_data).split("train"), preprocessing)
    task = Task(clip=tiny_clip, class_names=NAMES, preprocessing=preprocessing, seed=1)

    def state_after(run: Run, epochs: int) -> dict[str, torch.Tensor]:
        method = WeightedCoOp(CoOpConfig(context_tokens=2), task)
        training = Training(epochs=epochs, learning_rate=0.01, batch_size=6)
        fit(
            method,
            images,
            run,
            training=training,
            precision="fp32",
            options={},
            report=lambda step: None,
        )
        return method.state_dict()

    straight, broken = Run(tmp_path / "straight"), Run(tmp_path / "broken")
    expected = state_after(straight, 2)
    # the schedule depends on the number of epochs: stop the same training after its first one
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vlp_train.fit.range", lambda start, stop: [start], raising=False)
        state_after(broken, 2)
    resumed = state_after(broken, 2)

    assert expected["mean"].abs().max() > 0
    assert expected["idle"].equal(torch.ones(2))
    assert expected.keys() == resumed.keys()
    assert all(expected[name].equal(resumed[name]) for name in expected)


def test_zero_shot_averages_normalised_templates(tiny_clip: Clip) -> None:
    templates = ("a photo of a {}.", "art of the {}.")
    single = [build(tiny_clip, "zeroshot", templates=(t,)).class_features() for t in templates]
    mean = (single[0] + single[1]) / 2

    ensemble = build(tiny_clip, "zeroshot", templates=templates).class_features()

    assert (ensemble - mean / mean.norm(dim=1, keepdim=True)).abs().max() < 1e-6


def test_zero_shot_has_at_least_three_templates_by_default(tiny_clip: Clip) -> None:
    assert len(build(tiny_clip, "zeroshot").prompted.templates) >= 3


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cop", {}, "no method 'cop'. Did you mean 'coop'"),
        ("coop", {"context_token": 4}, "Did you mean 'context_tokens'"),
        ("coop", {"context_tokens": 0}, "must be at least 1, got 0"),
        ("coop", {"context_tokens": "four"}, "Expected `int"),
        ("coop", {"words": "a photo", "context_tokens": 4}, "does not fit words='a photo'"),
        ("coop", {"words": "a photo", "class_specific": True}, "leave words out"),
        ("coop", {"position": "left"}, "Invalid enum value 'left'"),
        ("coop", {"templates": ("a {}.",)}, "no option of coop 'templates'"),
        ("vpt", {"visual_tokens": 0}, "at least 1, got 0"),
        ("vpt", {"depth": 0}, "at least 1 layer"),
        ("zeroshot", {"templates": ()}, "at least one sentence"),
        ("zeroshot", {"templates": ("a {}.", "a photo.")}, "'a photo.' must hold {} exactly once"),
        ("vpt", {"templates": ("a {} and a {}.",)}, "must hold {} exactly once"),
    ],
)
def test_wrong_options_say_what_is_wrong(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        method_config(name, options)


@pytest.mark.parametrize(
    ("shots", "epochs"), [(1, 50), (2, 100), (4, 100), (8, 200), (16, 200), (None, 50)]
)
def test_coop_trains_longer_on_more_shots(shots: int | None, epochs: int) -> None:
    training = method_config("coop", {}).training(shots)

    assert (training.epochs, training.learning_rate, training.batch_size) == (epochs, 0.002, 32)
