"""What makes a step of the image tower's pre-training cheap: precision, attention, the last block.

    python benchmarks/bench_pretraining.py [--images 192] [--seconds 20]

One core takes the gradients of `images` random images of 8 of 16 patches through vlp-tiny's image
tower: as its modules compute them (fused attention, all tokens through all blocks), and as training
does (`pretrain.patches`), each in float32 and in bfloat16. Features must agree before anything is
timed. bfloat16 pays only on processors that multiply in it (avx512_bf16, amx_bf16).
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import msgspec
import torch
import torch.nn.functional as F
from recording import Recording
from torch import Generator, Tensor

from vlp_deploy import embedded
from vlp_deploy.measuring.timing import paired_ratio, take_turns
from vlp_train.backbones import load_backbone
from vlp_train.clip import VisionTransformer
from vlp_train.pretrain.patches import chosen_patches, encode

RESULTS = Path(__file__).parent / "results" / "pretraining.jsonl"
KEPT = 8
Encode = Callable[[VisionTransformer, Tensor, int, Generator], Tensor]


def by_modules(tower: VisionTransformer, pixels: Tensor, keep: int, generator: Generator) -> Tensor:
    """What `patches.encode` gives, computed by the tower's own modules."""
    patches = F.pixel_unshuffle(pixels, tower.conv1.kernel_size[0]).flatten(2).transpose(1, 2)
    kept = chosen_patches(patches, keep, generator)
    start, x = tower.embed(pixels).split([1, patches.shape[1]], dim=1)
    x = x.gather(1, kept[..., None].expand(-1, -1, x.shape[2]))
    x = tower.ln_pre(torch.cat([start, x], dim=1))
    for block in tower.transformer.blocks:
        x = block(x, causal=False)
    return tower.project(x)


def gradients(
    encode: Encode, tower: VisionTransformer, pixels: Tensor, precision: torch.dtype
) -> Tensor:
    """Encode and differentiate; return the features in float32."""
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        features = encode(tower, pixels, KEPT, Generator().manual_seed(0)).float()
    torch.autograd.grad(features.square().sum(), list(tower.parameters()))
    return features.detach()


def main() -> None:
    """Measure, print, append."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=192)
    parser.add_argument("--seconds", type=float, default=20)
    options = parser.parse_args()
    recording = Recording(["torch"])
    torch.set_num_threads(1)
    tower = load_backbone(embedded.MODEL_NAME, None)[0].visual.requires_grad_(True)
    pixels = torch.randn(options.images, 3, 64, 64, generator=Generator().manual_seed(1))

    contenders = {
        f"{name} {str(precision).removeprefix('torch.')}": lambda e=way, p=precision: gradients(
            e, tower, pixels, p
        )
        for name, way in (("modules", by_modules), ("patches", encode))
        for precision in (torch.float32, torch.bfloat16)
    }
    expected, *others = (run() for run in contenders.values())
    for found in others:
        assert F.cosine_similarity(expected, found).min() > 0.99
    times = take_turns(contenders, seconds=options.seconds)
    first, *rest = contenders
    rows = []
    for name in rest:
        ratio = paired_ratio(times[first], times[name])
        rows.append({"contender": name, "times": msgspec.to_builtins(ratio)})
        print(
            f"{name}: {ratio.median:.2f} times as fast as {first} "
            f"({ratio.low:.2f} to {ratio.high:.2f})"
        )
    recording.append(RESULTS, images=options.images, against=first, rows=rows)


if __name__ == "__main__":
    main()
