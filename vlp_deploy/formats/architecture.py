"""What a CLIP model and its prompts look like: the words that checkpoints and bundles share.

Every class here is a frozen, strictly checked record that reads from and writes to JSON.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from vlp_deploy.errors import ModelError

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)

Position = Literal["end", "middle", "front"]
Count = Annotated[int, msgspec.Meta(ge=1)]
Positive = Annotated[float, msgspec.Meta(gt=0)]


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A frozen record; unknown fields in JSON are an error, never ignored."""


class VisionTower(Record, frozen=True, kw_only=True):
    """A CLIP vision transformer: square images, square patches, a class token, no dropout."""

    image_size: Count
    patch_size: Count
    width: Count
    layers: Count
    heads: Count
    mlp_width: Count

    def __post_init__(self) -> None:
        _check_heads(self.width, self.heads)
        if self.patch_size > self.image_size:
            raise ValueError(f"patches of {self.patch_size} do not fit in {self.image_size} pixels")

    @property
    def patches(self) -> int:
        """Patch tokens an image, the class token not counted."""
        return (self.image_size // self.patch_size) ** 2


class OtherVision(Record, frozen=True, kw_only=True):
    """Any other image tower of open_clip's (ResNet, ConvNeXt, FastViT …), square images.

    It runs as the graph that PyTorch's exporter makes of it; prompts cannot enter it. `options` is
    open_clip's `vision_cfg`.
    """

    name: str
    image_size: Count
    options: dict[str, Any]


class TextTower(Record, frozen=True, kw_only=True):
    """CLIP's text transformer; the feature is read at the end-of-text token.

    Where it is not `causal` (MobileCLIP-S), all `context_length` tokens see each other, those
    behind the end of text included. `options` is open_clip's `text_cfg` of a tower that is not
    CLIP's or has another tokenizer (SigLIP): it serves the classes that were baked, and no others.
    """

    context_length: Count
    vocab_size: Count
    width: Count
    layers: Count
    heads: Count
    mlp_width: Count
    causal: bool = True
    options: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        _check_heads(self.width, self.heads)


def _check_heads(width: int, heads: int) -> None:
    if width % heads:
        raise ValueError(f"a width of {width} does not divide into {heads} heads")


class ClipConfig(Record, frozen=True, kw_only=True):
    """A CLIP with CLIP's own text tower (arXiv:2103.00020, section 2.4).

    Its image tower is a plain ViT, which prompts can enter, or another one.
    """

    embed_dim: Count
    quick_gelu: bool
    vit: VisionTower | None = msgspec.field(name="vision", default=None)
    other: OtherVision | None = msgspec.field(name="other_vision", default=None)
    text: TextTower

    def __post_init__(self) -> None:
        if (self.vit is None) == (self.other is None):
            raise ValueError("there must be one image tower, vision or other_vision")

    @property
    def vision(self) -> VisionTower:
        """The plain ViT. Raises ModelError where the image tower is another one."""
        if self.vit is None:
            raise ModelError(
                f"the image tower is {self.image_tower}, which prompts cannot enter: that takes a "
                "plain ViT, such as that of ViT-B-16-quickgelu"
            )
        return self.vit

    @property
    def image_size(self) -> int:
        """Pixels of an image's side."""
        return self.vision.image_size if self.other is None else self.other.image_size

    @property
    def image_tower(self) -> str:
        """What it is, to be told."""
        return "a plain ViT" if self.other is None else self.other.name

    @classmethod
    def from_open_clip(cls, config: Mapping[str, Any]) -> "ClipConfig":
        """Read open_clip's model configuration (`open_clip.get_model_config(name)` or a JSON file).

        Raises ModelError for parts that open_clip's models with two plain towers do not have, and
        for values that no tower can have, naming the option.
        """
        model = _options(config, _Model, "the model configuration")
        own_tokenizer = bool(model.text_cfg.get("hf_tokenizer_name"))
        read = _converted if own_tokenizer else _options
        text = read(model.text_cfg, _Text, "text_cfg")
        if text.hf_model_name or (model.init_logit_bias is not None and not own_tokenizer):
            raise ModelError(
                f"the model configuration has hf_model_name={text.hf_model_name!r} and "
                f"init_logit_bias={model.init_logit_bias}: text towers of the HF hub, and a bias "
                "with CLIP's own text tower, are not supported. Choose another model"
            )
        towers = {
            "embed_dim": model.embed_dim,
            "quick_gelu": model.quick_gelu,
            **_image_tower(model.vision_cfg, other=own_tokenizer),
            "text": {
                "context_length": text.context_length,
                "vocab_size": text.vocab_size,
                "width": text.width,
                "layers": text.layers,
                "heads": text.heads,
                "mlp_width": int(text.width * text.mlp_ratio),
                "causal": not text.no_causal_mask,
                "options": model.text_cfg if own_tokenizer else None,
            },
        }
        try:
            return msgspec.convert(towers, cls)
        except msgspec.ValidationError as error:
            raise ModelError(f"the model configuration describes no CLIP: {error}") from None


class Preprocessing(Record, frozen=True, kw_only=True):
    """From an upright RGB image to what the image tower reads.

    Resize the shorter side to `image_size` with `interpolation` and crop the centre, or `squash`
    both sides to it; then `(pixel / 255 - mean) / std`. `exif_transpose` turns photos upright
    first.
    """

    image_size: Count
    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[Positive, Positive, Positive] = OPENAI_STD
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resize_mode: Literal["shortest", "squash"] = "shortest"
    exif_transpose: bool = True
    background: tuple[int, int, int] = (255, 255, 255)  # under transparent pixels


class TextLayout(Record, frozen=True, kw_only=True):
    """Where learned text prompts stand in a template's tokens.

    `tokens` learned vectors replace the first `tokens` tokens after start-of-text of the tokenized
    template; words of the template beyond them stay as fixed text (MaPLe's "of a"). `position`
    moves the class name: `end` V…V CLASS., `front` CLASS V…V., `middle` V… CLASS …V. (CoOp,
    arXiv:2109.01134, section 3.2). `tokens` = 0: nothing is learned, templates are read as they
    stand and averaged.

    `front` and `middle` have to know where the class name ends. It is everything between the words
    before it and the full stop; where its last token is one with the full stop ("foo (bar)" gives
    ")."), that token belongs to the name. `official_span` counts the tokens of the bare name
    instead, as the official CoOp does, and so cuts such names at another place.
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
    """Which CLIP the prompts belong to; `sha256` is `formats.weights.fingerprint` of it."""

    name: str
    pretrained: str
    sha256: str
    config: ClipConfig


Options = TypeVar("Options", bound=msgspec.Struct)


class _Model(msgspec.Struct, frozen=True):
    """open_clip's model configuration."""

    embed_dim: Count
    vision_cfg: dict[str, Any]
    text_cfg: dict[str, Any]
    quick_gelu: bool = False
    init_logit_bias: float | None = None
    preprocess_cfg: Any = None  # read where weights are


class _Vision(msgspec.Struct, frozen=True):
    """open_clip's `vision_cfg`, with its defaults."""

    image_size: Count = 224
    patch_size: Count = 16
    width: Count = 768
    layers: Count = 12
    head_width: Count = 64
    mlp_ratio: Positive = 4.0


class _Text(msgspec.Struct, frozen=True):
    """open_clip's `text_cfg`, with its defaults."""

    context_length: Count = 77
    vocab_size: Count = 49408
    width: Count = 512
    layers: Count = 12
    heads: Count = 8
    mlp_ratio: Positive = 4.0
    no_causal_mask: bool = False
    hf_model_name: str | None = None


class _OtherVision(msgspec.Struct, frozen=True):
    """What is read of the `vision_cfg` of any other tower; open_clip builds it."""

    image_size: Count = 224
    timm_model_name: str | None = None
    layers: Any = None


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
    "hf_tokenizer_name": None,
    "embed_cls": False,
    "proj_type": "linear",
    "proj_bias": False,
    "custom_text": (False, True),  # the same tower under other names
}


def _image_tower(given: Mapping[str, Any], *, other: bool) -> dict[str, Any]:
    """The field of ClipConfig that holds the tower of a `vision_cfg`; `other` whatever it is."""
    if other or _is_other(given):
        tower = _converted(given, _OtherVision, "vision_cfg")
        resnet = isinstance(tower.layers, list | tuple)
        name = tower.timm_model_name or ("a ResNet" if resnet else "another ViT")
        options = {"name": name, "image_size": tower.image_size, "options": dict(given)}
        return {"other_vision": options}
    vision = _options(given, _Vision, "vision_cfg")
    vit = {
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "width": vision.width,
        "layers": vision.layers,
        "heads": vision.width // vision.head_width,
        "mlp_width": int(vision.width * vision.mlp_ratio),
    }
    return {"vision": vit}


def _is_other(given: Mapping[str, Any]) -> bool:
    """Whether a `vision_cfg` is of another tower than a plain ViT."""
    known = (name for name in given if name in NEUTRAL)
    return isinstance(given.get("layers"), list | tuple) or not all(
        _is_neutral(name, given[name]) for name in known
    )


def _is_neutral(name: str, value: Any) -> bool:
    neutral = NEUTRAL.get(name, ())
    return value in (neutral if isinstance(neutral, tuple) else (neutral,))


def _options(given: Mapping[str, Any], kind: type[Options], where: str) -> Options:
    """`given` over the defaults; refuse any option that would make another kind of tower."""
    for name, value in given.items():
        if name not in kind.__struct_fields__ and not _is_neutral(name, value):
            raise ModelError(
                f"{where} has {name}={value!r}, which no model with CLIP's own text tower and "
                "tokenizer has. Supported are open_clip's models without HF or CoCa parts, "
                "for example ViT-B-16-quickgelu, RN50-quickgelu or convnext_base"
            )
    return _converted(given, kind, where)


def _converted(given: Mapping[str, Any], kind: type[Options], where: str) -> Options:
    try:
        return msgspec.convert(dict(given), kind)
    except msgspec.ValidationError as error:
        raise ModelError(f"{where}: {error}. Expected open_clip's JSON") from None
