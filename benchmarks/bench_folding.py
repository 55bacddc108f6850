"""What deep visual prompts cost: the un-prompted ViT, prompts folded into it, prompts as tokens.

    python benchmarks/bench_folding.py [--model vit-b-16|vlp-tiny] [--tokens 8] [--batch 1]
    [--seconds 20]

Random weights: time does not depend on their values. The papers' code carries prompts as tokens
through every layer (equation 6 of VPT, arXiv:2203.12119); folded, only their keys and values are
left, as constants. That folding changes no answer is tested in `tests/export`.
"""

import argparse
from pathlib import Path

import msgspec
import numpy as np
from recording import Recording

from vlp_deploy import embedded
from vlp_deploy.formats.architecture import (
    ClipConfig,
    Preprocessing,
    TextTower,
    VisionTower,
    VisualLayout,
)
from vlp_deploy.formats.weights import Floats, expected_shapes
from vlp_deploy.measuring.timing import paired_ratio, take_turns
from vlp_export.flops import count_flops
from vlp_export.graph import to_bytes
from vlp_export.image_graph import write_image_graph
from vlp_export.session import Session

RESULTS = Path(__file__).parent / "results" / "folding.jsonl"
VIT_B_16 = ClipConfig(
    embed_dim=512,
    quick_gelu=True,
    vit=VisionTower(image_size=224, patch_size=16, width=768, layers=12, heads=12, mlp_width=3072),
    text=TextTower(
        context_length=77, vocab_size=8, width=64, layers=1, heads=1, mlp_width=64
    ),  # not run here
)
CLASSES = 10


def random_weights(config: ClipConfig) -> dict[str, Floats]:
    """Weights of the scale that trained ones have, so that nothing overflows or vanishes."""
    generator = np.random.default_rng(0)
    shapes = expected_shapes(config)
    weights = {
        name: generator.normal(0, 0.02, shape).astype(np.float32) for name, shape in shapes.items()
    }
    norms = {name: weights[name] + 1 for name in shapes if ".ln_" in name and "weight" in name}
    return {**weights, **norms}


def graph(
    config: ClipConfig,
    weights: dict[str, Floats],
    prompts: Floats | None = None,
    *,
    travelling: bool = False,
) -> tuple[bytes, int]:
    """A graph and its FLOPs for one image. `travelling` prompts stay as tokens to the end."""
    tokens = 0 if prompts is None else prompts.shape[1]
    model = write_image_graph(
        config,
        weights,
        preprocessing=Preprocessing(image_size=config.vision.image_size),
        prompts=prompts,
        layout=VisualLayout(tokens=tokens, survive_last=travelling),
    )
    return to_bytes(model), count_flops(model, input_shapes(config, 1))


def input_shapes(config: ClipConfig, batch: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the image graph's inputs."""
    size = config.vision.image_size
    return {
        "image": (batch, 3, size, size),
        "class_matrix": (config.embed_dim, CLASSES),
        "class_bias": (CLASSES,),
    }


def main() -> None:
    """Measure, assert, print, append."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=["vit-b-16", "vlp-tiny"], default="vit-b-16")
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20)
    options = parser.parse_args()
    recording = Recording(["onnxruntime", "numpy"])

    config = VIT_B_16 if options.model == "vit-b-16" else embedded.config()
    weights = random_weights(config)
    generator = np.random.default_rng(1)
    depth, width = config.vision.layers, config.vision.width
    prompts = generator.normal(0, 0.5, (depth, options.tokens, width)).astype(np.float32)
    graphs = {
        "un-prompted": graph(config, weights),
        "VPT-deep folded": graph(config, weights, prompts),
        "prompts as tokens": graph(config, weights, prompts[:1], travelling=True),
    }
    size = config.vision.image_size
    pixels = generator.integers(0, 256, (options.batch, 3, size, size), np.uint8)
    matrix = generator.normal(0, 1, (config.embed_dim, CLASSES)).astype(np.float32)
    bias = np.zeros(CLASSES, np.float32)
    sessions = {name: Session(content) for name, (content, _) in graphs.items()}
    inputs = {"image": pixels, "class_matrix": matrix, "class_bias": bias}
    plain = sessions["un-prompted"](inputs)["embedding"]
    folded = sessions["VPT-deep folded"](inputs)["embedding"]
    assert np.isfinite(folded).all()
    assert np.abs(plain - folded).max() > 1e-3, "the prompts must matter"

    times = take_turns(
        {name: lambda s=session: s(inputs) for name, session in sessions.items()},
        seconds=options.seconds,
    )
    base_flops = graphs["un-prompted"][1]
    rows = []
    for name, (_, flops) in graphs.items():
        ratio = paired_ratio(times[name], times["un-prompted"])
        rows.append({"graph": name, "flops": flops, **msgspec.to_builtins(ratio)})
        print(
            f"{name:<20} {flops / 1e9:8.3f} GFLOP = {flops / base_flops:.4f}x   time "
            f"{ratio.median:.3f}x ({ratio.low:.3f} to {ratio.high:.3f}), "
            f"p50 {np.median(times[name]):.2f} ms, {len(times[name])} turns"
        )
    recording.append(RESULTS, rows=rows)


if __name__ == "__main__":
    main()
