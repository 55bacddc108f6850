"""Precision x engine x batch on a ViT-B/16: how near to float32, and how fast against open_clip.

    python benchmarks/bench_precision.py [--images 512] [--seconds 20] [--threads 2] [--only NAME …]

Weights and images are seeded (`tests/export/golden/seeded_clip.py`): activations as spread as in a
trained tower, features of images and class names far from collinear. Ten class names of the seeded
text tower, 512 images; ranges for int8 are measured on 64 others.

    cosine      smallest and mean, of an embedding in this precision and in float32
    agreement   share of the same top-1 classes
    neighbours  smallest cosine of an embedding alone and among seven others
    times       time of open_clip's PyTorch model, eager and in float32, over its time, by turns

Two more to compare with, which this project does not write: `dynamic` is onnxruntime's
quantize_dynamic on the same graph, one scale for a whole batch; `rows` has a scale for each token,
found while it runs (`rows_in_int8.py`). A table goes to stdout, a line to
`results/precision.jsonl`.
"""

import argparse
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import QuantType, quantize_dynamic

sys.path.insert(0, str(Path(__file__).parents[1]))

from recording import Recording

from benchmarks.rows_in_int8 import rows_in_int8
from tests.export.golden.seeded_clip import clip_config, seeded_pixels, seeded_weights
from vlp_deploy.classes.prompts import PLAIN, text_rows
from vlp_deploy.classes.tokenizer import Tokenizer
from vlp_deploy.classes.towers import run_graph
from vlp_deploy.engines import load_engine
from vlp_deploy.engines.base import EngineOptions
from vlp_deploy.engines.support import why_unsupported
from vlp_deploy.formats.architecture import Preprocessing
from vlp_deploy.measuring.timing import paired_ratio, take_turns
from vlp_export.graph import to_bytes
from vlp_export.image_graph import write_image_graph
from vlp_export.quantised import UNSIGNED, quantised
from vlp_export.ranges import RunGraph, measure_ranges
from vlp_export.session import Session
from vlp_export.smoothing import smoothed
from vlp_export.text_graph import write_text_graph
from vlp_export.typed import typed

RESULTS = Path(__file__).parent / "results" / "precision.jsonl"
ARCHITECTURE, SEED = "ViT-B-16-quickgelu", 2024
ENGINES, PRECISIONS, BATCHES = ("onnx", "openvino"), ("fp32", "fp16", "bf16", "int8"), (1, 8)
OTHERS, REFERENCE, RIVAL = ("dynamic", "rows"), "onnx fp32", "open_clip eager"
RANGE_IMAGES = 64
NAMES = ("Boeing 737-800", "foo (bar)", "forget-me-not", "U.S. flag", "annual crop land")
NAMES += ("sea lion", "black-eyed susan", "7up", "gas mask!", "tree poppy")

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]
Run = Callable[[Pixels], Mapping[str, Floats]]


def main() -> None:
    """Write the graphs, run them, compare, print, append."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=20, help="of timing, a batch size")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", default=[], help='some contenders, "onnx int8" say')
    options = parser.parse_args()
    recording = Recording(["onnxruntime", "openvino", "torch"])
    torch.set_num_threads(options.threads)
    weights = seeded_weights(clip_config(ARCHITECTURE), SEED)
    pixels = seeded_pixels(options.images + RANGE_IMAGES, 224, 77)
    images, others = pixels[: options.images], pixels[options.images :]
    with tempfile.TemporaryDirectory() as folder:
        runs = contenders(weights, others, Path(folder), threads=options.threads, only=options.only)
        rows = compare(runs, images)
        rival = open_clip_model(weights)
        for batch in BATCHES:
            measure(runs, rival, images[:batch], rows, seconds=options.seconds)
    print(table(rows))
    recording.append(
        RESULTS,
        images=options.images,
        threads=options.threads,
        rows=rows,
    )


def contenders(
    weights: Mapping[str, Floats],
    others: Pixels,
    folder: Path,
    *,
    threads: int,
    only: Sequence[str] = (),
) -> dict[str, Run]:
    """Every engine in every precision that it takes, and those to compare with; or some of them."""
    config, head = clip_config(ARCHITECTURE), class_inputs(weights)
    model = write_image_graph(config, weights, preprocessing=Preprocessing(image_size=224))

    def drive(run: RunGraph) -> None:
        for start in range(0, len(others), 4):
            run({"image": others[start : start + 4], **head})

    models = {
        "fp32": model,
        "bf16": model,  # a hint to OpenVINO
        "fp16": typed(model, "fp16"),
        "int8": quantised(*smoothed(model, measure_ranges(model, drive)), UNSIGNED),
        "rows": rows_in_int8(model),
    }
    for name, made in models.items():
        (folder / f"{name}.onnx").write_bytes(to_bytes(made))
    quantize_dynamic(
        folder / "fp32.onnx",
        folder / "dynamic.onnx",
        per_channel=True,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["MatMul"],
    )

    def run_of(engine: str, name: str) -> Run:
        precision = name if name in PRECISIONS else "fp32"
        settings = EngineOptions(threads=threads, precision=precision)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # bf16 on a processor without its units
            loaded = load_engine(engine, folder / f"{name}.onnx", settings)
        return lambda images: run_graph(loaded, {"image": images, **head})

    pairs = [(e, p) for e in ENGINES for p in PRECISIONS if not why_unsupported(e, p)]
    pairs += [("onnx", name) for name in OTHERS]
    return {
        f"{engine} {name}": run_of(engine, name)
        for engine, name in pairs
        if not only or f"{engine} {name}" in (*only, REFERENCE)
    }


def class_inputs(weights: Mapping[str, Floats]) -> dict[str, Floats]:
    """`class_matrix` (D, K) and `class_bias` (K,) of the names in the seeded text tower."""
    config = clip_config(ARCHITECTURE)
    rows = text_rows(
        NAMES, "a photo of a {}.", Tokenizer.default(), layout=PLAIN, context_length=77
    )
    inputs = {"input_ids": rows.ids, "eot_index": rows.eot, "slots": rows.slots}
    prompts = np.zeros((1, 0, config.text.width), np.float32)
    text = Session(to_bytes(write_text_graph(config, weights)))
    embeddings = text({**inputs, "prompts": prompts})["embedding"]
    matrix = np.ascontiguousarray(100 * embeddings.T, np.float32)
    return {"class_matrix": matrix, "class_bias": np.zeros(len(NAMES), np.float32)}


def open_clip_model(weights: Mapping[str, Floats]) -> Run:
    """open_clip's own image tower in PyTorch, from pixels to embeddings."""
    model = open_clip.create_model(ARCHITECTURE, pretrained=None).eval()
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    mean, std = (
        torch.tensor(values).view(3, 1, 1)
        for values in (Preprocessing(image_size=224).mean, Preprocessing(image_size=224).std)
    )

    def run(images: Pixels) -> dict[str, Floats]:
        with torch.inference_mode():
            normalised = (torch.from_numpy(images) / 255 - mean) / std
            return {"embedding": model.encode_image(normalised, normalize=True).numpy()}

    return run


def compare(runs: Mapping[str, Run], images: Pixels) -> list[dict[str, object]]:
    """How near the answers are to float32 in onnxruntime."""
    expected = all_answers(runs[REFERENCE], images)
    rows: list[dict[str, object]] = []
    for name, run in runs.items():
        embeddings, logits = all_answers(run, images)
        cosines = (embeddings * expected[0]).sum(axis=1)
        alone = np.concatenate([run(image[None])["embedding"] for image in images[:8]])
        rows.append(
            {
                "contender": name,
                "cosine_min": float(cosines.min()),
                "cosine_mean": float(cosines.mean()),
                "agreement": float((logits.argmax(1) == expected[1].argmax(1)).mean()),
                "neighbours": float((alone * embeddings[:8]).sum(axis=1).min()),
            }
        )
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def all_answers(run: Run, images: Pixels) -> tuple[Floats, Floats]:
    """Embeddings (n, D) and logits (n, K)."""
    found = [run(images[start : start + 8]) for start in range(0, len(images), 8)]
    return tuple(np.concatenate([part[name] for part in found]) for name in ("embedding", "logits"))


def measure(
    runs: Mapping[str, Run],
    rival: Run,
    images: Pixels,
    rows: list[dict[str, object]],
    *,
    seconds: float,
) -> None:
    """Write into the rows how many times as fast as the rival they are."""
    calls = {name: (lambda run=run: run(images)) for name, run in {RIVAL: rival, **runs}.items()}
    times = take_turns(calls, seconds=seconds, least=5)
    for row in rows:
        ratio = paired_ratio(times[RIVAL], times[str(row["contender"])])
        row[f"times_{len(images)}"] = [ratio.median, ratio.low, ratio.high]


def table(rows: list[dict[str, object]]) -> str:
    """Markdown."""
    columns = ("contender", "cosine_min", "cosine_mean", "agreement", "neighbours")
    columns += tuple(f"times_{batch}" for batch in BATCHES)
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = [row[column] for column in columns]
        shown = [
            f"{c[0]:.2f} ({c[1]:.2f} to {c[2]:.2f})"
            if isinstance(c, list)
            else f"{c:.5f}"
            if isinstance(c, float)
            else str(c)
            for c in cells
        ]
        lines.append("| " + " | ".join(shown) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
