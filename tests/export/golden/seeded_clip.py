"""From a seed to a CLIP's weights and to images, bit for bit the same on every machine.

One PCG64 stream per tensor, seeded with the seed and the CRC-32 of the tensor's name. The four
16-bit parts of every draw are added, centred and scaled: integers and one multiplication, so that
no library's random distributions are involved. Weights are rounded to values that float16 holds.

The golden numbers beside this file were made with these weights and images by the public code of
each method; README.md says how.
"""

import zlib

import numpy as np
from numpy.typing import NDArray

from vlp_deploy.formats.architecture import (
    OPENAI_MEAN,
    OPENAI_STD,
    ClipConfig,
    TextTower,
    VisionTower,
)

Floats = NDArray[np.float32]

END_OF_TEXT = 49407
SUM_OF_FOUR_STD = 37837.226841  # of four added uniform 16-bit integers


def clip_config(arch: str) -> ClipConfig:
    """The shape of an architecture that golden cases name."""
    size, patch, width, layers, text_width, text_layers, joint = {
        "ViT-B-32-quickgelu": (224, 32, 768, 12, 512, 12, 512),
        "ViT-B-16-quickgelu": (224, 16, 768, 12, 512, 12, 512),
        "tiny-test-quickgelu": (64, 16, 192, 4, 128, 3, 128),
    }[arch]
    return ClipConfig(
        embed_dim=joint,
        quick_gelu=True,
        vit=VisionTower(
            image_size=size,
            patch_size=patch,
            width=width,
            layers=layers,
            heads=width // 64,
            mlp_width=4 * width,
        ),
        text=TextTower(
            context_length=77,
            vocab_size=49408,
            width=text_width,
            layers=text_layers,
            heads=text_width // 64,
            mlp_width=4 * text_width,
        ),
    )


def seeded_weights(config: ClipConfig, seed: int) -> dict[str, Floats]:
    """All weights, on scales at which attention selects and features of images differ."""
    vision, text, patch = config.vision, config.text, config.vision.patch_size
    tokens = 1 + vision.patches
    scales: dict[str, tuple[tuple[int, ...], float]] = {
        "positional_embedding": ((text.context_length, text.width), 0.30),
        "text_projection": ((text.width, config.embed_dim), text.width**-0.5),
        "token_embedding.weight": ((text.vocab_size, text.width), 0.60),
        "visual.class_embedding": ((vision.width,), 0.50),
        "visual.positional_embedding": ((tokens, vision.width), 0.40),
        "visual.proj": ((vision.width, config.embed_dim), vision.width**-0.5),
        "visual.conv1.weight": (
            (vision.width, 3, patch, patch),
            1.6 / (3.0 * patch * patch) ** 0.5,
        ),
    }
    weights = {name: seeded_tensor(name, *scale, seed) for name, scale in scales.items()}
    weights["token_embedding.weight"][END_OF_TEXT] *= np.float32(0.25)
    for name, width in (
        ("visual.ln_pre", vision.width),
        ("visual.ln_post", vision.width),
        ("ln_final", text.width),
    ):
        weights |= _norm(name, width, seed)
    for layer in range(vision.layers):
        name = f"visual.transformer.resblocks.{layer}"
        weights |= _block(name, vision.width, seed, query_scale=1.5)
    for layer in range(text.layers):
        weights |= _block(f"transformer.resblocks.{layer}", text.width, seed, query_scale=2.1)
    weights = {name: value.astype(np.float16).astype(np.float32) for name, value in weights.items()}
    return weights | {"logit_scale": np.array(4.605170185988092, np.float32)}


def seeded_pixels(count: int, size: int, seed: int) -> NDArray[np.uint8]:
    """RGB images (n, 3, S, S): a tint, two coarse grids and noise."""
    mean, std = (np.array(values).reshape(3, 1, 1) for values in (OPENAI_MEAN, OPENAI_STD))
    images = np.empty((count, 3, size, size), np.uint8)
    for index in range(count):
        tint, coarse, medium, noise = (
            seeded_tensor(f"image:{index}:{part}", (3, side, side), scale, seed, half=False)
            for part, side, scale in (
                ("tint", 1, 0.6),
                ("coarse", 4, 1.0),
                ("medium", 15, 0.8),
                ("noise", size, 0.25),
            )
        )
        image = tint.astype(np.float64) + _enlarged(coarse, size) + _enlarged(medium, size) + noise
        images[index] = np.clip(np.floor((image * std + mean) * 255.0 + 0.5), 0, 255)
    return images


def seeded_tensor(
    name: str,
    shape: tuple[int, ...],
    std: float,
    seed: int,
    *,
    mean: float = 0.0,
    half: bool = True,
) -> Floats:
    """A bell-shaped random tensor."""
    count = int(np.prod(shape))
    raw = np.random.PCG64([seed, zlib.crc32(name.encode())]).random_raw(count)
    pairs = (raw & 0x0000FFFF0000FFFF) + (raw >> 16 & 0x0000FFFF0000FFFF)
    total = (pairs + (pairs >> 32) & 0xFFFFFFFF).astype(np.int32)
    values = (total - 131070).astype(np.float64) * (std / SUM_OF_FOUR_STD) + mean
    if half:
        values = values.astype(np.float16)
    return values.astype(np.float32).reshape(shape)


def fingerprint(arrays: dict[str, Floats]) -> str:
    """CRC-32 over names, shapes and bytes, as `case.json` records it."""
    crc = 0
    for name in sorted(arrays):
        value = np.asarray(arrays[name])
        crc = zlib.crc32(f"{name}|{value.shape}|{value.dtype.str}".encode(), crc)
        crc = zlib.crc32(np.ascontiguousarray(value).tobytes(), crc)
    return f"{crc & 0xFFFFFFFF:08x}"


def _block(name: str, width: int, seed: int, *, query_scale: float) -> dict[str, Floats]:
    unit, hidden = width**-0.5, 4 * width
    scales = {
        "attn.in_proj_bias": ((3 * width,), 0.05),
        "attn.out_proj.weight": ((width, width), 1.6 * unit),
        "attn.out_proj.bias": ((width,), 0.02),
        "mlp.c_fc.weight": ((hidden, width), unit),
        "mlp.c_fc.bias": ((hidden,), 0.20),
        "mlp.c_proj.weight": ((width, hidden), 0.7 * hidden**-0.5),
        "mlp.c_proj.bias": ((width,), 0.02),
    }
    packed = f"{name}.attn.in_proj_weight"
    parts = [
        seeded_tensor(f"{packed}:{part}", (width, width), scale * unit, seed)
        for part, scale in (("q", query_scale), ("k", query_scale), ("v", 1.6))
    ]
    return {
        **{f"{name}.{key}": seeded_tensor(f"{name}.{key}", *s, seed) for key, s in scales.items()},
        **_norm(f"{name}.ln_1", width, seed),
        **_norm(f"{name}.ln_2", width, seed),
        packed: np.concatenate(parts),
    }


def _norm(name: str, width: int, seed: int) -> dict[str, Floats]:
    return {
        f"{name}.weight": seeded_tensor(f"{name}.weight", (width,), 0.10, seed, mean=1.0),
        f"{name}.bias": seeded_tensor(f"{name}.bias", (width,), 0.02, seed),
    }


def _enlarged(grid: Floats, size: int) -> NDArray[np.float64]:
    """Bilinear enlargement of (3, g, g) to (3, S, S)."""
    side = grid.shape[-1]
    position = np.arange(size, dtype=np.float64) * ((side - 1) / float(size - 1))
    low = np.minimum(position.astype(np.int64), side - 2)
    weight = position - low
    rows = grid[:, low] * (1.0 - weight)[:, None] + grid[:, low + 1] * weight[:, None]
    return rows[:, :, low] * (1.0 - weight) + rows[:, :, low + 1] * weight
