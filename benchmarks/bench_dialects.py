"""Attention as one operator against products and a softmax: which engine is faster with which.

    python benchmarks/bench_dialects.py [--batch 1] [--seconds 20] [--engines onnx,openvino]

ViT-B/16's image tower with random weights, float32, one thread an engine unless --threads says
otherwise. Answers of both dialects must agree before anything is timed.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import numpy as np
from recording import Recording

from vlp_deploy.engines import engine_class
from vlp_deploy.engines.base import Engine, EngineOptions
from vlp_deploy.formats.architecture import ClipConfig, Preprocessing
from vlp_deploy.formats.weights import Floats, expected_shapes
from vlp_deploy.measuring.timing import paired_ratio, take_turns
from vlp_export.dialects import FUSED, PORTABLE
from vlp_export.graph import node_count, to_bytes
from vlp_export.image_graph import write_image_graph

RESULTS = Path(__file__).parent / "results" / "dialects.jsonl"
DIALECTS = {"portable": PORTABLE, "fused": FUSED}
CLASSES = 10
VIT_B_16 = ClipConfig.from_open_clip(
    {
        "embed_dim": 512,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 224, "patch_size": 16, "width": 768, "layers": 12},
        "text_cfg": {"vocab_size": 8, "width": 64, "heads": 1, "layers": 1},  # not run here
    }
)


def random_weights(config: ClipConfig) -> dict[str, Floats]:
    """Weights of the scale that trained ones have, so that nothing overflows or vanishes."""
    generator = np.random.default_rng(0)
    return {
        name: generator.normal(float(".ln_" in name and "weight" in name), 0.02, shape).astype(
            np.float32
        )
        for name, shape in expected_shapes(config).items()
    }


def write_graphs(folder: Path) -> dict[str, Path]:
    """The graph in each dialect."""
    weights, paths = random_weights(VIT_B_16), {}
    for name, dialect in DIALECTS.items():
        model = write_image_graph(
            VIT_B_16, weights, preprocessing=Preprocessing(image_size=224), dialect=dialect
        )
        paths[name] = folder / f"{name}.onnx"
        paths[name].write_bytes(to_bytes(model))
        print(f"{name}: opset {dialect.opset}, {node_count(model)} nodes")
    return paths


def compare(engines: dict[str, Engine], batch: int, seconds: float) -> dict[str, object]:
    """Check that both dialects answer alike, then time them in turns."""
    generator = np.random.default_rng(1)
    inputs = {
        "image": generator.integers(0, 256, (batch, 3, 224, 224), np.uint8),
        "class_matrix": generator.normal(0, 1, (512, CLASSES)).astype(np.float32),
        "class_bias": np.zeros(CLASSES, np.float32),
    }
    answers = {name: engine.run(inputs)["embedding"] for name, engine in engines.items()}
    difference = float(np.abs(answers["fused"] - answers["portable"]).max())
    assert difference < 1e-5, f"the dialects differ by {difference:.1e}"
    times = take_turns(
        {name: lambda e=engine: e.run(inputs) for name, engine in engines.items()}, seconds=seconds
    )
    ratio = paired_ratio(times["fused"], times["portable"])
    print(
        f"{engines['fused'].version}, batch {batch}: fused takes {ratio.median:.3f}x the time of "
        f"portable ({ratio.low:.3f} to {ratio.high:.3f}); p50 "
        + ", ".join(f"{name} {np.median(each):.1f} ms" for name, each in times.items())
    )
    return {
        "engine": engines["fused"].version,
        "batch": batch,
        "difference": difference,
        "fused over portable": msgspec.to_builtins(ratio),
    }


def main() -> None:
    """Measure, print, append."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--engines", default="onnx,openvino")
    options = parser.parse_args()
    recording = Recording(["onnxruntime", "openvino", "numpy"])

    rows = []
    with TemporaryDirectory() as folder:
        paths = write_graphs(Path(folder))
        for name in options.engines.split(","):
            settings = EngineOptions(threads=options.threads)
            engines = {
                dialect: engine_class(name)(path, settings) for dialect, path in paths.items()
            }
            rows.append(compare(engines, options.batch, options.seconds))
            for engine in engines.values():
                engine.close()
    recording.append(RESULTS, rows=rows)


if __name__ == "__main__":
    main()
