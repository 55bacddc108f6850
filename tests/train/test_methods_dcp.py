"""DCP: prompts of both towers that change each other, and what stands in for the batch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.train.checkpoints import LOGIT_TOLERANCE, PIXELS, build, checkpoint_of, inputs
from tests.train.conftest import random_weights
from vlp_deploy.data.dataset import load_dataset
from vlp_deploy.errors import TrainingError
from vlp_deploy.formats.architecture import Preprocessing
from vlp_export.exporter import build_bundle
from vlp_train.clip import Clip
from vlp_train.coupled import attend_across
from vlp_train.forward import prompted_clip
from vlp_train.images import ImageSet
from vlp_train.methods.base import Inputs
from vlp_train.methods.dcp import Dcp
from vlp_train.prompted import Prompts
from vlp_train.reference import references

IMAGES = torch.from_numpy(PIXELS)
ROUNDING = 1e-6  # of an embedding of length 1, in float32


def make(clip: Clip, *, learned: bool = True, **options: Any) -> Dcp:
    """A method; `learned` makes prompts as large as the tokens, so that each of them matters."""
    method = build(clip, "dcp", **{"tokens": 4, **options})
    assert isinstance(method, Dcp)
    if learned:
        with torch.no_grad():
            method.text.mul_(30)
            method.visual.mul_(30)
    return method


def detached(method: Dcp) -> Prompts:
    return {name: value.detach() for name, value in method.prompts().items()}


def finished(method: Dcp, folder: Path) -> Dcp:
    samples = load_dataset(folder).split("train")
    with torch.no_grad():
        method.finish(ImageSet(samples, Preprocessing(image_size=16), augment=True))
    return method


def features(method: Dcp, pixels: Tensor, context: Any, more: Prompts | None = None) -> Tensor:
    prompts = {**detached(method), **(more or {})}
    with torch.no_grad():
        return method.prompted.in_context(context).image_features(pixels, prompts)


def test_defaults_are_the_official_ones(tiny_clip: Clip) -> None:
    method = build(tiny_clip, "dcp")
    training = method.config.training(16)

    assert method.text.shape == (1, 16, 24)
    assert method.visual.shape == (16, 32)
    assert (training.epochs, training.learning_rate, training.batch_size) == (20, 0.0035, 4)
    assert method.prompted.structure.depth == 2  # all blocks but the first of 3
    assert not method.data_parallel
    with pytest.raises(TrainingError, match=r"depth of 3 asks for more .* tower's 2"):
        build(tiny_clip, "dcp", depth=3)
    with pytest.raises(TrainingError, match="use training_context=batch"):
        build(tiny_clip, "dcp", text_update=True, training_context="per_sample")


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("text_update", [True, False])
def test_every_tensor_of_every_coupled_block_learns(
    tiny_clip: Clip, shared: bool, text_update: bool
) -> None:
    method = make(tiny_clip, shared=shared, text_update=text_update)

    _, loss = method.step(inputs(method))
    loss.backward()

    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad.flatten(1).abs().amax(dim=1) > 0).all(), name
        if name not in ("text", "visual"):
            assert len(parameter) == (1 if shared else 2)
    assert all(p.grad is None for p in tiny_clip.parameters())


def test_a_half_of_the_coupling_is_attention_and_a_perceptron_of_torch(tiny_clip: Clip) -> None:
    method = make(tiny_clip, seed=3)
    weights = {
        name.removeprefix("cmpa."): value[0]
        for name, value in detached(method).items()
        if name.startswith("cmpa.") and name != "cmpa.visual_prompts"
    }
    for name, value in weights.items():  # biases start at 0, norms at 1: nothing would be seen
        weights[name] = value + 0.1 * torch.randn(value.shape, generator=torch.manual_seed(0))
    attention = nn.MultiheadAttention(32, 2, batch_first=True)
    attention.load_state_dict(
        {
            "in_proj_weight": weights["attention.in_proj_weight"],
            "in_proj_bias": weights["attention.in_proj_bias"],
            "out_proj.weight": weights["attention.out_proj_weight"],
            "out_proj.bias": weights["attention.out_proj_bias"],
        }
    )
    own, others = torch.randn(3, 4, 32), torch.randn(1, 4, 24)

    found = attend_across(own, others, weights, heads=2, projection="text_to_visual")

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (32,), weights[f"{name}.weight"], weights[f"{name}.bias"])

    asked = others @ weights["text_to_visual.weight"].T + weights["text_to_visual.bias"]
    keys = norm(own, "norm_1")
    queries = norm(asked, "norm_1").expand_as(keys)
    expected = own + attention(queries, keys, keys)[0]
    hidden = norm(expected, "norm_2") @ weights["mlp.c_fc_weight"].T + weights["mlp.c_fc_bias"]
    hidden = hidden * (1.702 * hidden).sigmoid()
    expected = expected + hidden @ weights["mlp.c_proj_weight"].T + weights["mlp.c_proj_bias"]
    assert (found - expected).abs().max() < 1e-5


@pytest.mark.parametrize("fusing", ["mean", "first", "max"])
def test_a_batch_of_one_is_the_image_itself(tiny_clip: Clip, fusing: str) -> None:
    method = make(tiny_clip, fusing=fusing)

    alone = features(method, IMAGES, "per_sample")

    for index in range(3):
        one = features(method, IMAGES[index : index + 1], "batch")
        assert (one - alone[index]).abs().max() < ROUNDING
    together = features(method, IMAGES, "batch")
    assert (together - alone).abs().max() > 0.01  # neighbours matter there


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("fusing", ["mean", "first", "max"])
def test_frozen_over_a_batch_is_that_batch(tiny_clip: Clip, fusing: str, shared: bool) -> None:
    method = make(tiny_clip, fusing=fusing, shared=shared)
    pieces = [IMAGES[:3], IMAGES[3:4], IMAGES[4:]]

    frozen = method.prompted.freeze(detached(method), lambda: pieces)

    assert frozen["visual.prompts"].shape == (3, 4, 32)
    assert frozen["visual.prompts"][0].equal(method.visual)
    constant = features(method, IMAGES, "frozen", frozen)
    assert (constant - features(method, IMAGES, "batch")).abs().max() < ROUNDING


def test_classes_know_no_images_and_images_know_no_classes(tiny_clip: Clip, toy_data: Path) -> None:
    method = finished(make(tiny_clip), toy_data)
    header, prompts = checkpoint_of(method, "dcp").header, detached(method)
    others = prompted_clip(header, tiny_clip, ["one thing", "another"])

    with torch.no_grad():
        classes = method.prompted.class_features(prompts)
        for context in ("frozen", "per_sample", "batch"):
            own = method.prompted.in_context(context)
            assert own.classes(prompts).equal(classes)
            same = others.in_context(context).image_features(IMAGES, prompts)
            assert same.equal(own.image_features(IMAGES, prompts))


def test_training_ends_in_the_context_of_the_training_images(
    tiny_clip: Clip, toy_data: Path
) -> None:
    method = make(tiny_clip)
    samples = load_dataset(toy_data).split("train")
    images = ImageSet(samples, Preprocessing(image_size=16))
    (batch,) = images.in_order(len(samples))
    together = features(method, batch.pixels, "batch")

    finished(method, toy_data)

    assert method.prompted.structure.context == "frozen"
    found = features(method, batch.pixels, "frozen")
    assert (found - together).abs().max() < ROUNDING
    answers = references(method.prompted, detached(method), PIXELS)
    assert set(answers) == {
        "reference.pixels",
        "reference.logits",
        "reference.per_sample_logits",
    }
    live, frozen = answers["reference.per_sample_logits"], answers["reference.logits"]
    assert np.abs(live - frozen).max() > 0.1


def test_trained_by_sample_sees_no_neighbours(tiny_clip: Clip) -> None:
    method = make(tiny_clip, training_context="per_sample")
    four = inputs(method)
    one = Inputs(images=four.images[:1], class_features=None, labels=four.labels[:1], epoch=0)

    assert (method.step(four)[0][:1] - method.step(one)[0]).abs().max() < 1e-4
    official = make(tiny_clip)
    assert (official.step(four)[0][:1] - official.step(one)[0]).abs().max() > 0.1


def test_updated_text_is_served_by_plain_tensors(tiny_clip: Clip, toy_data: Path) -> None:
    method = make(tiny_clip, text_update=True)
    samples = load_dataset(toy_data).split("train")
    (batch,) = ImageSet(samples, Preprocessing(image_size=16)).in_order(len(samples))
    with torch.no_grad():
        live, _ = method.step(
            Inputs(images=batch.pixels, class_features=None, labels=batch.labels, epoch=0)
        )

    finished(method, toy_data)

    prompts = detached(method)
    assert {name: tuple(value.shape) for name, value in prompts.items()} == {
        "text.prompts": (3, 4, 24),
        "visual.prompts": (3, 4, 32),
    }
    with torch.no_grad():
        classes = method.prompted.classes(prompts)
        frozen = method.prompted.predict(batch.pixels, prompts, classes)
    assert (frozen - live).abs().max() < LOGIT_TOLERANCE
    checkpoint = checkpoint_of(method, "dcp")
    assert "reference.per_sample_logits" not in checkpoint.tensors
    contents = build_bundle(checkpoint, random_weights(tiny_clip.config))
    assert max(row.max_logit_difference for row in contents.manifest.parity) <= LOGIT_TOLERANCE
