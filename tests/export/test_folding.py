"""The rewrites of weights, each against the formula it replaces."""

import numpy as np
import torch

from tests.export.tiny_clip import make_config, make_pixels, make_prompts, make_weights
from vlp_deploy.formats.architecture import Preprocessing
from vlp_export.folding import (
    constant_keys_values,
    layer_norm,
    patch_convolution,
    scaled_input_projection,
)

WEIGHTS = make_weights(make_config())


def test_patch_convolution_reads_raw_pixels() -> None:
    preprocessing = Preprocessing(image_size=32, mean=(0.1, 0.5, 0.7), std=(0.2, 0.3, 0.4))
    pixels = torch.from_numpy(make_pixels(count=2)).double()
    mean, std = (
        torch.tensor(v, dtype=torch.float64).view(3, 1, 1)
        for v in (preprocessing.mean, preprocessing.std)
    )
    kernel, offset = patch_convolution(WEIGHTS, preprocessing)

    folded = torch.conv2d(pixels, torch.from_numpy(kernel).double(), stride=8)
    folded += torch.from_numpy(offset).double().view(1, -1, 1, 1)

    original = torch.from_numpy(WEIGHTS["visual.conv1.weight"]).double()
    expected = torch.conv2d((pixels / 255 - mean) / std, original, stride=8)
    torch.testing.assert_close(folded, expected, rtol=0, atol=1e-5)  # kernel rounded to float32


def test_layer_norm_is_that_of_pytorch() -> None:
    x = make_prompts(1, 4, 32)[0]

    found = layer_norm(x, WEIGHTS, "visual.ln_pre")

    weight, bias = (torch.from_numpy(WEIGHTS[f"visual.ln_pre.{n}"]) for n in ("weight", "bias"))
    expected = torch.layer_norm(torch.from_numpy(x), (32,), weight, bias)
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-6)


def test_keys_and_values_are_projections_of_normed_prompts() -> None:
    block, prompts = "visual.transformer.resblocks.1", make_prompts(1, 4, 32)[0]

    keys, values = constant_keys_values(prompts, WEIGHTS, block, heads=2)

    normed = layer_norm(prompts, WEIGHTS, f"{block}.ln_1")
    packed = normed @ WEIGHTS[f"{block}.attn.in_proj_weight"].T
    packed += WEIGHTS[f"{block}.attn.in_proj_bias"]  # (4, 96): query, keys, values
    assert keys.shape == values.shape == (1, 2, 4, 16)
    np.testing.assert_allclose(keys[0, 1, 2], packed[2, 48:64], rtol=0, atol=1e-5)
    np.testing.assert_allclose(values[0, 0, 3], packed[3, 64:80], rtol=0, atol=1e-5)


def test_only_the_query_is_scaled() -> None:
    block = "transformer.resblocks.0"

    matrix, bias = scaled_input_projection(WEIGHTS, block, heads=2)

    original = WEIGHTS[f"{block}.attn.in_proj_weight"]  # (48, 16), heads of 8
    np.testing.assert_array_equal(matrix[:, :16], (original[:16] * np.float32(8**-0.5)).T)
    np.testing.assert_array_equal(matrix[:, 16:], original[16:].T)
    np.testing.assert_array_equal(bias[16:], WEIGHTS[f"{block}.attn.in_proj_bias"][16:])
    assert not np.shares_memory(matrix, original)  # the weights themselves stay as they are
