"""open_clip's configurations become checked records; what is no plain CLIP is named."""

import copy
from typing import Any

import msgspec
import pytest

from vlp_deploy.errors import ModelError
from vlp_deploy.formats.architecture import ClipConfig, VisionTower

OPEN_CLIP: dict[str, Any] = {
    "embed_dim": 512,
    "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
}


def changed(where: str, **options: Any) -> dict[str, Any]:
    config = copy.deepcopy(OPEN_CLIP)
    (config[where] if where else config).update(options)
    return config


def test_a_vit_is_read() -> None:
    config = ClipConfig.from_open_clip(OPEN_CLIP)

    assert (config.vision.heads, config.vision.mlp_width, config.vision.patches) == (12, 3072, 49)
    assert (config.text.heads, config.text.mlp_width) == (8, 2048)
    assert not config.quick_gelu


def test_a_config_survives_json() -> None:
    config = ClipConfig.from_open_clip(changed("", quick_gelu=True))

    assert msgspec.json.decode(msgspec.json.encode(config), type=ClipConfig) == config


@pytest.mark.parametrize("neutral", [{"timm_model_name": None}, {"pool_type": "tok"}])
def test_options_that_say_what_holds_anyway_are_accepted(neutral: dict[str, Any]) -> None:
    config = ClipConfig.from_open_clip(changed("vision_cfg", **neutral))

    assert config == ClipConfig.from_open_clip(OPEN_CLIP)


@pytest.mark.parametrize(
    ("where", "options", "message"),
    [
        ("vision_cfg", {"image_size": [224, 224]}, r"vision_cfg: Expected `int`, got `array`"),
        ("vision_cfg", {"patch_size": 0}, r"vision_cfg: .*>= 1.*patch_size"),
        ("vision_cfg", {"patch_size": 256}, "patches of 256 do not fit in 224 pixels"),
        ("vision_cfg", {"head_width": 0}, r">= 1.*head_width"),
        ("vision_cfg", {"width": 32}, r"vision\.heads"),
        ("vision_cfg", {"mlp_ratio": -1.0}, "mlp_ratio"),
        ("vision_cfg", {"widht": 64}, "has widht=64"),
        ("text_cfg", {"heads": 7}, "width of 512 does not divide into 7 heads"),
        ("text_cfg", {"layers": True}, "Expected `int`, got `bool`"),
        ("text_cfg", {"hf_model_name": "bert"}, "has hf_model_name='bert'"),
        ("", {"init_logit_bias": -10.0}, r"init_logit_bias=-10\.0: .* with CLIP's own text tower"),
        ("", {"embed_dim": "512"}, r"Expected `int`, got `str` - at `\$\.embed_dim`"),
        ("", {"vision_cfg": []}, r"vision_cfg"),
        ("", {"multimodal_cfg": {}}, "has multimodal_cfg="),
    ],
)
def test_configurations_of_no_clip_name_the_option(
    where: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        ClipConfig.from_open_clip(changed(where, **options))


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"layers": [3, 4, 6, 3], "patch_size": None}, "a ResNet"),
        ({"timm_model_name": "convnext_base"}, "convnext_base"),
        ({"attentional_pool": True}, "another ViT"),
    ],
)
def test_another_image_tower_is_kept_as_open_clip_has_it(
    options: dict[str, Any], name: str
) -> None:
    given = changed("vision_cfg", **options)

    config = ClipConfig.from_open_clip(given)

    assert config.image_tower == name
    assert config.image_size == 224
    assert config.other is not None
    assert config.other.options == given["vision_cfg"]
    assert msgspec.json.decode(msgspec.json.encode(config), type=ClipConfig) == config
    with pytest.raises(ModelError, match=f"image tower is {name}, which prompts cannot enter"):
        _ = config.vision


def test_a_model_has_one_image_tower() -> None:
    config = msgspec.to_builtins(ClipConfig.from_open_clip(OPEN_CLIP))
    del config["vision"]

    with pytest.raises(msgspec.ValidationError, match="one image tower"):
        msgspec.convert(config, ClipConfig)


def test_a_text_tower_without_a_causal_mask_is_read() -> None:
    config = ClipConfig.from_open_clip(changed("text_cfg", no_causal_mask=True))

    assert not config.text.causal


def test_a_text_tower_with_another_tokenizer_is_kept_as_open_clip_has_it() -> None:
    given = changed("text_cfg", hf_tokenizer_name="t5", pool_type="last", no_causal_mask=True)

    config = ClipConfig.from_open_clip({**given, "init_logit_bias": -10})

    assert config.text.options == given["text_cfg"]
    assert config.image_tower == "another ViT"  # open_clip's, as both towers are


@pytest.mark.parametrize("missing", ["embed_dim", "vision_cfg", "text_cfg"])
def test_a_missing_part_is_named(missing: str) -> None:
    config = {name: value for name, value in OPEN_CLIP.items() if name != missing}

    with pytest.raises(ModelError, match=f"missing required field `{missing}`"):
        ClipConfig.from_open_clip(config)


def test_a_tower_in_a_header_is_checked_too() -> None:
    tower = msgspec.to_builtins(ClipConfig.from_open_clip(OPEN_CLIP).vision)

    with pytest.raises(msgspec.ValidationError, match="patch_size"):
        msgspec.convert({**tower, "patch_size": -16}, VisionTower)
