"""A method on a tiny CLIP, and the checkpoint and bundle that training and export make of it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from tests.train.conftest import random_weights
from vlp_deploy.formats.architecture import Backbone, Preprocessing
from vlp_deploy.formats.bundle import BundleContents
from vlp_deploy.formats.checkpoint import Header, PromptCheckpoint
from vlp_deploy.formats.weights import fingerprint
from vlp_export.exporter import build_bundle
from vlp_train.clip import Clip
from vlp_train.methods import METHODS, Method, Task, method_config
from vlp_train.methods.base import Inputs
from vlp_train.reference import references

NAMES = ("red fox", "green_frog", "blue whale")
PIXELS = np.random.default_rng(0).integers(0, 256, (8, 3, 16, 16), dtype=np.uint8)
LABELS = torch.tensor([0, 1, 2, 0])
# float32 rounding at a logit scale of 100, between two orders of summation
LOGIT_TOLERANCE = 2e-4


def build(clip: Clip, name: str, *, seed: int = 1, **options: Any) -> Method:
    """A method that has learned nothing yet."""
    task = Task(clip=clip, class_names=NAMES, preprocessing=Preprocessing(image_size=16), seed=seed)
    return METHODS[name].method(method_config(name, options), task)


def enlarge(method: Method, factor: float = 30.0) -> None:
    """Prompts as large as the tokens around them, so that a wrong one is seen in the logits."""
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.mul_(factor)


def inputs(method: Method, *, epoch: int = 0) -> Inputs:
    """Four images, as the method reads them."""
    images = torch.from_numpy(PIXELS[:4])
    return Inputs(
        images=images if method.learns_image else method.image_features(images).detach(),
        class_features=None,
        labels=LABELS,
        epoch=epoch,
    )


def gradients(method: Method) -> Mapping[str, torch.Tensor]:
    """What one step's loss does to each learned tensor; to the CLIP it does nothing."""
    _, loss = method.step(inputs(method))
    loss.backward()
    assert all(p.grad is None for p in method.prompted.clip.parameters())
    return {name: p.grad for name, p in method.named_parameters() if p.grad is not None}


def checkpoint_of(method: Method, name: str) -> PromptCheckpoint:
    """As `vlp train` writes it."""
    prompted = method.prompted
    config = prompted.clip.config
    prompts = {name: value.detach() for name, value in method.prompts().items()}
    return PromptCheckpoint(
        header=Header(
            method=name,
            hyper_parameters={},
            backbone=Backbone(
                name="tiny",
                pretrained="random",
                sha256=fingerprint(random_weights(config)),
                config=config,
            ),
            class_names=prompted.class_names,
            templates=prompted.templates,
            text_layout=prompted.text_layout,
            visual_layout=prompted.visual_layout,
            structure=prompted.structure,
            base_classes=prompted.base_classes,
            preprocessing=prompted.preprocessing,
            provenance={},
        ),
        tensors={
            **{name: value.numpy().copy() for name, value in prompts.items()},
            **references(prompted, prompts, PIXELS),
        },
    )


def check_export(method: Method, name: str) -> BundleContents:
    """The folded graph's logits are those of the un-folded forward pass, and prompts matter."""
    checkpoint = checkpoint_of(method, name)
    contents = build_bundle(checkpoint, random_weights(checkpoint.header.backbone.config))
    logits = contents.golden.logits  # what the graphs answered when they were proven

    assert np.abs(logits - checkpoint.tensors["reference.logits"]).max() <= LOGIT_TOLERANCE
    unprompted = references(method.prompted, {}, PIXELS)["reference.logits"]
    assert np.abs(logits - unprompted).max() > 1
    return contents
