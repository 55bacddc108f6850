"""From `--model` and `--pretrained` to a frozen CLIP and the record that names it.

A model is `vlp-tiny` (embedded), one of open_clip's names, or an open_clip JSON configuration;
weights are one of open_clip's tags or a local safetensors or PyTorch file. open_clip is imported
only where its names are used, and nothing is ever unpickled.
"""

import json
import warnings
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from vlp_deploy import embedded
from vlp_deploy.errors import MissingExtraError, ModelError
from vlp_deploy.formats.architecture import (
    Backbone,
    ClipConfig,
    Preprocessing,
)
from vlp_deploy.formats.weights import (
    Floats,
    check_shapes,
    fingerprint,
    load_weights,
    plain_name,
    wanted_names,
)
from vlp_train.baked import OtherTextClip
from vlp_train.clip import Clip

QUICK_GELU_SUFFIX = "-quickgelu"
TORCH_SUFFIXES = (".pt", ".pth", ".bin")
READ_OPTIONS = ("mean", "std", "interpolation", "resize_mode")  # of a preprocess_cfg
# used by batch normalisation in training alone; 0 where there is none
OPTIONAL = ("num_batches_tracked", "logit_bias")


def load_backbone(
    model: str, pretrained: str | None = None, *, device: str | torch.device = "cpu"
) -> tuple[Clip, Backbone]:
    """A frozen CLIP in float32 with its weights, and the record for checkpoint headers.

    Of a local weights file the record keeps the name, not the folder: it travels with the prompts.

    Raises ModelError for unknown names and tags, text towers that are not CLIP's, weights that do
    not fit or belong with another activation; MissingExtraError where open_clip is not installed.
    """
    if model == embedded.MODEL_NAME:
        tag = pretrained or embedded.PRETRAINED
        path = embedded.weights_path() if tag == embedded.PRETRAINED else Path(tag)
        config, weights = embedded.config(), _local_weights(path, embedded.config())
    elif _is_file(model):
        tag, config = _given(model, pretrained), _read_config(Path(model))
        weights = _local_weights(Path(tag), config)
    else:
        tag = _given(model, pretrained)
        config, weights = _from_open_clip(model, tag)
    name = Path(model).stem if _is_file(model) else model
    tag = Path(tag).name if _is_local(tag) else tag
    backbone = Backbone(name=name, pretrained=tag, sha256=fingerprint(weights), config=config)
    return build_clip(config, weights).to(device), backbone


def reload_backbone(backbone: Backbone, pretrained: str | None = None) -> Clip:
    """The CLIP that a checkpoint's header names; `pretrained` is a file or a tag of its weights.

    Raises ModelError if its weights are a local file and `pretrained` does not say where, or if
    other weights are found there.
    """
    tag = pretrained or backbone.pretrained
    if backbone.name == embedded.MODEL_NAME and tag == embedded.PRETRAINED:
        weights = _local_weights(embedded.weights_path(), backbone.config)
    elif not _is_local(tag):
        weights = pretrained_weights(backbone.name, tag, backbone.config)
    elif pretrained is None:
        raise ModelError(
            f"the weights of {backbone.name} are the local file {tag!r}: say where it is with "
            "--pretrained"
        )
    else:
        weights = _local_weights(Path(tag), backbone.config)
    sha256 = fingerprint(weights)
    if sha256 != backbone.sha256:
        raise ModelError(
            f"the weights {tag!r} of {backbone.name} have fingerprint {sha256[:12]}, the prompts "
            f"were trained with {backbone.sha256[:12]}. Pass the same weights with --pretrained"
        )
    return build_clip(backbone.config, weights)


def pretrained_weights(model: str, tag: str, config: ClipConfig) -> dict[str, Floats]:
    """What open_clip has under a tag for one of its models, of the shape `config`.

    Raises ModelError for names that open_clip does not know.
    """
    if model not in _open_clip().list_models():
        raise ModelError(
            f"the prompts belong to {model} ({tag}), which open_clip does not know, and whose "
            "weights are not part of the installation. Pass them with --pretrained "
            "FILE.safetensors"
        )
    _check_tag(model, tag)
    return _as_arrays(_downloaded(model, tag, config.quick_gelu), config, source=tag)


def load_preprocessing(model: str, pretrained: str | None = None) -> Preprocessing:
    """How images are prepared for a model: its own mean and std where they are known.

    Raises ModelError where a model wants another resize than CLIP's.
    """
    options: Mapping[str, Any] = {}
    if model == embedded.MODEL_NAME:
        size = embedded.config().image_size
    elif _is_file(model):
        size = _read_config(Path(model)).image_size
        options = _read_json(Path(model)).get("preprocess_cfg", {})
    else:
        size = ClipConfig.from_open_clip(_named_config(model)).image_size
        options = _named_preprocessing(model, pretrained or "")
    return _preprocessing(size, options, source=f"{model} with {pretrained}")


def _preprocessing(size: int, options: Any, *, source: str) -> Preprocessing:
    """open_clip's `preprocess_cfg`; what it leaves out is CLIP's."""
    if not isinstance(options, Mapping):
        raise ModelError(f"{source}: preprocess_cfg must be an object, got {options!r}")
    given = {name: options[name] for name in READ_OPTIONS if options.get(name) is not None}
    try:
        return msgspec.convert({"image_size": size, **given}, Preprocessing)
    except msgspec.ValidationError as error:
        raise ModelError(f"{source}: preprocess_cfg: {error}") from None


def _named_preprocessing(model: str, pretrained: str) -> Mapping[str, Any]:
    """open_clip's options for a tag; for a local file those on which all the model's tags agree."""
    of_tags = {tag: _open_clip().get_pretrained_cfg(model, tag) or {} for tag in _tags(model)}
    if pretrained in of_tags:
        return of_tags[pretrained]
    kinds = {_preprocessing(1, options, source=model) for options in of_tags.values()}
    if len(kinds) > 1:
        warnings.warn(
            f"{pretrained} does not say how its images were prepared, and open_clip's weights of "
            f"{model} differ in that. OpenAI's way is taken. For another, pass a .json "
            "configuration with preprocess_cfg as --model",
            stacklevel=3,
        )
        return {}
    return next(iter(of_tags.values()), {})


def build_clip(config: ClipConfig, weights: Mapping[str, Floats]) -> Clip:
    """A CLIP with these weights, frozen.

    Raises ModelError if they do not fit its image tower.
    """
    clip = Clip(config) if config.text.options is None else OtherTextClip(config)
    state = {name: torch.from_numpy(value) for name, value in weights.items()}
    try:
        missing, unexpected = clip.load_state_dict(state, strict=False)
    except RuntimeError as error:  # the shapes
        missing, unexpected = [str(error).splitlines()[-1].strip()], []
    missing = [name for name in missing if not name.endswith(OPTIONAL)]
    if missing or unexpected:
        raise ModelError(
            f"the weights do not fit {config.image_tower} as this open_clip builds it, first "
            f"{[*missing, *unexpected][0]}: they belong to another model"
        )
    return clip.requires_grad_(False).eval()


def _is_file(model: str) -> bool:
    return model.endswith(".json")


def _is_local(pretrained: str) -> bool:
    path = Path(pretrained)
    return path.suffix in (".safetensors", *TORCH_SUFFIXES) or path.is_file()


def _given(model: str, pretrained: str | None) -> str:
    if pretrained:
        return pretrained
    tags = [] if _is_file(model) or not _named_config(model) else _tags(model)
    hint = f" or one of {', '.join(tags)}" if tags else ""
    raise ModelError(f"--model {model} needs --pretrained: a local weights file{hint}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"the model configuration {path} cannot be read ({error}); expected open_clip's JSON"
        ) from error
    if not isinstance(content, dict):
        raise ModelError(f"the model configuration {path} is no JSON object; expected open_clip's")
    return content


def _read_config(path: Path) -> ClipConfig:
    content = _read_json(path)
    return ClipConfig.from_open_clip(content.get("model_cfg", content))  # as on the HF hub


def _local_weights(path: Path, config: ClipConfig) -> dict[str, Floats]:
    if path.suffix in TORCH_SUFFIXES:
        return _as_arrays(_torch_state(path), config, source=str(path))
    return load_weights(path, config)


def _torch_state(path: Path) -> Mapping[str, Tensor]:
    """A PyTorch file's state dict, read without unpickling anything but tensors."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ModelError(f"weights file {path} does not exist") from None
    except Exception as error:  # torch raises RuntimeError, UnpicklingError and others by format
        raise ModelError(
            f"{path} cannot be read as a plain PyTorch state dict "
            f"({str(error).splitlines()[0]}). Save it as safetensors, or pass open_clip's tag"
        ) from error
    state = content.get("state_dict", content) if isinstance(content, dict) else {}
    return {name.removeprefix("module."): value for name, value in state.items()}


def _as_arrays(
    state: Mapping[str, Tensor], config: ClipConfig, *, source: str
) -> dict[str, Floats]:
    state = {plain_name(name, config): value for name, value in state.items()}
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    check_shapes(shapes, config, source=source)
    floats = (name for name, value in state.items() if value.is_floating_point())
    return {name: state[name].detach().float().numpy() for name in wanted_names(config, floats)}


def _open_clip() -> Any:
    try:
        import open_clip
    except ModuleNotFoundError:
        raise MissingExtraError(
            "An open_clip model name", needs="open_clip_torch", extra="train"
        ) from None
    return open_clip


def _named_config(model: str) -> dict[str, Any]:
    config = _open_clip().get_model_config(model)
    if config is None:
        names = [embedded.MODEL_NAME, *_open_clip().list_models()]
        raise ModelError(
            f"there is no model {model!r}.{_closest(model, names)} Expected vlp-tiny, an open_clip "
            "name such as ViT-B-16-quickgelu, or the path of a .json configuration"
        )
    return dict(config)


def _tags(model: str) -> list[str]:
    return list(_open_clip().list_pretrained_tags_by_model(model))


def _closest(name: str, known: Iterable[str]) -> str:
    close = get_close_matches(name, known, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _from_open_clip(model: str, pretrained: str) -> tuple[ClipConfig, dict[str, Floats]]:
    """A named model's shape and weights, from a tag (downloaded by open_clip) or a local file."""
    named = _named_config(model)
    if _is_local(pretrained):
        _check_file_activation(model, pretrained)
        config = ClipConfig.from_open_clip(named)
        return config, _local_weights(Path(pretrained), config)
    _check_tag(model, pretrained)
    # The tag knows which activation its weights were trained with, the plain name does not:
    # with the wrong one nothing fails and accuracy drops.
    quick_gelu = bool(_open_clip().get_pretrained_cfg(model, pretrained).get("quick_gelu", False))
    config = ClipConfig.from_open_clip({**named, "quick_gelu": quick_gelu})
    return config, _as_arrays(_downloaded(model, pretrained, quick_gelu), config, source=pretrained)


def _check_tag(model: str, tag: str) -> None:
    if tag not in _tags(model):
        raise ModelError(
            f"{model} has no weights {tag!r}.{_closest(tag, _tags(model))} "
            f"Available: {', '.join(_tags(model))}; or the path of a local file"
        )


def _check_file_activation(model: str, path: str) -> None:
    if "openai" in Path(path).name.lower() and not model.endswith(QUICK_GELU_SUFFIX):
        raise ModelError(
            f"{path} looks like OpenAI's weights, which were trained with QuickGELU, and {model} "
            f"uses another activation: accuracy would drop silently. Use --model "
            f"{model}{QUICK_GELU_SUFFIX}, or rename the file if it is something else"
        )


def _downloaded(model: str, tag: str, quick_gelu: bool) -> Mapping[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its own remark on QuickGELU, settled above
            network = _open_clip().create_model(
                model, pretrained=tag, force_quick_gelu=quick_gelu, device="cpu"
            )
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(
            f"the weights {tag!r} of {model} cannot be fetched ({str(error).splitlines()[0]}). "
            "Pass a local file with --pretrained"
        ) from error
    state: Mapping[str, Tensor] = network.state_dict()
    return state
