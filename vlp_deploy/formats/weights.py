"""A CLIP's weights as NumPy arrays: read from safetensors, checked against the configuration.

Names are open_clip's state-dict keys (`visual.conv1.weight`, `transformer.resblocks.0.ln_1.weight`
…).
"""

import hashlib
from collections.abc import Mapping, Set
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize, safe_open

from vlp_deploy.errors import ModelError
from vlp_deploy.formats.architecture import ClipConfig

Floats = NDArray[np.float32]
FLOAT_TYPES = ("F32", "F16", "F64", "BF16")  # in safetensors' words


def load_weights(path: Path, config: ClipConfig) -> dict[str, Floats]:
    """All tensors of a CLIP in float32, each of the shape `config` asks for.

    Raises ModelError if the file is no safetensors file, lacks or misshapes a tensor, or holds
    numbers that are no plain floats.
    """
    expected = expected_shapes(config)
    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in list(file.keys())}
            shapes = {name: tuple(found.get_shape()) for name, found in slices.items()}
            types = {name: found.get_dtype() for name, found in slices.items()}
            check_shapes(shapes, config, source=str(path))
            _check_types({name: types[name] for name in expected}, path)
            narrow = {name for name in expected if types[name] == "BF16"}
            found = {name: file.get_tensor(name) for name in expected if name not in narrow}
        found |= _bfloat16_tensors(path.read_bytes(), narrow) if narrow else {}
    except FileNotFoundError:
        raise ModelError(f"weights file {path} does not exist") from None
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path} cannot be read as safetensors ({error}). "
            "Pass the weights of an open_clip model saved with safetensors"
        ) from error
    return {name: found[name].astype(np.float32) for name in expected}


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
    """Name → shape of every tensor of the model, in open_clip's naming."""
    vision, text, joint = config.vision, config.text, config.embed_dim
    shapes: dict[str, tuple[int, ...]] = {
        "logit_scale": (),
        "visual.conv1.weight": (vision.width, 3, vision.patch_size, vision.patch_size),
        "visual.class_embedding": (vision.width,),
        "visual.positional_embedding": (1 + vision.patches, vision.width),
        **_norm("visual.ln_pre", vision.width),
        **_norm("visual.ln_post", vision.width),
        "visual.proj": (vision.width, joint),
        "token_embedding.weight": (text.vocab_size, text.width),
        "positional_embedding": (text.context_length, text.width),
        **_norm("ln_final", text.width),
        "text_projection": (text.width, joint),
    }
    for tower, prefix in ((vision, "visual."), (text, "")):
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
