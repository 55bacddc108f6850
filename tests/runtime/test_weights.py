"""Weights files of every number format, and the words for those that do not fit."""

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from vlp_deploy.errors import ModelError
from vlp_deploy.formats.architecture import ClipConfig, TextTower, VisionTower
from vlp_deploy.formats.weights import (
    Floats,
    expected_shapes,
    fingerprint,
    load_weights,
    plain_name,
)

CONFIG = ClipConfig(
    embed_dim=4,
    quick_gelu=False,
    vit=VisionTower(image_size=8, patch_size=4, width=8, layers=1, heads=2, mlp_width=16),
    text=TextTower(context_length=5, vocab_size=9, width=8, layers=1, heads=2, mlp_width=16),
)


def make_weights() -> dict[str, Floats]:
    random = np.random.default_rng(0)
    shapes = expected_shapes(CONFIG).items()
    return {name: np.asarray(random.normal(size=shape), np.float32) for name, shape in shapes}


def save_bfloat16(weights: dict[str, Floats], path: Path) -> dict[str, Floats]:
    """Write the format by hand, as NumPy has no bfloat16; returns the values that were kept."""
    header, chunks, start, kept = {}, [], 0, {}
    for name, value in weights.items():
        upper = (value.reshape(-1).view(np.uint32) >> 16).astype("<u2")
        kept[name] = (upper.astype(np.uint32) << 16).view(np.float32).reshape(value.shape)
        end = start + upper.nbytes
        header[name] = {"dtype": "BF16", "shape": value.shape, "data_offsets": [start, end]}
        chunks.append(upper.tobytes())
        start = end
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(chunks))
    return kept


def equal(one: dict[str, Floats], other: dict[str, Floats]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[n], other[n]) for n in one)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_every_float_becomes_float32(kind: type[np.generic], tmp_path: Path) -> None:
    stored: dict[str, NDArray[np.generic]] = {n: v.astype(kind) for n, v in make_weights().items()}
    save_file({**stored, "attn_mask": np.zeros(2, np.int64)}, tmp_path / "w.safetensors")

    loaded = load_weights(tmp_path / "w.safetensors", CONFIG)

    assert equal(loaded, {name: value.astype(np.float32) for name, value in stored.items()})
    assert {value.dtype for value in loaded.values()} == {np.dtype(np.float32)}


def test_bfloat16_becomes_float32(tmp_path: Path) -> None:
    kept = save_bfloat16(make_weights(), tmp_path / "w.safetensors")

    loaded = load_weights(tmp_path / "w.safetensors", CONFIG)

    assert equal(loaded, kept)
    assert fingerprint(loaded) == fingerprint(kept)
    assert loaded["visual.proj"] == pytest.approx(make_weights()["visual.proj"], rel=2**-7)


def test_integers_are_no_weights(tmp_path: Path) -> None:
    weights: dict[str, NDArray[np.generic]] = {**make_weights()}
    weights["visual.proj"] = np.ones((8, 4), np.int8)
    save_file(weights, tmp_path / "w.safetensors")

    with pytest.raises(ModelError, match=r"w\.safetensors: visual\.proj is stored as I8"):
        load_weights(tmp_path / "w.safetensors", CONFIG)


def test_missing_and_misshapen_tensors_are_named(tmp_path: Path) -> None:
    weights = make_weights()
    save_file({n: v for n, v in weights.items() if n != "ln_final.bias"}, tmp_path / "a")
    save_file({**weights, "visual.proj": np.zeros((8, 5), np.float32)}, tmp_path / "b")

    with pytest.raises(ModelError, match=r"lacks 1 of \d+ tensors, first 'ln_final.bias'"):
        load_weights(tmp_path / "a", CONFIG)
    with pytest.raises(ModelError, match=r"visual.proj is \(8, 5\).*asks for \(8, 4\)"):
        load_weights(tmp_path / "b", CONFIG)


def test_files_that_are_none_are_explained(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"not at all")

    with pytest.raises(ModelError, match="cannot be read as safetensors"):
        load_weights(tmp_path / "w.safetensors", CONFIG)
    with pytest.raises(ModelError, match="does not exist"):
        load_weights(tmp_path / "absent.safetensors", CONFIG)


def test_a_fingerprint_changes_with_a_value_a_name_and_a_shape() -> None:
    one = {"a": np.zeros((2, 3), np.float32)}

    others = [{"b": one["a"]}, {"a": one["a"].T}, {"a": one["a"] + 1}]

    assert len({fingerprint(weights) for weights in (one, *others)}) == 4


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (None, ["visual.proj", "ln_final.bias", "ln_final.bias", "logit_bias"]),
        ({}, ["visual.proj", "text.ln_final.bias", "text.ln_final.bias", "logit_bias"]),
    ],
)
def test_names_are_the_same_for_both_of_open_clips_classes(
    options: dict[str, Any] | None, names: list[str]
) -> None:
    text = msgspec.structs.replace(CONFIG.text, options=options)
    config = msgspec.structs.replace(CONFIG, text=text)
    given = ["visual.proj", "ln_final.bias", "text.ln_final.bias", "logit_bias"]

    assert [plain_name(name, config) for name in given] == names
