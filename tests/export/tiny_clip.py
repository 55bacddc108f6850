"""Tiny CLIPs with random weights, and checkpoints whose reference answers plain PyTorch gave."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

from vlp_deploy.classes.prompts import TextRows, text_rows
from vlp_deploy.classes.tokenizer import Tokenizer
from vlp_deploy.formats.architecture import (
    Backbone,
    ClipConfig,
    Preprocessing,
    TextLayout,
    TextTower,
    VisionTower,
    VisualLayout,
)
from vlp_deploy.formats.checkpoint import Header, PromptCheckpoint
from vlp_deploy.formats.weights import expected_shapes, fingerprint
from vlp_export.graph import to_bytes
from vlp_export.session import Session
from vlp_train.clip import Clip

Floats = NDArray[np.float32]
Weights = dict[str, Floats]

CLASSES = ("red panda", "tree kangaroo", "sea_lion", "Boeing 737-800", "rose")
VOCABULARY = 49408


def make_config(
    *,
    patch_size: int = 8,
    layers: int = 3,
    quick_gelu: bool = True,
    vocab_size: int = 60,
) -> ClipConfig:
    """A CLIP of 32 pixels that runs in a millisecond."""
    return ClipConfig(
        embed_dim=24,
        quick_gelu=quick_gelu,
        vit=VisionTower(
            image_size=32, patch_size=patch_size, width=32, layers=layers, heads=2, mlp_width=128
        ),
        text=TextTower(
            context_length=20,
            vocab_size=vocab_size,
            width=16,
            layers=layers,
            heads=2,
            mlp_width=64,
        ),
    )


def make_weights(config: ClipConfig, *, seed: int = 0) -> Weights:
    """Random weights with which attention selects, activations bend and every bias matters."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in expected_shapes(config).items():
        scale = 1.2 * float(np.prod(shape[1:])) ** -0.5 if len(shape) > 1 else 0.3
        weights[name] = rng.normal(scale=scale, size=shape).astype(np.float32)
        if "ln_" in name:
            weights[name] += np.float32(name.endswith("weight"))
    weights["logit_scale"] = np.array(np.log(100), np.float32)
    return weights


def make_clip(config: ClipConfig, weights: Weights) -> Clip:
    """The un-folded model in float64, so that all the rounding seen in a test is the graph's."""
    clip = Clip(config)
    clip.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    return clip.double().eval()


def make_pixels(*, count: int = 8, seed: int = 1) -> NDArray[np.uint8]:
    """Images (n, 3, 32, 32) of coarse patches under noise, so that features differ."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 3, 4, 4)).repeat(8, axis=2).repeat(8, axis=3)
    noise = rng.integers(-40, 40, (count, 3, 32, 32))
    return np.clip(coarse + noise, 0, 255).astype(np.uint8)


def make_prompts(layers: int, tokens: int, width: int, *, seed: int = 2) -> Floats:
    """Prompts (J, m, d) as large as the tokens around them."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(layers, tokens, width)).astype(np.float32)


def unit(features: torch.Tensor) -> torch.Tensor:
    """Features divided by their length."""
    return features / features.norm(dim=-1, keepdim=True)


def image_embeddings(
    clip: Clip,
    pixels: NDArray[np.uint8],
    prompts: Floats | None = None,
    layout: VisualLayout | None = None,
) -> torch.Tensor:
    """The un-folded image tower on raw pixels, normalised as CLIP does."""
    preprocessing = Preprocessing(image_size=32)
    mean, std = (
        torch.tensor(values, dtype=torch.float64).view(3, 1, 1)
        for values in (preprocessing.mean, preprocessing.std)
    )
    normalised = (torch.from_numpy(pixels).double() / 255 - mean) / std
    tensor = None if prompts is None else torch.from_numpy(prompts).double()
    with torch.no_grad():
        return unit(clip.encode_image(normalised, tensor, layout))


def text_features(clip: Clip, rows: TextRows, prompts: Floats) -> torch.Tensor:
    """The un-folded text tower on token rows, padded to the whole context."""
    padding = ((0, 0), (0, clip.config.text.context_length - rows.ids.shape[1]))
    with torch.no_grad():
        features: torch.Tensor = clip.encode_text(
            torch.from_numpy(np.pad(rows.ids, padding)),
            torch.from_numpy(rows.eot),
            torch.from_numpy(np.pad(rows.slots, padding, constant_values=-1)),
            torch.from_numpy(prompts).double(),
        )
    return features


def class_embeddings(
    clip: Clip, templates: Sequence[str], layout: TextLayout, prompts: Floats
) -> torch.Tensor:
    """CLASSES in the un-folded text tower, averaged over templates; `prompts` (J, m, d).

    (K, 1, m, d) instead are contexts of each class's own.
    """
    embeddings = []
    for index, name in enumerate(CLASSES):
        own = prompts[index] if prompts.ndim == 4 else prompts
        of_templates = [
            unit(text_features(clip, _rows(name, template, layout), own)) for template in templates
        ]
        embeddings.append(unit(torch.stack(of_templates).mean(dim=0)))
    return torch.cat(embeddings)


def _rows(name: str, template: str, layout: TextLayout) -> TextRows:
    return text_rows([name], template, Tokenizer.default(), layout=layout, context_length=20)


def make_checkpoint(
    config: ClipConfig,
    weights: Weights,
    *,
    method: str = "zeroshot",
    templates: Sequence[str] = ("a photo of a {}.", "a drawing of a {}."),
    text_layout: TextLayout | None = None,
    visual_layout: VisualLayout | None = None,
    tensors: dict[str, Floats] | None = None,
) -> PromptCheckpoint:
    """A checkpoint as training would write it; `tensors` are the learned ones."""
    learned = tensors or {}
    text_layout, visual_layout = text_layout or TextLayout(), visual_layout or VisualLayout()
    clip, pixels = make_clip(config, weights), make_pixels()
    text = learned.get("text.prompts", np.zeros((1, 0, config.text.width), np.float32))
    if "text.class_prompts" in learned:
        text = learned["text.class_prompts"][:, None]  # (K, 1, m, d)
    images = image_embeddings(clip, pixels, learned.get("visual.prompts"), visual_layout)
    logits = 100 * images @ class_embeddings(clip, templates, text_layout, text).T
    header = Header(
        method=method,
        hyper_parameters={},
        backbone=Backbone(
            name="test-clip", pretrained="random", sha256=fingerprint(weights), config=config
        ),
        class_names=CLASSES,
        templates=tuple(templates),
        text_layout=text_layout,
        visual_layout=visual_layout,
        preprocessing=Preprocessing(image_size=32),
        provenance={"seed": 0},
    )
    reference = {"reference.pixels": pixels, "reference.logits": logits.float().numpy()}
    return PromptCheckpoint(header=header, tensors={**learned, **reference})


def save_weights(weights: Weights, path: Path) -> Path:
    """A safetensors file as `--pretrained` takes it."""
    save_file(weights, path)
    return path


def run_image_graph(
    model: ir.Model, pixels: NDArray[np.uint8], matrix: Floats, bias: Floats
) -> tuple[Floats, Floats]:
    """Embeddings (B, D) and logits (B, K) of a written image graph."""
    outputs = Session(to_bytes(model))(
        {"image": pixels, "class_matrix": matrix, "class_bias": bias}
    )
    return outputs["embedding"], outputs["logits"]


def run_text_graph(model: ir.Model, rows: TextRows, prompts: Floats) -> tuple[Floats, Floats]:
    """Features and embeddings (N, D) of a written text graph."""
    outputs = Session(to_bytes(model))(
        {"input_ids": rows.ids, "eot_index": rows.eot, "slots": rows.slots, "prompts": prompts}
    )
    return outputs["feature"], outputs["embedding"]
