"""DPC from checkpoint to answers: one image graph or two, base classes, new ones, and both."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from tests.train.checkpoints import LOGIT_TOLERANCE, NAMES, PIXELS, build, checkpoint_of, enlarge
from tests.train.conftest import random_weights
from vlp_deploy import Classifier
from vlp_deploy.data.dataset import Dataset, Sample
from vlp_deploy.errors import CheckpointError, ClassListError, EngineError, ParityError
from vlp_deploy.formats.architecture import ClipConfig, Preprocessing
from vlp_deploy.formats.bundle import BundleContents, write_bundle
from vlp_deploy.formats.checkpoint import PromptCheckpoint
from vlp_export.exporter import build_bundle
from vlp_train.clip import Clip
from vlp_train.forward import prompted_clip
from vlp_train.methods import METHODS, Task, method_config
from vlp_train.validation import hold_out

NEW = ("tree", "stone", "river", "cloud")


def stages(clip: Clip, backbone: str, **options: Any) -> tuple[PromptCheckpoint, PromptCheckpoint]:
    """A backbone's checkpoint and DPC's, whose second prompt is far from the first."""
    stage1 = build(clip, backbone)
    enlarge(stage1, 8.0)
    first = checkpoint_of(stage1, backbone)
    task = Task(
        clip=clip,
        class_names=NAMES,
        preprocessing=Preprocessing(image_size=16),
        seed=1,
        stage1=first,
    )
    method = METHODS["dpc"].method(method_config("dpc", options), task)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.neg_()
    return first, checkpoint_of(method, "dpc")


def bundle(checkpoint: PromptCheckpoint, **options: Any) -> BundleContents:
    return build_bundle(checkpoint, random_weights(checkpoint.header.backbone.config), **options)


def load(contents: BundleContents, folder: Path) -> Classifier:
    write_bundle(contents, folder, replace=False)
    return Classifier.load(folder, engine="onnx", threads=1)


def of_torch(
    checkpoint: PromptCheckpoint, config: ClipConfig, names: tuple[str, ...]
) -> np.ndarray:
    clip = Clip(config)
    weights = random_weights(config)
    clip.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    prompted = prompted_clip(checkpoint.header, clip, names)
    prompts = {name: torch.from_numpy(value) for name, value in checkpoint.tensors.items()}
    with torch.no_grad():
        classes = prompted.classes(prompts)
        return prompted.predict(torch.from_numpy(PIXELS), prompts, classes).numpy()


@pytest.mark.parametrize(
    ("backbone", "roles"),
    [
        ("coop", {"image", "text"}),
        ("ivlp", {"image_base", "image_new", "text"}),
        ("maple", {"image_base", "image_new", "text"}),
        ("promptsrc", {"image_base", "image_new", "text"}),
    ],
)
def test_base_classes_get_the_mixture_and_new_ones_the_first_stage(
    tiny_clip: Clip, tiny_config: ClipConfig, backbone: str, roles: set[str], tmp_path: Path
) -> None:
    first, second = stages(tiny_clip, backbone, mixing_weight=0.3)
    stage1 = load(bundle(first), tmp_path / "stage1")

    contents = bundle(second)
    dpc = load(contents, tmp_path / "dpc")

    manifest = contents.manifest
    assert set(manifest.graphs) == roles
    assert manifest.base_classes == manifest.classes == NAMES
    assert manifest.new_classes.allowed
    reference = second.tensors["reference.logits"]
    assert np.abs(reference - second.tensors["reference.new_logits"]).max() > 1
    assert np.abs(dpc.logits(PIXELS) - reference).max() <= LOGIT_TOLERANCE
    # new classes: the bits of stage 1
    assert np.array_equal(
        dpc.with_classes(NEW).logits(PIXELS), stage1.with_classes(NEW).logits(PIXELS)
    )
    # some of the base classes, in any order and spelling
    some = dpc.with_classes(["Blue  Whale", ["red fox", "vixen"]])
    expected = of_torch(second, tiny_config, ("blue whale", "red fox"))
    assert np.abs(some.logits(PIXELS)[:, 0] - expected[:, 0]).max() <= LOGIT_TOLERANCE
    # back again, from the cache
    again = dpc.with_classes(NEW).with_classes(NAMES)
    assert np.abs(again.logits(PIXELS) - reference).max() <= LOGIT_TOLERANCE


def test_base_and_new_classes_together_share_a_matrix_and_an_offset(
    tiny_clip: Clip, tiny_config: ClipConfig, tmp_path: Path
) -> None:
    _, second = stages(tiny_clip, "coop", mixing_weight=0.3, base_offset=-0.5)
    dpc = load(bundle(second), tmp_path / "dpc")
    both = ("tree", "red fox", "stone")

    with pytest.warns(UserWarning, match="'red fox' were tuned on and 'tree', 'stone' were not"):
        mixed = dpc.with_classes(both)
    with pytest.warns(UserWarning, match="side by side, base classes are favoured"):
        dpc.with_classes(both)  # from the cache
    with pytest.warns(UserWarning, match=r"-0\.5 is added"):
        expected = of_torch(second, tiny_config, both)

    found = mixed.logits(PIXELS)
    assert np.abs(found - expected).max() <= LOGIT_TOLERANCE
    base = dpc.with_classes(["red fox"]).logits(PIXELS)
    assert np.abs(found[:, 1:2] - (base - 0.5)).max() <= LOGIT_TOLERANCE


def test_base_and_new_classes_together_are_refused_with_visual_prompts(
    tiny_clip: Clip, tmp_path: Path
) -> None:
    _, second = stages(tiny_clip, "maple")
    contents = bundle(second)
    dpc = load(contents, tmp_path / "dpc")

    with pytest.raises(ClassListError, match="there are no classes"):
        dpc.with_classes([])
    with pytest.raises(ClassListError, match="one way for base classes and in another for new"):
        dpc.with_classes(["tree", "red fox"])
    with pytest.raises(ClassListError, match="Give only base classes, or only new ones"):
        bundle(second, names=[("tree",), ("red fox",)])


@pytest.mark.parametrize("baked", ["base", "new"])
def test_graph_of_other_classes_is_proven_before_it_serves(
    tiny_clip: Clip, baked: str, tmp_path: Path
) -> None:
    _, second = stages(tiny_clip, "ivlp")
    names = None if baked == "base" else [(name,) for name in NEW]
    contents = bundle(second, names=names)
    other = {"base": "image_new", "new": "image_base"}[baked]
    others = NEW if baked == "base" else NAMES

    assert set(contents.golden.further) == {other}
    load(contents, tmp_path / "right").with_classes(others)
    wrong = {other: contents.golden.embeddings}
    tampered = replace(contents, golden=replace(contents.golden, further=wrong))
    classifier = load(tampered, tmp_path / "wrong")  # its own classes are served
    with pytest.raises(EngineError, match="does not give this bundle's own answers"):
        classifier.with_classes(others)
    silent = replace(contents, golden=replace(contents.golden, further={}))
    load(silent, tmp_path / "older").with_classes(others)


@pytest.mark.parametrize(("backbone", "graph"), [("coop", "image"), ("ivlp", "image_new")])
def test_new_classes_can_be_baked(
    tiny_clip: Clip, backbone: str, graph: str, tmp_path: Path
) -> None:
    first, second = stages(tiny_clip, backbone)
    names = [(name,) for name in NEW]

    baked = bundle(second, names=names)

    assert baked.manifest.class_graph == graph
    assert baked.manifest.base_classes == NAMES
    expected = bundle(first, names=names).golden.logits
    assert np.array_equal(baked.golden.logits, expected)
    dpc = load(baked, tmp_path / "dpc")
    assert np.array_equal(dpc.logits(PIXELS), expected)
    # and the base classes are still there
    reference = second.tensors["reference.logits"]
    assert np.abs(dpc.with_classes(NAMES).logits(PIXELS) - reference).max() <= LOGIT_TOLERANCE


@pytest.mark.parametrize("backbone", ["coop", "ivlp"])
def test_the_mixing_weight_is_an_option_of_the_export(
    tiny_clip: Clip, tiny_config: ClipConfig, backbone: str, tmp_path: Path
) -> None:
    first, second = stages(tiny_clip, backbone, mixing_weight=0.3)
    structure = msgspec.structs.replace(second.header.structure, mixing_weight=1.0)
    header = msgspec.structs.replace(second.header, structure=structure)
    alone = replace(second, header=header)

    contents = bundle(second, mixing_weight=1.0)

    assert contents.manifest.structure == structure
    dpc = load(contents, tmp_path / "dpc")
    expected = of_torch(alone, tiny_config, NAMES)
    assert np.abs(expected - second.tensors["reference.logits"]).max() > 1
    assert np.abs(dpc.logits(PIXELS) - expected).max() <= LOGIT_TOLERANCE
    stage1 = load(bundle(first), tmp_path / "stage1")
    assert np.array_equal(
        dpc.with_classes(NEW).logits(PIXELS), stage1.with_classes(NEW).logits(PIXELS)
    )


def test_wrong_mixing_weights_say_what_is_wrong(tiny_clip: Clip) -> None:
    first, second = stages(tiny_clip, "coop")

    with pytest.raises(CheckpointError, match=r"belongs to dpc, and this prompt is of coop"):
        bundle(first, mixing_weight=0.5)
    for weight in (0.0, 1.1, float("nan")):
        with pytest.raises(CheckpointError, match="above 0 and at most 1"):
            bundle(second, mixing_weight=weight)


@pytest.mark.parametrize("name", ["reference.logits", "reference.new_logits"])
def test_both_prompts_are_proven(tiny_clip: Clip, name: str) -> None:
    _, second = stages(tiny_clip, "ivlp")
    wrong = second.tensors[name] + np.float32(0.01)

    with pytest.raises(ParityError, match="does not compute what its checkpoint computed"):
        bundle(replace(second, tensors={**second.tensors, name: wrong}))


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (["dpc.parallel.visual.prompts"], r"dpc\.parallel\.visual\.prompts is missing"),
        (["reference.new_logits"], r"reference\.new_logits is missing"),
        (["dpc.backbone.text.prompts", "dpc.backbone.visual.prompts"], "dpc.backbone. is missing"),
    ],
)
def test_half_a_checkpoint_is_refused(tiny_clip: Clip, missing: list[str], message: str) -> None:
    _, second = stages(tiny_clip, "ivlp")
    tensors = {name: value for name, value in second.tensors.items() if name not in missing}

    with pytest.raises(CheckpointError, match=message):
        replace(second, tensors=tensors)


def test_prompts_of_different_depths_are_refused(tiny_clip: Clip) -> None:
    _, second = stages(tiny_clip, "ivlp")
    name = "dpc.parallel.visual.prompts"

    with pytest.raises(CheckpointError, match=r"visual\.prompts is \(2, 2, 32\), expected \(3,"):
        replace(second, tensors={**second.tensors, name: second.tensors[name][:2]})


def samples(*counts: int, folder: str = "train") -> tuple[Sample, ...]:
    return tuple(
        Sample(Path(f"{folder}/{label}/{index}.png"), label)
        for label, count in enumerate(counts)
        for index in range(count)
    )


def dataset(**splits: tuple[Sample, ...]) -> Dataset:
    return Dataset(class_names=("a", "b"), splits=splits, source=Path("data"))


def test_a_quarter_of_the_shots_is_held_out() -> None:
    drawn = samples(8, 16)

    train, chosen = hold_out(dataset(train=drawn), drawn, seed=1)

    assert [sample.label for sample in chosen] == [0] * 2 + [1] * 4
    assert set(train) | set(chosen) == set(drawn)
    assert not set(train) & set(chosen)
    assert hold_out(dataset(train=drawn), drawn, seed=1) == (train, chosen)
    assert hold_out(dataset(train=drawn), drawn, seed=2)[1] != chosen


def test_a_class_gives_at_most_four_validation_images() -> None:
    drawn = samples(40, 400)

    assert len(hold_out(dataset(train=drawn), drawn, seed=1)[1]) == 8


def test_nothing_is_held_out_of_fewer_than_four_shots() -> None:
    drawn = samples(3, 16)

    assert hold_out(dataset(train=drawn), drawn, seed=1) == (drawn, ())


@pytest.mark.parametrize(("shots", "expected"), [(1, 1), (3, 3), (16, 4)])
def test_a_validation_split_spares_the_shots(shots: int, expected: int) -> None:
    drawn, others = samples(shots, shots), samples(9, 9, folder="val")

    train, chosen = hold_out(dataset(train=drawn, val=others), drawn, seed=1)

    assert train == drawn
    assert [sample.label for sample in chosen] == [0] * expected + [1] * expected
    assert set(chosen) <= set(others)
