"""Towers that are no plain ViT or no CLIP text tower: open_clip's own modules."""

from typing import Any

from torch import nn

from vlp_deploy.errors import MissingExtraError, ModelError
from vlp_deploy.formats.architecture import ClipConfig

SMALL_IMAGE = {"image_size": 8, "patch_size": 8, "width": 8, "head_width": 8, "layers": 1}
SMALL_TEXT = {"context_length": 4, "vocab_size": 4, "width": 8, "heads": 1, "layers": 1}


def image_tower(config: ClipConfig) -> nn.Module:
    """open_clip's module of an image tower, its weights at random.

    Raises ModelError if open_clip cannot build it; MissingExtraError where it is not installed.
    """
    assert config.other is not None
    options = {**config.other.options, "timm_model_pretrained": False}
    tower: nn.Module = _network(config, options, SMALL_TEXT).visual
    return tower


def text_tower(config: ClipConfig) -> nn.Module:
    """open_clip's module of a text tower that is not CLIP's: token ids (N, L) → features (N, D).

    Raises as `image_tower`.
    """
    assert config.text.options is not None
    tower: nn.Module = _network(config, SMALL_IMAGE, config.text.options).text
    return tower


def _network(config: ClipConfig, vision: dict[str, Any], text: dict[str, Any]) -> Any:
    """One of open_clip's public classes, which make both towers; one of them is dropped."""
    try:
        import open_clip
    except ModuleNotFoundError:
        what = "A model other than vlp-tiny or a plain ViT"
        raise MissingExtraError(what, needs="open_clip_torch", extra="train") from None
    try:
        return open_clip.CustomTextCLIP(
            config.embed_dim, vision, text, quick_gelu=config.quick_gelu
        )
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise ModelError(
            f"this version of open_clip cannot build the towers of {config.image_tower} "
            f"({error}). Check vision_cfg and text_cfg, or update open_clip_torch and timm"
        ) from error
