"""A CLIP's weights as NumPy arrays: read from safetensors, checked against the configuration.

Names are open_clip's state-dict keys (`visual.conv1.weight`, `transformer.resblocks.0.ln_1.weight`
…).
"""

import hashlib
from collections.abc import Iterable, Mapping, Set
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize, safe_open

from vlp_deploy.errors import ModelError
from vlp_deploy.formats.architecture import ClipConfig, TextTower, VisionTower

Floats = NDArray[np.float32]
IMAGE_TOWER, TEXT_TOWER = "visual.", "text."  # in front of their tensors' names
FLOAT_TYPES = ("F32", "F16", "F64", "BF16")  # in safetensors' words


def load_weights(path: Path, config: ClipConfig) -> dict[str, Floats]:
    """All tensors of a CLIP in float32, each of the shape `config` asks for.

    Raises ModelError if the file is no safetensors file, lacks or misshapes a tensor, or holds
    numbers that are no plain floats.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            stored = {plain_name(name, config): name for name in list(file.keys())}
            slices = {name: file.get_slice(key) for name, key in stored.items()}
            shapes = {name: tuple(found.get_shape()) for name, found in slices.items()}
            types = {name: found.get_dtype() for name, found in slices.items()}
            check_shapes(shapes, config, source=str(path))
            _check_types({name: types[name] for name in expected_shapes(config)}, path)
            wanted = wanted_names(config, (name for name in types if types[name] in FLOAT_TYPES))
            narrow = {name: stored[name] for name in wanted if types[name] == "BF16"}
            found = {name: file.get_tensor(stored[name]) for name in wanted if name not in narrow}
        if narrow:
            wide = _bfloat16_tensors(path.read_bytes(), set(narrow.values()))
            found |= {name: wide[key] for name, key in narrow.items()}
    except FileNotFoundError:
        raise ModelError(f"weights file {path} does not exist") from None
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path} cannot be read as safetensors ({error}). "
            "Pass the weights of an open_clip model saved with safetensors"
        ) from error
    return {name: found[name].astype(np.float32, copy=False) for name in wanted}


def plain_name(name: str, config: ClipConfig) -> str:
    """A tensor's name, the same for open_clip's `CLIP` and `CustomTextCLIP`.

    The latter has `text.` in front of the text tower's, as we have where that is not CLIP's.
    """
    bare = name.removeprefix(TEXT_TOWER)
    if config.text.options is None or name.startswith((IMAGE_TOWER, "logit_")):
        return bare
    return f"{TEXT_TOWER}{bare}"


def wanted_names(config: ClipConfig, floats: Iterable[str]) -> list[str]:
    """Which of a file's floating-point tensors make the model.

    Of towers that are neither a plain ViT nor CLIP's text tower that is every one; open_clip's
    modules know them.
    """
    expected = list(expected_shapes(config))
    if config.other is None:
        return expected
    other = (IMAGE_TOWER, *(() if config.text.options is None else (TEXT_TOWER, "logit_bias")))
    return expected + [name for name in floats if name.startswith(other)]


def _check_types(types: Mapping[str, str], path: Path) -> None:
    for name, found in types.items():
        if found not in FLOAT_TYPES:
            raise ModelError(
                f"{path}: {name} is stored as {found}, expected one of {', '.join(FLOAT_TYPES)}. "
                "Save the weights in float16 or float32"
            )


def _bfloat16_tensors(content: bytes, names: Set[str]) -> dict[str, Floats]:
    """Tensors of a kind that NumPy does not know: the upper halves of float32 numbers."""
    tensors: dict[str, Floats] = {}
    for name, stored in deserialize(content):  # type: ignore[no-untyped-call]
        if name in names:
            upper = np.frombuffer(stored["data"], "<u2").astype(np.uint32)
            tensors[name] = (upper << 16).view(np.float32).reshape(stored["shape"])
    return tensors


def check_shapes(shapes: Mapping[str, tuple[int, ...]], config: ClipConfig, *, source: str) -> None:
    """Raise ModelError naming the first tensors that are missing from `shapes` or misshapen."""
    expected = expected_shapes(config)
    if missing := [name for name in expected if name not in shapes]:
        raise ModelError(
            f"{source} lacks {len(missing)} of {len(expected)} tensors, first {missing[0]!r}: "
            "is it an open_clip state dict of this model?"
        )
    for name, shape in expected.items():
        if tuple(shapes[name]) != shape:
            raise ModelError(
                f"{source}: {name} is {tuple(shapes[name])} but the model configuration asks for "
                f"{shape}: these weights belong to another model"
            )


def fingerprint(weights: Mapping[str, Floats]) -> str:
    """SHA-256 over names, shapes and float32 values: equal for equal weights in any file format."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(f"{name}{weights[name].shape}".encode())
        digest.update(np.ascontiguousarray(weights[name], dtype="<f4").data)
    return digest.hexdigest()


def expected_shapes(config: ClipConfig) -> dict[str, tuple[int, ...]]:
    """Name → shape of the model's tensors, in open_clip's naming.

    Those of an image tower that is no plain ViT, and of a text tower that is not CLIP's, are not
    among them.
    """
    text, joint = config.text, config.embed_dim
    if text.options is not None:
        return {"logit_scale": ()}
    vit = config.vit
    shapes: dict[str, tuple[int, ...]] = {
        "logit_scale": (),
        **(_around_blocks(vit, joint) if vit else {}),
        "token_embedding.weight": (text.vocab_size, text.width),
        "positional_embedding": (text.context_length, text.width),
        **_norm("ln_final", text.width),
        "text_projection": (text.width, joint),
    }
    return shapes | (_blocks(IMAGE_TOWER, vit) if vit else {}) | _blocks("", text)


def _around_blocks(vision: VisionTower, joint: int) -> dict[str, tuple[int, ...]]:
    return {
        "visual.conv1.weight": (vision.width, 3, vision.patch_size, vision.patch_size),
        "visual.class_embedding": (vision.width,),
        "visual.positional_embedding": (1 + vision.patches, vision.width),
        **_norm("visual.ln_pre", vision.width),
        **_norm("visual.ln_post", vision.width),
        "visual.proj": (vision.width, joint),
    }


def _blocks(prefix: str, tower: VisionTower | TextTower) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(tower.layers):
        block = f"{prefix}transformer.resblocks.{layer}"
        shapes |= _block(block, tower.width, tower.mlp_width)
    return shapes


def _block(prefix: str, width: int, mlp_width: int) -> dict[str, tuple[int, ...]]:
    return {
        **_norm(f"{prefix}.ln_1", width),
        f"{prefix}.attn.in_proj_weight": (3 * width, width),
        f"{prefix}.attn.in_proj_bias": (3 * width,),
        f"{prefix}.attn.out_proj.weight": (width, width),
        f"{prefix}.attn.out_proj.bias": (width,),
        **_norm(f"{prefix}.ln_2", width),
        f"{prefix}.mlp.c_fc.weight": (mlp_width, width),
        f"{prefix}.mlp.c_fc.bias": (mlp_width,),
        f"{prefix}.mlp.c_proj.weight": (width, mlp_width),
        f"{prefix}.mlp.c_proj.bias": (width,),
    }


def _norm(prefix: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}.weight": (width,), f"{prefix}.bias": (width,)}
