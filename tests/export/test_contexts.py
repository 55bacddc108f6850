"""DCP at export: which context is chosen, what it is made of, and what is refused."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image

from tests.export.tiny_clip import (
    VOCABULARY,
    Floats,
    make_checkpoint,
    make_config,
    make_pixels,
    make_prompts,
    make_weights,
    save_weights,
)
from vlp_deploy import Classifier
from vlp_deploy.errors import BundleError, CheckpointError, DataError, ParityError
from vlp_deploy.formats.architecture import ClipConfig, TextLayout, VisualLayout
from vlp_deploy.formats.bundle import Bundle
from vlp_deploy.formats.checkpoint import PromptCheckpoint
from vlp_deploy.formats.structures import Coupled
from vlp_export import export
from vlp_export.command import describe_context
from vlp_export.contexts import (
    ContextChoice,
    coupling_cost,
    freezes_over_calibration,
    settle_context,
)
from vlp_export.exporter import build_bundle
from vlp_train.backbones import build_clip
from vlp_train.coupled import CoupledClip
from vlp_train.forward import prompted_clip
from vlp_train.reference import references

CONFIG = make_config(vocab_size=VOCABULARY, layers=4)
WEIGHTS = make_weights(CONFIG)
TOKENS, DEPTH = 3, 2
PIXELS = make_pixels()
# float32 rounding of logits, at a scale of 100
TOLERANCE = 2e-4


def silent(_: str) -> None:
    """Progress that nobody asked for."""


def coupling(config: ClipConfig, *, sets: int, tokens: int = TOKENS) -> dict[str, Floats]:
    """Prompts as large as tokens, and a coupling that changes them as much."""
    wide, narrow = config.vision.width, config.text.width
    shapes: Mapping[str, tuple[int, ...]] = {
        "text_to_visual.weight": (wide, narrow),
        "text_to_visual.bias": (wide,),
        "attention.in_proj_weight": (3 * wide, wide),
        "attention.in_proj_bias": (3 * wide,),
        "attention.out_proj_weight": (wide, wide),
        "attention.out_proj_bias": (wide,),
        "norm_1.weight": (wide,),
        "norm_1.bias": (wide,),
        "norm_2.weight": (wide,),
        "norm_2.bias": (wide,),
        "mlp.c_fc_weight": (4 * wide, wide),
        "mlp.c_fc_bias": (4 * wide,),
        "mlp.c_proj_weight": (wide, 4 * wide),
        "mlp.c_proj_bias": (wide,),
    }
    random = np.random.default_rng(5)
    tensors = {
        f"cmpa.{name}": random.normal(scale=1.2 * shape[-1] ** -0.5, size=(sets, *shape))
        for name, shape in shapes.items()
    }
    tensors["cmpa.visual_prompts"] = random.normal(size=(tokens, wide))
    tensors["text.prompts"] = random.normal(size=(1, tokens, narrow))
    return {name: value.astype(np.float32) for name, value in tensors.items()}


@cache
def dcp(*, sets: int = 1, fusing: Any = "mean") -> PromptCheckpoint:
    """As an import writes it: nothing frozen, answers of single images."""
    tensors = coupling(CONFIG, sets=sets)
    plain = make_checkpoint(
        CONFIG,
        WEIGHTS,
        method="dcp",
        templates=("X X X {}.",),
        text_layout=TextLayout(tokens=TOKENS),
        visual_layout=VisualLayout(tokens=TOKENS, survive_last=True),
        tensors={"text.prompts": tensors["text.prompts"]},
    )
    structure = Coupled(depth=DEPTH, context="per_sample", fusing=fusing)
    header = msgspec.structs.replace(plain.header, structure=structure)
    checkpoint = PromptCheckpoint(header=header, tensors={**plain.tensors, **tensors})
    prompted, prompts = forward(checkpoint)
    answers = references(prompted, prompts, PIXELS)
    return PromptCheckpoint(header=header, tensors={**tensors, **answers})


def forward(checkpoint: PromptCheckpoint) -> tuple[CoupledClip, dict[str, torch.Tensor]]:
    prompted = prompted_clip(
        checkpoint.header, build_clip(CONFIG, WEIGHTS), checkpoint.header.class_names
    )
    assert isinstance(prompted, CoupledClip)
    return prompted, {k: torch.from_numpy(v) for k, v in checkpoint.tensors.items()}


def with_frozen(checkpoint: PromptCheckpoint) -> PromptCheckpoint:
    """As training writes it: frozen over the first five images."""
    prompted, prompts = forward(checkpoint)
    context = prompted.freeze(prompts, lambda: [torch.from_numpy(PIXELS[:5])])
    frozen = prompted.in_context("frozen")
    answers = references(frozen, {**prompts, **context}, PIXELS)
    header = msgspec.structs.replace(checkpoint.header, structure=frozen.structure)
    tensors = {**checkpoint.tensors, "visual.prompts": context["visual.prompts"].numpy()}
    return PromptCheckpoint(header=header, tensors={**tensors, **answers})


def settled(checkpoint: PromptCheckpoint, **choice: Any) -> PromptCheckpoint:
    return settle_context(checkpoint, WEIGHTS, ContextChoice(**choice), silent).checkpoint


@pytest.fixture(scope="session")
def four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first four reference images as files, in folders that mean nothing."""
    folder = tmp_path_factory.mktemp("four")
    for index, pixels in enumerate(PIXELS[:4]):
        (folder / str(index % 2)).mkdir(exist_ok=True)
        image = Image.fromarray(pixels.transpose(1, 2, 0))
        image.save(folder / str(index % 2) / f"{index}.png")
    return folder


@pytest.mark.parametrize("sets", [1, DEPTH])
def test_without_images_every_image_makes_its_own_prompts(sets: int) -> None:
    checkpoint = dcp(sets=sets)

    contents = build_bundle(settled(checkpoint), WEIGHTS)

    assert contents.manifest.structure == Coupled(depth=DEPTH, context="per_sample")
    assert [row.batch for row in contents.manifest.parity] == [1, 2, 5, 8]
    assert max(row.max_logit_difference for row in contents.manifest.parity) <= TOLERANCE


def test_what_training_froze_is_the_default() -> None:
    checkpoint = with_frozen(dcp())

    frozen, alone = (
        build_bundle(settled(checkpoint, **choice), WEIGHTS)
        for choice in ({}, {"context": "per_sample"})
    )

    for contents, reference in (
        (frozen, "reference.logits"),
        (alone, "reference.per_sample_logits"),
    ):
        assert max(row.max_logit_difference for row in contents.manifest.parity) <= TOLERANCE
        np.testing.assert_array_equal(contents.golden.logits, checkpoint.tensors[reference])
    assert np.abs(frozen.golden.logits - alone.golden.logits).max() > 0.1
    assert set(frozen.prompts) == {"text.prompts", "visual.prompts"}  # plain from here on
    assert frozen.manifest.graphs["image"].flops < alone.manifest.graphs["image"].flops


@pytest.mark.parametrize("fusing", ["mean", "first", "max"])
@pytest.mark.parametrize("sets", [1, DEPTH])
def test_calibration_gives_the_context_that_training_would(
    sets: int, fusing: str, four: Path
) -> None:
    checkpoint = dcp(sets=sets, fusing=fusing)
    prompted, prompts = forward(checkpoint)
    order = torch.from_numpy(PIXELS[[0, 2, 1, 3]])  # as the files are found
    expected = prompted.freeze(prompts, lambda: [order])
    answers = references(prompted.in_context("frozen"), {**prompts, **expected}, PIXELS)

    contents = build_bundle(settled(checkpoint, calibration=four), WEIGHTS)

    found = contents.prompts["visual.prompts"]
    np.testing.assert_allclose(found, expected["visual.prompts"], rtol=0, atol=2e-5)
    np.testing.assert_allclose(
        contents.golden.logits, answers["reference.logits"], rtol=0, atol=TOLERANCE
    )


@pytest.mark.parametrize("fusing", ["mean", "first", "max"])
def test_frozen_over_a_batch_answers_as_that_batch(fusing: str, four: Path, tmp_path: Path) -> None:
    source, pretrained = saved(dcp(fusing=fusing), tmp_path)
    frozen, batch = tmp_path / "frozen", tmp_path / "batch"
    pixels = PIXELS[[0, 2, 1, 3]]

    export(source, frozen, pretrained=pretrained, calibration=four)
    export(source, batch, pretrained=pretrained, batch_size=4)

    difference = Classifier.load(batch).logits(pixels) - Classifier.load(frozen).logits(pixels)
    assert np.abs(difference).max() <= TOLERANCE


def test_int8_leaves_a_live_context_live(four: Path, tmp_path: Path) -> None:
    source, pretrained = saved(dcp(), tmp_path)

    manifest = export(
        source,
        tmp_path / "b",
        pretrained=pretrained,
        context="per_sample",
        calibration=four,
        precision="int8",
    )

    assert manifest.precision == "int8"
    assert isinstance(manifest.structure, Coupled)
    assert manifest.structure.context == "per_sample"


def saved(checkpoint: PromptCheckpoint, folder: Path) -> tuple[Path, str]:
    checkpoint.save(folder / "prompt.safetensors")
    weights = save_weights(WEIGHTS, folder / "clip.safetensors")
    return folder / "prompt.safetensors", str(weights)


def test_a_batch_bundle_says_so_and_takes_nothing_else(tmp_path: Path) -> None:
    source, pretrained = saved(with_frozen(dcp()), tmp_path)

    manifest = export(
        source, tmp_path / "bundle", pretrained=pretrained, context="batch", batch_size=3
    )

    assert manifest.structure == Coupled(depth=DEPTH, context="batch", batch_size=3)
    assert Bundle(tmp_path / "bundle").manifest == manifest
    classifier = Classifier.load(tmp_path / "bundle")  # the self-test knows how to ask
    together = classifier.logits(PIXELS[:3])
    among_others = classifier.logits(PIXELS[[0, 4, 5]])
    assert np.abs(together[0] - among_others[0]).max() > 0.1
    for count in (1, 2, 4):
        with pytest.raises(BundleError, match=f"takes exactly 3 at a time; got {count}"):
            classifier.logits(PIXELS[:count])
    with pytest.raises(BundleError, match="--context frozen or per_sample"):
        classifier.classify([PIXELS[0].transpose(1, 2, 0)])
    assert classifier.with_classes(["owl", "fox"]).logits(PIXELS[:3]).shape == (3, 2)


@pytest.mark.parametrize("context", ["frozen", "per_sample"])
def test_no_answer_depends_on_its_batch(context: Any) -> None:
    contents = build_bundle(settled(with_frozen(dcp()), context=context), WEIGHTS)

    assert all(row.min_cosine > 1 - 1e-6 for row in contents.manifest.parity)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"context": "frozen"}, "pass some with --calibration DATA"),
        ({"context": "batch"}, "needs --batch-size"),
        ({"context": "batch", "batch_size": 0}, "needs --batch-size"),
        ({"context": "per_sample", "batch_size": 4}, "--batch-size is for --context batch"),
        ({"context": "per_sample", "calibration": Path("x")}, "give one of them"),
    ],
)
def test_choices_that_do_not_fit_together_are_explained(
    choice: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        settled(dcp(), **choice)


def test_updated_text_has_one_context_only() -> None:
    frozen = with_frozen(dcp())
    tensors = {k: v for k, v in frozen.tensors.items() if not k.startswith("cmpa.")}
    updated = replace(frozen, tensors=tensors)

    assert settled(updated).tensors.keys() == tensors.keys() - {"reference.per_sample_logits"}
    for choice in ({"context": "per_sample"}, {"calibration": Path("x")}):
        with pytest.raises(CheckpointError, match=r"trained with text_update.*leave out --c"):
            settled(updated, **choice)


@pytest.mark.parametrize(
    ("stored", "context", "freezes"),
    [
        (False, None, True),
        (True, None, False),
        (True, "frozen", True),
        (False, "per_sample", False),
        (False, "batch", False),
    ],
)
def test_images_for_a_precision_make_a_context_only_where_one_is_wanted(
    stored: bool, context: Any, freezes: bool
) -> None:
    checkpoint = with_frozen(dcp()) if stored else dcp()

    assert freezes_over_calibration(checkpoint, context) == freezes


def test_other_methods_have_no_context() -> None:
    coop = make_checkpoint(
        CONFIG,
        WEIGHTS,
        templates=("X X {}.",),
        text_layout=TextLayout(tokens=2),
        tensors={"text.prompts": make_prompts(1, 2, 16)},
    )

    assert settled(coop) is coop
    with pytest.raises(CheckpointError, match="--context chooses the context of a dcp prompt"):
        settled(coop, context="per_sample")


def test_calibration_without_readable_images_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        settled(dcp(), calibration=tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds no image"):
        settled(dcp(), calibration=tmp_path)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"broken\.png: .*Replace the file or take it out"):
        settled(dcp(), calibration=tmp_path)


@pytest.mark.parametrize(("name", "between"), [("list.csv", ","), ("list.tsv", "\t")])
def test_calibration_reads_lists(name: str, between: str, four: Path, tmp_path: Path) -> None:
    rows = [f"{index % 2}/{index}.png,thing" for index in (0, 2, 1, 3)]
    lines = [line.replace(",", between) for line in ("path,label", *rows)]
    (four / name).write_text("\n".join(lines) + "\n")

    by_list, by_folder = (
        settled(dcp(), calibration=place).tensors["visual.prompts"] for place in (four / name, four)
    )
    (four / name).unlink()

    np.testing.assert_array_equal(by_list, by_folder)


def test_a_coupling_that_is_not_the_references_is_not_calibrated(four: Path) -> None:
    tensors = dict(dcp().tensors)
    tensors["cmpa.mlp.c_proj_weight"] = tensors["cmpa.mlp.c_proj_weight"] * np.float32(1.1)

    with pytest.raises(ParityError):
        settled(replace(dcp(), tensors=tensors), calibration=four)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cmpa.norm_2.bias": None}, r"cmpa\.norm_2\.bias is missing"),
        ({"cmpa.norm_2.bias": np.zeros((3, 32), np.float32)}, r"are for \[1, 3\] blocks"),
    ],
)
def test_couplings_that_do_not_fit_are_explained(change: dict[str, Any], message: str) -> None:
    tensors = {k: v for k, v in {**dcp().tensors, **change}.items() if v is not None}

    with pytest.raises(CheckpointError, match=message):
        settled(replace(dcp(), tensors=tensors))


def test_export_tells_what_prompts_are_made_of(four: Path) -> None:
    records = {
        name: settle_context(checkpoint, WEIGHTS, ContextChoice(**choice), silent).record
        for name, checkpoint, choice in (
            ("stored", with_frozen(dcp()), {}),
            ("calibrated", dcp(), {"calibration": four}),
            ("alone", dcp(), {}),
            ("batch", dcp(), {"batch_size": 16}),
        )
    }
    texts = {name: describe_context(record) for name, record in records.items()}

    assert "over the training images" in texts["stored"]
    assert "over the 4 images of four" in texts["calibrated"]
    assert f"{coupling_cost(dcp(), WEIGHTS):.3f} times the arithmetic" in texts["alone"]
    assert "DEPEND ON THE OTHER IMAGES" in texts["batch"]
    assert "exactly 16" in texts["batch"]
