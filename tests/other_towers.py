"""Tiny models with random weights, in the shapes of open_clip's that have no plain ViT."""

import copy
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import timm.models
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.models import fastvit
from torch import nn

SIZE = 64
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
TIMM = {"timm_model_pretrained": False, "image_size": SIZE}
CONFIGS: dict[str, dict[str, Any]] = {  # with CLIP's own text tower
    "resnet": {  # OpenAI's RN50
        "embed_dim": 32,
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": SIZE,
            "layers": [1, 1, 1, 1],
            "width": 16,
            "patch_size": None,
            "head_width": 16,
        },
        "text_cfg": TEXT,
    },
    "convnext": {
        "embed_dim": 32,
        "vision_cfg": {
            "timm_model_name": "test_convnext",
            "timm_pool": "",
            "timm_proj": "linear",
            **TIMM,
        },
        "text_cfg": TEXT,
    },
    "mobileclip": {
        "embed_dim": 32,
        "custom_text": True,
        "vision_cfg": {
            "timm_model_name": "tiny_fastvit",
            "timm_pool": "avg",
            "timm_proj": None,
            **TIMM,
        },
        "text_cfg": {**TEXT, "no_causal_mask": True},
    },
}


SIGLIP: dict[str, Any] = {
    "embed_dim": 64,
    "custom_text": True,
    "init_logit_bias": -10,
    "vision_cfg": {
        **TIMM,
        "timm_model_name": "test_vit3",
        "timm_pool": "map",
        "timm_proj": "linear",
        "image_size": 160,  # timm's ViTs have one size
    },
    "text_cfg": {
        **TEXT,
        "context_length": 16,
        "vocab_size": 300,
        "hf_tokenizer_name": "no/tokenizer",
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
        "norm_kwargs": {"eps": 1e-6},
    },
}


@timm.models.register_model
def tiny_fastvit(pretrained: bool = False, **options: Any) -> nn.Module:
    """MobileCLIP's image tower, with a block of each kind."""
    network: nn.Module = fastvit._create_fastvit(
        "fastvit_mci0",
        pretrained=pretrained,
        layers=(1, 1, 1, 1),
        embed_dims=(16, 16, 32, 32),
        mlp_ratios=(2, 2, 2, 2),
        se_downsamples=(False, False, True, True),
        pos_embs=(None, None, None, partial(fastvit.RepConditionalPosEnc, spatial_shape=(7, 7))),
        token_mixers=("repmixer", "repmixer", "repmixer", "attention"),
        lkc_use_act=True,
        **options,
    )
    return network


class ByteTokenizer:
    """Bytes as token ids, in the place of a tokenizer that would have to be fetched."""

    def __init__(self, name: str, context_length: int, **options: Any) -> None:
        self.context_length = context_length

    def __call__(self, sentences: list[str]) -> torch.Tensor:
        """Token ids (N, L)."""
        ids = torch.zeros(len(sentences), self.context_length, dtype=torch.long)
        for row, sentence in zip(ids, sentences, strict=True):
            tokens = list(sentence.encode())[-self.context_length :]
            row[: len(tokens)] = torch.tensor(tokens)
        return ids


@dataclass(frozen=True)
class Model:
    """What `--model` and `--pretrained` take, and open_clip's own network of it."""

    model: str
    pretrained: str
    network: nn.Module


def write_model(folder: Path, kind: str, seed: int = 0) -> Model:
    """Configuration and weights in `folder`; statistics of batch normalisation are random too."""
    config = copy.deepcopy(SIGLIP if kind == "siglip" else CONFIGS[kind])
    (folder / f"{kind}.json").write_text(json.dumps(config))
    build = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build(**config).eval()
        with torch.no_grad():
            network.logit_scale.fill_(np.log(100))
            for name, value in network.state_dict().items():
                if name.endswith(("running_mean", "bn.bias")):
                    value.normal_(0, 0.2)
                if name.endswith("running_var"):
                    value.uniform_(0.5, 2)
    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    save_file(state, folder / f"{kind}.safetensors")
    return Model(str(folder / f"{kind}.json"), str(folder / f"{kind}.safetensors"), network)


def write_pictures(folder: Path) -> Path:
    """train/ and test/ with a folder for each of three classes, three noisy pictures in each."""
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for name, colour in (("red fox", 40), ("green frog", 120), ("blue_whale", 200)):
            target = folder / split / name
            target.mkdir(parents=True)
            for index in range(3):
                pixels = np.clip(colour + random.normal(0, 60, (70, 80, 3)), 0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(target / f"{index}.png")
    return folder
