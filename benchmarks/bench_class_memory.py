"""What a training step of CoOp takes with many classes: peak memory and time of the text tower.

    python benchmarks/bench_class_memory.py [--classes 1000] [--tokens 16] [--limit 4096]

The text tower of ViT-B/16 (12 layers, 512 wide) with random weights: memory and time do not depend
on their values. Names are pairs of the embedded emoji's. Forward and backward pass of the class
features, float32, each way in a process of its own; memory is the process's peak resident set less
what it held before the step. "specific" are contexts of every class's own (no shared prefix). What
would need more than `--limit` MiB at once is not run, and only estimated.
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import islice, permutations
from pathlib import Path

import numpy as np
import torch
from recording import Recording

from vlp_deploy import embedded
from vlp_deploy.classes.prompts import text_rows
from vlp_deploy.classes.tokenizer import Tokenizer
from vlp_deploy.data.dataset import load_dataset
from vlp_deploy.formats.architecture import (
    ClipConfig,
    Preprocessing,
    TextLayout,
    TextTower,
    VisionTower,
)
from vlp_deploy.formats.weights import expected_shapes
from vlp_train.backbones import build_clip
from vlp_train.chunks import kept_bytes
from vlp_train.prompted import PromptedClip

RESULTS = Path(__file__).parent / "results" / "class_memory.jsonl"
CONFIG = ClipConfig(
    embed_dim=512,
    quick_gelu=True,
    vit=VisionTower(image_size=8, patch_size=8, width=8, layers=1, heads=1, mlp_width=8),
    text=TextTower(
        context_length=77, vocab_size=49408, width=512, layers=12, heads=8, mlp_width=2048
    ),
)
MIB = 1 << 20


@dataclass(frozen=True)
class Way:
    """One way to compute class features."""

    specific: bool
    plain: bool  # all 77 tokens of every class, as the papers' code
    chunk: int | None  # as in --class-chunk


WAYS = {
    "77 tokens a class, at once": Way(False, True, 0),
    "specific contexts, at once": Way(True, False, 0),
    "specific contexts, by default": Way(True, False, None),
    "shared context, at once": Way(False, False, 0),
    "shared context, chunks of 100": Way(False, False, 100),
}


def class_names(count: int) -> list[str]:
    """`count` different names of the length that names of things have."""
    known = load_dataset(embedded.emoji_path() / "split_zhou_base.json").class_names
    return [" ".join(pair) for pair in islice(permutations(known, 2), count)]


def build(way: Way, names: list[str], tokens: int) -> tuple[PromptedClip, dict[str, torch.Tensor]]:
    """A text tower of ViT-B/16's shape, and prompts to learn."""
    random = np.random.default_rng(0)
    weights = {
        name: random.normal(0, 0.02, shape).astype(np.float32)
        for name, shape in expected_shapes(CONFIG).items()
    }
    model = PromptedClip(
        build_clip(CONFIG, weights),
        names,
        templates=(" ".join(["X"] * tokens) + " {}.",),
        preprocessing=Preprocessing(image_size=8),
        text_layout=TextLayout(tokens=tokens),
    )
    model.class_chunk = way.chunk
    sets = len(names) if way.specific else 1
    values = random.normal(0, 0.02, (sets, tokens, CONFIG.text.width)).astype(np.float32)
    name = "text.class_prompts" if way.specific else "text.prompts"
    return model, {name: torch.from_numpy(values).requires_grad_()}


def memory(field: str) -> int:
    """A line of this process's status, in bytes: VmRSS is held now, VmHWM the most so far."""
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if field in x]
    return int(line.split()[1]) * 1024


def measure(way: Way, names: list[str], tokens: int) -> dict[str, float]:
    """Peak memory in MiB and seconds of one forward and backward pass."""
    model, prompts = build(way, names, tokens)
    held = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of building the model
    started = time.perf_counter()
    features = model.class_features(prompts, plain=way.plain)
    features.sum().backward()
    seconds = time.perf_counter() - started
    (gradient,) = [prompt.grad for prompt in prompts.values()]
    assert gradient is not None
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() > 0
    return {"peak_mib": (memory("VmHWM") - held) / MIB, "seconds": seconds}


def estimate(way: Way, names: list[str], tokens: int) -> float:
    """MiB that the formula of `vlp_train.chunks` says all rows at once keep."""
    layout = TextLayout(tokens=tokens)
    template = " ".join(["X"] * tokens) + " {}."
    rows = text_rows(names, template, Tokenizer.default(), layout=layout, context_length=77)
    lengths = rows.eot + 1
    shared = 0 if way.plain else 1 if way.specific else 1 + tokens
    count = 77 * len(names) if way.plain else int((lengths - shared).sum()) + shared
    length = 77.0 if way.plain else float(lengths.mean())
    return kept_bytes(CONFIG.text, tokens=count, length=length) / MIB


def main() -> None:
    """Measure every way in its own process, print, append."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--limit", type=float, default=4096)
    parser.add_argument("--way", help="measure this one here, and print JSON")
    options = parser.parse_args()
    recording = Recording(["torch", "numpy"])

    names = class_names(options.classes)
    if options.way:
        print(json.dumps(measure(WAYS[options.way], names, options.tokens)))
        return
    rows = []
    for name, way in WAYS.items():
        at_once = estimate(way, names, options.tokens)
        row: dict[str, object] = {"way": name, "estimate_at_once_mib": at_once}
        print(f"{name:<32} by the formula {at_once:6.0f} MiB at once", end="", flush=True)
        if way.chunk != 0 or at_once <= options.limit:
            command = [sys.executable, *sys.argv, "--way", name]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            measured = json.loads(done.stdout)
            row.update(measured)
            print(f"   peak {measured['peak_mib']:6.0f} MiB, {measured['seconds']:6.1f} s", end="")
        rows.append(row)
        print()
    recording.append(RESULTS, rows=rows)


if __name__ == "__main__":
    main()
