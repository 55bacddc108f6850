"""What a CLIP model and its prompts look like: the words that checkpoints and bundles share.

Every class here is a frozen, strictly checked record that reads from and writes to JSON.
"""

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from vlp_deploy.errors import ModelError

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)

Position = Literal["end", "middle", "front"]


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A frozen record; unknown fields in JSON are an error, never ignored."""


class VisionTower(Record, frozen=True, kw_only=True):
    """A CLIP vision transformer: square images, square patches, a class token, no dropout."""

    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int
    mlp_width: int

    @property
    def patches(self) -> int:
        """Patch tokens an image, the class token not counted."""
        return (self.image_size // self.patch_size) ** 2


class TextTower(Record, frozen=True, kw_only=True):
    """CLIP's causal text transformer; the feature is read at the end-of-text token."""

    context_length: int
    vocab_size: int
    width: int
    layers: int
    heads: int
    mlp_width: int


class ClipConfig(Record, frozen=True, kw_only=True):
    """A CLIP with a ViT image tower and CLIP's own text tower (arXiv:2103.00020, section 2.4)."""

    embed_dim: int
    quick_gelu: bool
    vision: VisionTower
    text: TextTower

    @classmethod
    def from_open_clip(cls, config: Mapping[str, Any]) -> "ClipConfig":
        """Read open_clip's model configuration (`open_clip.get_model_config(name)` or a JSON file).

        Raises ModelError for towers that are not the plain CLIP ones, naming the option.
        """
        vision = _known(config.get("vision_cfg", {}), VISION_DEFAULTS, "vision_cfg")
        text = _known(config.get("text_cfg", {}), TEXT_DEFAULTS, "text_cfg")
        _known(config, TOP_DEFAULTS, "the configuration")
        if "embed_dim" not in config:
            raise ModelError("the model configuration has no embed_dim; expected open_clip's JSON")
        return cls(
            embed_dim=config["embed_dim"],
            quick_gelu=bool(config.get("quick_gelu", False)),
            vision=VisionTower(
                image_size=vision["image_size"],
                patch_size=vision["patch_size"],
                width=vision["width"],
                layers=vision["layers"],
                heads=vision["width"] // vision["head_width"],
                mlp_width=int(vision["width"] * vision["mlp_ratio"]),
            ),
            text=TextTower(
                context_length=text["context_length"],
                vocab_size=text["vocab_size"],
                width=text["width"],
                layers=text["layers"],
                heads=text["heads"],
                mlp_width=int(text["width"] * text["mlp_ratio"]),
            ),
        )


class Preprocessing(Record, frozen=True, kw_only=True):
    """From an upright RGB image to what the image tower reads.

    Resize the shorter side to `image_size` with `interpolation`, crop the centre, then
    `(pixel / 255 - mean) / std`. `exif_transpose` turns photos upright first.
    """

    image_size: int
    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD
    interpolation: Literal["bicubic"] = "bicubic"
    resize_mode: Literal["shortest"] = "shortest"
    exif_transpose: bool = True
    background: tuple[int, int, int] = (255, 255, 255)  # under transparent pixels


class TextLayout(Record, frozen=True, kw_only=True):
    """Where learned text prompts stand in a template's tokens.

    `tokens` learned vectors replace the first `tokens` tokens after start-of-text of the tokenized
    template; words of the template beyond them stay as fixed text (MaPLe's "of a"). `position`
    moves the class name: `end` V…V CLASS., `front` CLASS V…V., `middle` V… CLASS …V. (CoOp,
    arXiv:2109.01134, section 3.2). `tokens` = 0: nothing is learned, templates are read as they
    stand and averaged. `official_span`: the class name's tokens are counted by tokenizing the bare
    name, as the official CoOp does; otherwise they are located in the whole prompt.
    """

    tokens: int = 0
    position: Position = "end"
    official_span: bool = False


class VisualLayout(Record, frozen=True, kw_only=True):
    """How learned visual prompts enter the image tower.

    `pre_ln`: prompts of layer 0 go through `ln_pre` (MaPLe's code); otherwise they join after it
    (DPT's). `survive_last`: the last set is not dropped after its layer but travels on as tokens
    to the end.
    """

    tokens: int = 0
    pre_ln: bool = True
    survive_last: bool = False


class Backbone(Record, frozen=True, kw_only=True):
    """Which CLIP the prompts belong to; `sha256` is `vlp_deploy.weights.fingerprint` of it."""

    name: str
    pretrained: str
    sha256: str
    config: ClipConfig


_REQUIRED = object()
TOP_DEFAULTS: dict[str, Any] = {
    "embed_dim": _REQUIRED,
    "vision_cfg": _REQUIRED,
    "text_cfg": _REQUIRED,
    "quick_gelu": ...,
    "preprocess_cfg": ...,
}
VISION_DEFAULTS: dict[str, Any] = {
    "image_size": 224,
    "patch_size": 16,
    "width": 768,
    "layers": 12,
    "head_width": 64,
    "mlp_ratio": 4.0,
}
TEXT_DEFAULTS: dict[str, Any] = {
    "context_length": 77,
    "vocab_size": 49408,
    "width": 512,
    "layers": 12,
    "heads": 8,
    "mlp_ratio": 4.0,
}
# Options whose given value means "as in the plain CLIP": configurations may spell them out.
NEUTRAL: dict[str, Any] = {
    "ls_init_value": None,
    "patch_dropout": 0.0,
    "attentional_pool": False,
    "no_ln_pre": False,
    "pos_embed_type": "learnable",
    "final_ln_after_pool": False,
    "pool_type": ("tok", "argmax"),
    "output_tokens": False,
    "timm_model_name": None,
    "hf_model_name": None,
    "no_causal_mask": False,
    "embed_cls": False,
    "proj_type": "linear",
    "proj_bias": False,
    "custom_text": False,
}


def _known(options: Mapping[str, Any], known: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`options` over the defaults; refuse any option that would make another kind of tower."""
    for name, value in options.items():
        neutral = NEUTRAL.get(name, _REQUIRED)
        accepted = neutral if isinstance(neutral, tuple) else (neutral,)
        if name not in known and value not in accepted:
            raise ModelError(
                f"{where} has {name}={value!r}, which is not a plain CLIP ViT with CLIP's text "
                "tower. Supported are open_clip's ViT-* models without timm, HF or CoCa parts, "
                "for example ViT-B-16-quickgelu"
            )
    merged = {**known, **{name: value for name, value in options.items() if name in known}}
    if not isinstance(merged.get("layers", 1), int):
        raise ModelError(f"{where} describes a ResNet (layers={merged['layers']}); a ViT is needed")
    return merged
