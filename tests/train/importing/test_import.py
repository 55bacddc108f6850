"""Synthetic files of every official layout: converted, or refused with the reason."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from tests.train.conftest import ModelFiles, random_weights
from tests.train.importing import official
from tests.train.importing.official import NAMES, State, Weights, run_folder, values
from vlp_deploy.errors import CheckpointError, ClassListError
from vlp_deploy.formats.architecture import ClipConfig
from vlp_deploy.formats.structures import ClassAware, Conditioned, Coupled, Dual, Plain
from vlp_train.importing.road import Conversion, ImportRequest, convert

SPELLED = ("red fox", "u . s . flag", "blue whale", "7 3 7 - 8 0 0")  # as BPE has them
DPT_TEMPLATE = {"template": "a photo of a {}, a type of pet."}


@pytest.fixture
def importing(tiny_model: ModelFiles, tmp_path: Path) -> Callable[..., Conversion]:
    """Import a path, or a state that is saved first."""

    def convert_it(
        source: Path | State, *, classes: tuple[str, ...] = (), run: Any = None, **options: str
    ) -> Conversion:
        path = source if isinstance(source, Path) else run_folder(tmp_path, source, **(run or {}))
        class_file = None
        if classes:
            class_file = tmp_path / "classes.txt"
            class_file.write_text("\n".join(classes))
        return convert(
            ImportRequest(
                path=path,
                model=tiny_model.model,
                pretrained=tiny_model.pretrained,
                classes=class_file,
                options=options,
            )
        )

    return convert_it


Importing = Callable[..., Conversion]


def test_coop(importing: Importing, weights: Weights) -> None:
    conversion = importing(official.coop(weights), position="middle")

    header = conversion.header
    assert (header.method, header.class_names) == ("coop", SPELLED)
    assert header.templates == ("X X X X {}.",)
    assert (header.text_layout.position, header.text_layout.official_span) == ("middle", True)
    np.testing.assert_array_equal(
        conversion.tensors["text.prompts"], values(4, 24)[None].float().numpy()
    )
    assert conversion.assumptions == []
    assert header.provenance["files"][0]["epoch"] == 5
    assert len(header.provenance["files"][0]["sha256"]) == 64


def test_coop_says_what_it_assumed(importing: Importing, weights: Weights) -> None:
    assert "position=end" in importing(official.coop(weights)).assumptions[0]


def test_given_class_names_are_kept_as_written(importing: Importing, weights: Weights) -> None:
    conversion = importing(official.coop(weights), classes=NAMES)

    assert conversion.header.class_names == NAMES


def test_class_specific_contexts(importing: Importing, weights: Weights) -> None:
    conversion = importing(official.coop_class_specific(weights), classes=NAMES)

    assert conversion.tensors["text.class_prompts"].shape == (4, 4, 24)
    assert "text.prompts" not in conversion.tensors


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ((NAMES[1], NAMES[0], *NAMES[2:]), "index 0: 'red fox' vs 'U.S. flag'"),
        (
            NAMES[:3],
            r"4 classes \[red fox, .*got 3 \(first difference at index 3: '7 3 7 .*nothing",
        ),
        (("a", "b", "c", "d"), r"CoOp\(CSC\).*index 0: 'red fox' vs 'a'.*retrain or use unified"),
    ],
)
def test_class_specific_contexts_serve_no_other_classes(
    classes: tuple[str, ...], message: str, importing: Importing, weights: Weights
) -> None:
    with pytest.raises(CheckpointError, match=message):
        importing(official.coop_class_specific(weights), classes=classes)


def test_class_specific_contexts_fit_the_class_buffers(
    importing: Importing, weights: Weights
) -> None:
    state = {**official.coop_class_specific(weights), "ctx": values(5, 4, 24)}

    with pytest.raises(CheckpointError, match=r"trained for 5 classes; got 4"):
        importing(state)


def test_unified_contexts_are_imported_for_their_own_classes(
    importing: Importing, weights: Weights
) -> None:
    with pytest.raises(CheckpointError, match="other classes are for `vlp classify --classes`"):
        importing(official.coop(weights), classes=("red panda", *NAMES[1:]))
    with pytest.raises(ClassListError, match="synonyms"):
        importing(official.coop(weights), classes=("red fox\tvixen",))


def test_kgcoop_is_not_taken_for_cocoop(importing: Importing, weights: Weights) -> None:
    conversion = importing(official.kgcoop(weights))

    assert conversion.header.method == "kgcoop"
    assert set(conversion.tensors) == {"text.prompts"}


def test_cocoop(importing: Importing, weights: Weights) -> None:
    conversion = importing(official.cocoop(weights))

    assert conversion.header.structure == Conditioned()
    assert conversion.tensors["cocoop.linear1.weight"].shape == (1, 16)
    assert conversion.tensors["cocoop.linear2.weight"].shape == (24, 1)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_vpt(depth: int, importing: Importing, weights: Weights, tiny_config: ClipConfig) -> None:
    conversion = importing(official.vpt(weights, tiny_config, depth=depth), classes=NAMES)

    header = conversion.header
    assert (header.method, header.templates) == ("vpt", ("a photo of a {}.",))
    assert conversion.tensors["visual.prompts"].shape == (depth, 2, 32)
    assert header.visual_layout.pre_ln
    assert header.visual_layout.survive_last is (depth < 3)
    assert header.text_layout.tokens == 0
    assert any("template=" in assumption for assumption in conversion.assumptions)


def test_vpt_holds_no_class_names(
    importing: Importing, weights: Weights, tiny_config: ClipConfig
) -> None:
    with pytest.raises(CheckpointError, match=r"no class names\. Pass .* --classes"):
        importing(official.vpt(weights, tiny_config))


def test_deep_language(importing: Importing, weights: Weights, tiny_config: ClipConfig) -> None:
    conversion = importing(official.deep_language(weights, tiny_config))

    assert conversion.header.method == "deep_language"
    assert set(conversion.tensors) == {"text.prompts"}
    assert conversion.tensors["text.prompts"].shape == (3, 4, 24)


def test_ivlp(importing: Importing, weights: Weights, tiny_config: ClipConfig) -> None:
    conversion = importing(official.ivlp(weights, tiny_config))

    assert conversion.header.method == "ivlp"
    assert conversion.header.class_names == SPELLED
    assert conversion.tensors["text.prompts"].shape == (2, 2, 24)
    assert conversion.tensors["visual.prompts"].shape == (3, 3, 32)
    # float32 prompts are not rounded to half precision
    deep = values(3, 32, seed=2, half=False).numpy()
    np.testing.assert_array_equal(conversion.tensors["visual.prompts"][2], deep)
    assert (deep.astype(np.float16) != deep).any()


@pytest.mark.parametrize(
    ("words", "template", "classes"),
    [
        ("a photo of a", "X X of a {}.", ()),
        ("a photo of a", "X X of a {}.", NAMES),
        ("one blurry satellite picture showing", "X X satellite picture showing {}.", ()),
        ("one blurry satellite picture showing", "X X satellite picture showing {}.", NAMES),
        ("X X", "X X {}.", ()),
    ],
)
def test_fixed_words_are_recovered(
    words: str,
    template: str,
    classes: tuple[str, ...],
    importing: Importing,
    weights: Weights,
    tiny_config: ClipConfig,
) -> None:
    conversion = importing(official.ivlp(weights, tiny_config, words=words), classes=classes)

    assert conversion.header.templates == (template,)
    assert conversion.header.class_names == (classes or SPELLED)


def test_fixed_words_can_be_said(
    importing: Importing, weights: Weights, tiny_config: ClipConfig
) -> None:
    state = official.ivlp(weights, tiny_config, words="a photo of a")

    conversion = importing(state, template="this photo of a {}.")

    assert conversion.header.templates == ("X X of a {}.",)
    with pytest.raises(CheckpointError, match="has 1 tokens before"):
        importing(state, template="photo {}.")


def test_maple_stores_projected_prompts(
    importing: Importing, weights: Weights, tiny_config: ClipConfig
) -> None:
    state = official.maple(weights, tiny_config)
    conversion = importing(state)

    visual = conversion.tensors["visual.prompts"]
    name = "prompt_learner.compound_prompt_projections.0"
    expected = torch.nn.functional.linear(
        state["prompt_learner.compound_prompts_text.0"].float(),
        state[f"{name}.weight"],
        state[f"{name}.bias"],
    )
    assert conversion.header.method == "maple"
    # sums of 24 products in another order
    np.testing.assert_allclose(visual[1], expected.numpy(), rtol=0, atol=1e-5)
    assert conversion.tensors["text.prompts"].shape == (2, 2, 24)


def test_maple_of_one_layer(
    importing: Importing, weights: Weights, tiny_config: ClipConfig
) -> None:
    conversion = importing(official.maple(weights, tiny_config, depth=1))

    assert conversion.header.method == "maple"
    assert conversion.tensors["visual.prompts"].shape == (1, 2, 32)


def test_promptsrc_leaves_both_towers_behind(
    importing: Importing, weights: Weights, tiny_config: ClipConfig
) -> None:
    conversion = importing(official.promptsrc(weights, tiny_config))

    assert conversion.header.method == "promptsrc"
    assert set(conversion.tensors) == {"text.prompts", "visual.prompts"}


def test_promptsrc_averages_the_class_buffers_too(
    importing: Importing, weights: Weights, tiny_config: ClipConfig
) -> None:
    state = official.promptsrc(weights, tiny_config)
    shares = np.exp(-0.5 * (np.arange(1, 21) - 15.0) ** 2)
    for name in ("prompt_learner.token_prefix", "prompt_learner.token_suffix"):
        average = torch.zeros_like(state[name])
        for share in shares / shares.sum():
            average = average + state[name] * float(share)
        state[name] = average

    conversion = importing(state)

    assert conversion.header.templates == ("X X of a {}.",)
    assert conversion.header.class_names == SPELLED


def test_promptsrc_before_its_last_epoch(
    importing: Importing, weights: Weights, tiny_config: ClipConfig
) -> None:
    state = official.promptsrc(weights, tiny_config)
    with pytest.raises(CheckpointError, match=r"epoch 5 of 20.*model\.pth\.tar-20.*-O epoch=5"):
        importing(state, run={"planned": 20})

    conversion = importing(state, run={"planned": 20}, epoch="5")

    assert "un-averaged prompts of epoch 5 of 20" in " ".join(conversion.assumptions)


def test_dpt(importing: Importing, weights: Weights, tmp_path: Path) -> None:
    path = official.dpt_folder(tmp_path / "run", weights)

    conversion = importing(path, **DPT_TEMPLATE, cpn="2")

    header, tensors = conversion.header, conversion.tensors
    assert header.structure == ClassAware(selected=2, selector_template=DPT_TEMPLATE["template"])
    assert (header.visual_layout.pre_ln, header.visual_layout.survive_last) == (False, False)
    assert tensors["visual.prompts"].shape == (2, 2, 32)
    assert {name: tensor.shape for name, tensor in tensors.items() if "cavpt" in name} == {
        "cavpt.meta.weight": (1, 32, 16),
        "cavpt.meta.bias": (1, 32),
        "cavpt.query.weight": (1, 32, 32),
        "cavpt.key.weight": (1, 32, 32),
        "cavpt.value.weight": (1, 32, 32),
        "cavpt.context": (1, 10, 32),
        "cavpt.norm.weight": (1, 32),
        "cavpt.norm.bias": (1, 32),
    }
    assert len(header.provenance["files"]) == 3


def test_dpt_without_plain_visual_prompts(
    importing: Importing, weights: Weights, tmp_path: Path
) -> None:
    path = official.dpt_folder(tmp_path / "run", weights, first_class_aware=1)

    conversion = importing(path, **DPT_TEMPLATE)

    assert "visual.prompts" not in conversion.tensors
    assert len(conversion.tensors["cavpt.context"]) == 3
    assert any("cpn=10" in assumption for assumption in conversion.assumptions)


def test_dpt_needs_its_template(importing: Importing, weights: Weights, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"do not say the data set's own .*Pass -O template="):
        importing(official.dpt_folder(tmp_path / "run", weights))


@pytest.mark.parametrize(
    "gone", ["prompt_learner", *(f"image_encoder.transformer.{p}" for p in ("ctx_learner",))]
)
def test_dpt_without_a_sibling(
    gone: str, importing: Importing, weights: Weights, tmp_path: Path
) -> None:
    path = official.dpt_folder(tmp_path / "run", weights)
    (path / gone).rename(tmp_path / "elsewhere")

    with pytest.raises(CheckpointError, match=f"missing beside it: {gone}"):
        importing(path, **DPT_TEMPLATE)


def test_dpt_without_its_class_aware_prompts(
    importing: Importing, weights: Weights, tmp_path: Path
) -> None:
    path = official.dpt_folder(tmp_path / "run", weights)
    (path / "image_encoder.transformer.extractor").rename(tmp_path / "elsewhere")

    missing = r"2 of 3 layers.*missing beside it: image_encoder\.transformer\.extractor\."
    for options in ({}, {**DPT_TEMPLATE, "cpn": "2"}):  # those of DPT, which it was before
        with pytest.raises(CheckpointError, match=missing):
            importing(path, **options)
    (path / "prompt_learner").rename(tmp_path / "text")
    with pytest.raises(CheckpointError, match=r"extractor, prompt_learner\."):
        importing(path, **DPT_TEMPLATE)


def test_parts_of_different_epochs(importing: Importing, weights: Weights, tmp_path: Path) -> None:
    path = official.dpt_folder(tmp_path / "run", weights)
    run_folder(path, official.coop(weights), epoch=9)

    with pytest.raises(CheckpointError, match="different epochs"):
        importing(path, **DPT_TEMPLATE)
    assert importing(path, **DPT_TEMPLATE, epoch="5").header.method == "dpt"


def test_vpt_and_vlp_of_dpt(importing: Importing, weights: Weights, tmp_path: Path) -> None:
    path = official.dpt_folder(tmp_path / "run", weights, first_class_aware=4)
    (path / "image_encoder.transformer.extractor").rename(tmp_path / "extractor")
    both = importing(path)
    (path / "prompt_learner").rename(tmp_path / "prompt_learner")
    alone = importing(path, **DPT_TEMPLATE, classes=NAMES)

    assert (both.header.method, alone.header.method) == ("ivlp", "vpt")
    assert both.header.visual_layout == alone.header.visual_layout
    assert (alone.header.visual_layout.pre_ln, alone.tensors["visual.prompts"].shape) == (
        False,
        (3, 2, 32),
    )
    assert alone.header.templates == (DPT_TEMPLATE["template"],)
    assert any("hold nothing of their own" in each for each in alone.assumptions)


@pytest.mark.parametrize(("shared", "sets"), [(True, 1), (False, 2)])
def test_cmpa(
    shared: bool, sets: int, importing: Importing, weights: Weights, tiny_config: ClipConfig
) -> None:
    state = official.cmpa(weights, tiny_config, shared=shared)
    conversion = importing(state, depth="2")

    tensors = conversion.tensors
    assert conversion.header.method == "dcp"
    assert conversion.header.structure == Coupled(depth=2, context="per_sample")
    assert tensors["cmpa.visual_prompts"].shape == (4, 32)
    assert tensors["cmpa.text_to_visual.weight"].shape == (sets, 32, 24)
    block = "encoder.resblocks.2.prompt_attn.mlp_pa_visual.c_fc.weight"
    np.testing.assert_array_equal(tensors["cmpa.mlp.c_fc_weight"][-1], state[block].float().numpy())
    assert not [name for name in tensors if "text_half" in name]


@pytest.mark.parametrize("classes", [(), NAMES])
def test_cmpa_keeps_the_words_it_did_not_learn(
    classes: tuple[str, ...], importing: Importing, weights: Weights, tiny_config: ClipConfig
) -> None:
    state = official.cmpa(weights, tiny_config)
    for side in ("text", "visual"):
        state[f"prompt_learner.prompts_{side}"] = state[f"prompt_learner.prompts_{side}"][:2]
    words = official.buffers(weights, tokens=2, words="a photo of a", prefix="prompt_learner.")

    conversion = importing(state | words, classes=classes)

    assert conversion.header.templates == ("X X of a {}.",)
    assert conversion.header.class_names == (classes or SPELLED)


def test_cmpa_counts_at_most_the_blocks_there_are(
    importing: Importing, weights: Weights, tiny_config: ClipConfig
) -> None:
    conversion = importing(official.cmpa(weights, tiny_config))

    assert conversion.header.structure == Coupled(depth=2, context="per_sample")
    assert [each.partition(" ")[0] for each in conversion.assumptions] == [
        "depth=9",
        "fusing=mean",
        "context=per_sample",
    ]


def test_cmpa_contexts(importing: Importing, weights: Weights, tiny_config: ClipConfig) -> None:
    state = official.cmpa(weights, tiny_config)

    with pytest.raises(CheckpointError, match=r"--images, or .*--calibration"):
        importing(state, context="frozen")
    with pytest.raises(CheckpointError, match="needs -O batch_size="):
        importing(state, context="batch")
    conversion = importing(state, context="batch", batch_size="16")
    assert conversion.header.structure == Coupled(depth=2, context="batch", batch_size=16)


def stages(folder: Path, weights: Weights) -> Path:
    """Two runs of DPC whose contexts differ."""
    run_folder(folder / "first", official.coop(weights), epoch=50)
    second = official.coop(weights)
    run_folder(folder / "second", {**second, "ctx": values(4, 24, seed=3)}, epoch=20)
    return folder


def test_dpc_takes_the_mixture_apart(
    importing: Importing, weights: Weights, tmp_path: Path
) -> None:
    folder = stages(tmp_path, weights)
    options = {"stage1": str(folder / "first"), "mode": "converse", "train_weight": "0.25"}

    conversion = importing(folder / "second", **options)

    first, stored = (values(4, 24, seed=seed).float().numpy() for seed in (0, 3))
    header, tensors = conversion.header, conversion.tensors
    assert header.structure == Dual(method="coop", mixing_weight=0.25)
    assert any("mixing_weight=0.25" in assumption for assumption in conversion.assumptions)
    assert header.base_classes == header.class_names
    np.testing.assert_array_equal(tensors["dpc.backbone.text.prompts"][0], first)
    # float32 rounding
    parallel = tensors["dpc.parallel.text.prompts"][0]
    np.testing.assert_allclose(0.25 * parallel + 0.75 * first, stored, rtol=0, atol=1e-6)
    assert len(header.provenance["files"]) == 2
    simple = {"stage1": str(folder / "first"), "mode": "simple", "mixing_weight": "0.5"}
    conversion = importing(folder, **simple)  # above both runs
    np.testing.assert_array_equal(conversion.tensors["dpc.parallel.text.prompts"][0], stored)
    assert conversion.header.structure == Dual(method="coop", mixing_weight=0.5)
    simple = {"stage1": str(folder / "first"), "mode": "simple"}
    assert importing(folder, **simple).header.structure == Dual(method="coop", mixing_weight=0.2)
    conversion = importing(folder, **simple, train_weight="0.3")
    np.testing.assert_array_equal(conversion.tensors["dpc.parallel.text.prompts"][0], stored)
    assert conversion.header.structure == Dual(method="coop", mixing_weight=0.3)


def test_dpc_asks_for_what_it_needs(importing: Importing, weights: Weights, tmp_path: Path) -> None:
    folder = stages(tmp_path, weights)
    first = str(folder / "first")

    with pytest.raises(CheckpointError, match="Pass -O mode="):
        importing(folder / "second", stage1=first)
    with pytest.raises(CheckpointError, match="Pass -O train_weight="):
        importing(folder / "second", stage1=first, mode="converse")
    with pytest.raises(CheckpointError, match=r"train_weight=2: Expected .* <= 1"):
        importing(folder / "second", stage1=first, mode="converse", train_weight="2")
    with pytest.raises(CheckpointError, match="no such file"):
        importing(folder / "second", stage1="nowhere", mode="simple")
    with pytest.raises(CheckpointError, match=r"mode=convers: Invalid enum"):
        importing(folder / "second", stage1=first, mode="convers")
    run_folder(folder / "other", official.coop(weights, names=NAMES[:2]))
    with pytest.raises(CheckpointError, match="trained for different classes"):
        importing(folder / "second", stage1=str(folder / "other"), mode="simple")
    run_folder(folder / "longer", official.coop(weights, tokens=5))
    with pytest.raises(CheckpointError, match="do not belong together"):
        importing(folder / "second", stage1=str(folder / "longer"), mode="simple")
    run_folder(folder / "specific", official.coop_class_specific(weights))
    with pytest.raises(CheckpointError, match="DPC needs unified"):
        importing(folder / "second", stage1=str(folder / "specific"), mode="simple")
    run_folder(folder / "cocoop", official.cocoop(weights))
    with pytest.raises(
        CheckpointError, match=r"cocoop.* is of cocoop: official code of DPC exists for CoOp"
    ):
        importing(folder / "second", stage1=str(folder / "cocoop"), mode="simple")
    with pytest.raises(CheckpointError, match=r"is of cocoop: official code"):
        importing(folder / "cocoop", stage1=first, mode="simple")


def test_options_of_other_methods_are_refused(importing: Importing, weights: Weights) -> None:
    with pytest.raises(CheckpointError, match=r"-O cpn= says nothing about CoOp .*It takes epoch"):
        importing(official.coop(weights), cpn="10")
    with pytest.raises(CheckpointError, match="Did you mean 'position'"):
        importing(official.coop(weights), positon="end")
    with pytest.raises(CheckpointError, match="position=left: Invalid enum value 'left'"):
        importing(official.coop(weights), position="left")


@pytest.mark.parametrize("kind", ["coop", "ivlp", "vpt", "cmpa"])
def test_another_clip_is_noticed(
    kind: str, weights: Weights, tiny_config: ClipConfig, tiny_model: ModelFiles, tmp_path: Path
) -> None:
    state = {
        "coop": lambda: official.coop(weights),
        "ivlp": lambda: official.ivlp(weights, tiny_config),
        "vpt": lambda: official.vpt(weights, tiny_config),
        "cmpa": lambda: official.cmpa(weights, tiny_config),
    }[kind]()
    save_file(random_weights(tiny_config, seed=1), tmp_path / "other.safetensors")

    with pytest.raises(CheckpointError, match="another CLIP than tiny"):
        convert(
            ImportRequest(
                path=run_folder(tmp_path / "run", state),
                model=tiny_model.model,
                pretrained=str(tmp_path / "other.safetensors"),
            )
        )


def test_weights_tell_another_clip_where_words_cannot(
    importing: Importing, weights: Weights, tiny_config: ClipConfig
) -> None:
    """PromptSRC averages the frozen weights in half precision; ViT-B/16 and /32 share no weight."""
    state = official.promptsrc(weights, tiny_config)
    near, far = dict(state), dict(state)
    name = "image_encoder.conv1.weight"
    near[name] = state[name] * 1.001
    far[name] = state[name] * 1.05

    assert importing(near).header.method == "promptsrc"
    with pytest.raises(CheckpointError, match=r"another CLIP .*conv1\.weight has other weights"):
        importing(far)
    far[name] = state[name][..., :4]
    with pytest.raises(CheckpointError, match=r"conv1\.weight has \(32, 3, 8, 4\)"):
        importing(far)


def test_prompts_of_another_width(importing: Importing, weights: Weights) -> None:
    state = official.coop(weights)
    state["token_prefix"] = values(4, 1, 512)

    with pytest.raises(CheckpointError, match=r"another CLIP .*width 24 expected"):
        importing(state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"adapter.weight": (2, 2)}, "looks like CoOp .* 1 of its tensors .* adapter.weight"),
        ({"ctx": (3, 24)}, "which leaves 4 for the prompts; they are 3"),
        ({"ctx": (4, 23)}, r"ctx is \(4, 23\), expected \(any, 24\)"),
        ({"VPT_image_trans.conv1.0.weight": (2, 2)}, "student of PromptKD"),
    ],
)
def test_a_coop_file_that_is_not_one(
    change: dict[str, tuple[int, ...]], message: str, importing: Importing, weights: Weights
) -> None:
    state = official.coop(weights) | {name: values(*shape) for name, shape in change.items()}

    with pytest.raises(CheckpointError, match=message):
        importing(state)


def test_unfamiliar_tensors_are_no_method(importing: Importing) -> None:
    with pytest.raises(CheckpointError, match=r"of no method known here: .* start with fc.weight"):
        importing({"fc.weight": values(2, 2)})


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("image_encoder.transformer.resblocks.1.VPT_shallow", r"layers \[0, 2\]; expected"),
        ("prompt_learner.token_suffix", "no class names"),
    ],
)
def test_ivlp_with_a_gap(
    lost: str, message: str, importing: Importing, weights: Weights, tiny_config: ClipConfig
) -> None:
    state = official.ivlp(weights, tiny_config)
    del state[lost]

    with pytest.raises(CheckpointError, match=message):
        importing(state)


def test_maple_with_a_gap(importing: Importing, weights: Weights, tiny_config: ClipConfig) -> None:
    state = official.maple(weights, tiny_config, depth=3)
    del state["prompt_learner.compound_prompt_projections.1.weight"]
    with pytest.raises(CheckpointError, match="do not belong together"):
        importing(state)

    state = official.maple(weights, tiny_config, depth=4)
    with pytest.raises(CheckpointError, match="prompts 4 layers; this model has 3"):
        importing(state)


def test_prompts_that_are_not_numbers(importing: Importing, weights: Weights) -> None:
    state = official.coop(weights)
    state["ctx"][0, 0] = float("nan")

    with pytest.raises(CheckpointError, match="ctx holds NaN"):
        importing(state)


def test_class_buffers_of_changed_embeddings(importing: Importing, weights: Weights) -> None:
    state = official.coop(weights)
    state["token_suffix"] = state["token_suffix"] * 1.5

    with pytest.raises(CheckpointError, match="no token embedding of this model"):
        importing(state)


def test_prompts_without_class_buffers(importing: Importing, weights: Weights) -> None:
    state = {"ctx": official.coop(weights)["ctx"]}

    conversion = importing(state, classes=NAMES)

    assert conversion.header.class_names == NAMES
    assert conversion.header.structure == Plain()
    assert any("hold nothing of their own" in each for each in conversion.assumptions)
