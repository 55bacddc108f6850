"""Deep language prompting and IVLP: what is learned, where it stands, how it is exported."""

from typing import Any

import msgspec
import pytest
import torch

from tests.train.checkpoints import build, check_export, enlarge, gradients
from vlp_deploy.classes.tokenizer import Tokenizer
from vlp_deploy.errors import TrainingError
from vlp_deploy.formats.architecture import ClipConfig, TextLayout, VisualLayout
from vlp_train.clip import Clip
from vlp_train.methods import method_config


def deeper(config: ClipConfig, *, text: int, vision: int) -> ClipConfig:
    replace = msgspec.structs.replace
    return replace(
        config,
        text=replace(config.text, layers=text),
        vit=replace(config.vision, layers=vision),
    )


def test_ivlp_learns_the_tokens_of_both_towers_and_nothing_else(tiny_clip: Clip) -> None:
    method = build(tiny_clip, "ivlp")

    found = gradients(method)

    assert {name: tuple(grad.shape) for name, grad in found.items()} == {
        "text": (3, 2, 24),
        "visual": (3, 2, 32),
    }
    # every layer's prompts matter
    assert all((grad.abs().amax(dim=(1, 2)) > 0).all() for grad in found.values())


def test_deep_language_leaves_the_image_tower_alone(tiny_clip: Clip) -> None:
    method = build(tiny_clip, "deep_language")

    found = gradients(method)

    assert {name: tuple(grad.shape) for name, grad in found.items()} == {"text": (3, 4, 24)}
    assert (found["text"].abs().amax(dim=(1, 2)) > 0).all()
    assert list(method.prompts()) == ["text.prompts"]
    assert not method.learns_image
    assert method.prompted.visual_layout == VisualLayout()


@pytest.mark.parametrize("name", ["deep_language", "ivlp"])
def test_words_beyond_the_learned_tokens_stay_as_text(tiny_clip: Clip, name: str) -> None:
    method = build(tiny_clip, name, text_tokens=2)
    words = tiny_clip.token_embedding.weight[Tokenizer.default().encode("a photo")]
    text = method.prompts()["text.prompts"]

    assert method.prompted.templates == ("a photo of a {}.",)
    assert method.prompted.text_layout == TextLayout(tokens=2)
    assert text[0].equal(words)
    assert 0.01 < text[1:].std() < 0.03  # N(0, 0.02²)


def test_the_first_layer_alone_is_the_zero_shot_sentence(tiny_clip: Clip) -> None:
    # with two tokens of "a photo of a", the class embeddings can only be right if "of a" follows
    method = build(tiny_clip, "deep_language", text_tokens=2, depth=1)
    zero_shot = build(tiny_clip, "zeroshot", templates=("a photo of a {}.",))

    with torch.no_grad():
        difference = (method.class_features() - zero_shot.class_features()).abs().max()

    assert difference < 1e-5  # float32


def test_without_words_the_first_layer_starts_at_random(tiny_clip: Clip) -> None:
    method = build(tiny_clip, "ivlp", words="", text_tokens=6)

    assert method.prompted.templates == ("X X X X X X {}.",)
    assert 0.01 < method.prompts()["text.prompts"][0].std() < 0.03  # N(0, 0.02²)


def test_prompts_are_a_function_of_the_seed_and_differ_between_towers(tiny_clip: Clip) -> None:
    one, again, other = (build(tiny_clip, "ivlp", seed=seed).state_dict() for seed in (1, 1, 2))

    assert all(one[name].equal(again[name]) for name in one)
    assert not one["visual"].equal(other["visual"])
    assert not one["text"][1, :, :24].equal(one["visual"][1, :, :24])


@pytest.mark.parametrize(
    ("name", "text", "visual", "expected"),
    [
        ("deep_language", 14, 14, (12, None)),
        ("ivlp", 14, 16, (12, 12)),
        ("promptsrc", 14, 16, (9, 9)),
        ("ivlp", 4, 6, (4, 6)),
        ("promptsrc", 4, 12, (4, 9)),
        ("maple", 14, 16, (9, 9)),
        ("maple", 4, 6, (4, 4)),
    ],
)
def test_a_depth_left_out_is_the_official_one_as_far_as_the_towers_reach(
    tiny_config: ClipConfig, name: str, text: int, visual: int, expected: tuple[int, int | None]
) -> None:
    method = build(Clip(deeper(tiny_config, text=text, vision=visual)), name)
    prompts = method.prompts()
    depths = tuple(
        len(prompts[key]) if key in prompts else None for key in ("text.prompts", "visual.prompts")
    )

    assert depths == expected
    if expected[1]:
        assert method.prompted.visual_layout.pre_ln
        assert method.prompted.visual_layout.survive_last == (expected[1] < visual)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ivlp", {"text_depth": 4}, "depth of 4 .* text tower's 3. Give 1 to 3"),
        ("ivlp", {"visual_depth": 4}, "depth of 4 .* image tower's 3. Give 1 to 3"),
        ("deep_language", {"depth": 5}, "depth of 5 .* text tower's 3"),
        ("promptsrc", {"visual_depth": 9}, "depth of 9 .* image tower's 3"),
        ("maple", {"depth": 4}, "depth of 4 .* tower's 3"),
        ("ivlp", {"text_tokens": 80, "words": ""}, "80 learned text tokens are too many.*most 73"),
        ("maple", {"tokens": 80, "words": ""}, "80 learned text tokens are too many"),
    ],
)
def test_what_does_not_fit_the_towers_is_refused(
    tiny_clip: Clip, name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        build(tiny_clip, name, **options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ivlp", {"text_tokens": 0}, "text_tokens must be at least 1, got 0"),
        ("ivlp", {"visual_depth": 0}, "visual_depth must be at least 1, got 0"),
        ("deep_language", {"depth": 0}, "depth must be at least 1, got 0"),
        ("ivlp", {"text_tokens": 5}, "5 text tokens are more than the 4 of words='a photo of a'"),
        ("maple", {"tokens": 3, "words": "a photo"}, "3 text tokens are more than the 2"),
    ],
)
def test_wrong_options_say_what_is_wrong(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        method_config(name, options)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("deep_language", {}),
        ("deep_language", {"depth": 1, "text_tokens": 2}),
        ("ivlp", {}),
        ("ivlp", {"text_depth": 2, "visual_depth": 1, "visual_tokens": 5}),
        ("ivlp", {"visual_depth": 2, "words": "", "text_tokens": 3}),
    ],
)
def test_the_export_equals_the_unfolded_forward_pass(
    tiny_clip: Clip, name: str, options: dict[str, Any]
) -> None:
    method = build(tiny_clip, name, **options)
    enlarge(method)

    contents = check_export(method, name)

    assert contents.manifest.new_classes.allowed


@pytest.mark.parametrize(
    ("name", "epochs", "rate", "batch"),
    [
        ("deep_language", 5, 0.0025, 4),
        ("ivlp", 5, 0.0035, 4),
        ("maple", 5, 0.0035, 4),
        ("promptsrc", 20, 0.0025, 4),
        ("kgcoop", 100, 0.002, 128),
    ],
)
def test_official_recipes(name: str, epochs: int, rate: float, batch: int) -> None:
    training = method_config(name, {}).training(16)

    found = (training.epochs, training.learning_rate, training.batch_size, training.warmup_epochs)
    assert found == (epochs, rate, batch, 1)
