"""ViT-B/16 in every engine beside PyTorch and its stock ONNX export: time, cold start, memory.

    python benchmarks/bench_vit_b16.py [--seconds 40] [--work FOLDER] [--threads 2] [--batches 1 8]

open_clip's ViT-B-16-quickgelu with random weights from a seed; 10 emoji classes, zero-shot. All
contenders take uint8 pixels and give logits, take turns, and use as many threads:

    eager           open_clip in PyTorch, float32: what the ratios are against
    stock ENGINE    the same module through torch.onnx.export(dynamo=True)
    ours ENGINE     our graph, float32 and int8

Beside them: the best rate of a matrix product of 1576 x 768 x 3072 in PyTorch, onnxruntime and
OpenVINO, in float32 and int8, and each contender's share of the best at batch 8; the class bank of
1,000 names beside all 77 tokens of each; fresh processes of `vlp classify` with the int8 bundle.
Every contender's answers are compared with eager's before it is timed. `--work` keeps the weights
and bundles for the next time. A line goes to `results/vit_b16.jsonl`.
"""

import argparse
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice, permutations
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import onnx
import open_clip
import torch
from onnx import TensorProto, helper, numpy_helper
from recording import Recording
from safetensors.torch import save_file
from torch import nn

from vlp_deploy.classifier import Classifier
from vlp_deploy.cli import run
from vlp_deploy.data.dataset import load_dataset
from vlp_deploy.embedded import emoji_path
from vlp_deploy.engines import load_engine
from vlp_deploy.engines.base import EngineOptions
from vlp_deploy.formats.bundle import Bundle
from vlp_deploy.measuring.bench import measure_cold_start
from vlp_deploy.measuring.timing import all_turns, paired_ratio, take_turns

RESULTS = Path(__file__).parent / "results" / "vit_b16.jsonl"
MODEL = "ViT-B-16-quickgelu"
ENGINES = ("onnx", "openvino")
OURS = ("fp32", "int8")
ROWS, INNER, COLUMNS = 1576, 768, 3072  # 8 x 197 tokens times the first matrix of an MLP
CLASSES, TEMPLATE = 10, "a photo of a {}."
LEAST_COSINE = {"fp32": 1 - 1e-5, "int8": 0.99}  # between embeddings, and eager's
Run = Callable[[np.ndarray], np.ndarray]


class Contender(NamedTuple):
    """uint8 (B, 3, S, S) to embeddings, for the proof, and to logits, for the clock."""

    embed: Run
    logits: Run

    @classmethod
    def of(cls, run: Callable[[np.ndarray], Sequence[np.ndarray]]) -> "Contender":
        """From what gives both at once."""
        return cls(lambda x: run(x)[0], lambda x: run(x)[1])


class Eager(nn.Module):
    """open_clip's image tower and a head: uint8 (B, 3, S, S) to embeddings and logits."""

    def __init__(self, clip: nn.Module, matrix: np.ndarray) -> None:
        super().__init__()
        self.clip = clip
        self.register_buffer("matrix", torch.from_numpy(matrix))
        self.register_buffer("mean", 255 * torch.tensor(clip.visual.image_mean)[:, None, None])
        self.register_buffer("std", 255 * torch.tensor(clip.visual.image_std)[:, None, None])

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = (image.float() - self.mean) / self.std
        embedding = self.clip.encode_image(pixels, normalize=True)
        return embedding, embedding @ self.matrix


def main() -> None:
    """Measure, assert, print, append."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=40, help="of timing, a batch size")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--work", type=Path, help="where weights and bundles are kept")
    options = parser.parse_args()
    recording = Recording(["torch", "open_clip_torch", "onnxruntime", "openvino", "numpy"])
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch, torch.inference_mode():
        folder = options.work or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        os.environ["VLP_CACHE"] = f"{scratch}/cache"
        make_bundles(folder)
        contending = contenders(folder, Path(scratch), options.threads)
        gemm = gemm_rates(Path(scratch), options.threads)
        rows = [
            row
            for batch in options.batches
            for row in timed(contending, folder, gemm, batch=batch, seconds=options.seconds)
        ]
        bank = class_bank(folder / "fp32", options.threads)
        contending.clear()
        starts = {engine: cold_start(folder / "int8", engine) for engine in (*ENGINES, "auto")}
    recording.append(
        RESULTS,
        threads=options.threads,
        gemm_gflops_per_s=gemm,
        rows=rows,
        class_bank=bank,
        cold_start=starts,
    )


def make_bundles(folder: Path) -> None:
    """Weights, a zero-shot checkpoint and its bundles, unless they are there."""
    weights, data = folder / "weights.safetensors", folder / "data.csv"
    if not weights.exists():
        save_file(dict(seeded_clip().state_dict()), weights)
    dataset = load_dataset(emoji_path() / "split_zhou_styles.json")
    names = dataset.class_names[:CLASSES]
    samples = [s for s in dataset.split("train") if s.label < CLASSES]
    data.write_text("path,label\n" + "".join(f'{s.path},"{names[s.label]}"\n' for s in samples))
    model = ["--model", MODEL, "--pretrained", str(weights)]
    if not (folder / "run").exists():
        _vlp("train", str(data), "--method", "zeroshot", *model, "--output", str(folder / "run"))
    for precision in OURS:
        if not (folder / precision).exists():
            words = ["export", str(folder / "run"), "--precision", precision]
            words += ["--calibration", str(data)] if precision == "int8" else []
            words += ["--pretrained", str(weights), "--output", str(folder / precision)]
            _vlp(*words)


def _vlp(*words: str) -> None:
    if run(list(words)):
        raise SystemExit(f"vlp {' '.join(words)} failed")


def seeded_clip() -> Any:
    """open_clip's model as it is initialised with this seed."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there are no trained weights
        return open_clip.create_model(MODEL, pretrained=None).eval()


def contenders(folder: Path, scratch: Path, threads: int) -> dict[str, Contender]:
    """By name, eager first."""
    bank = Bundle(folder / "fp32").class_bank().inputs
    eager = Eager(seeded_clip(), bank["class_matrix"]).eval()
    found = {"eager": Contender.of(lambda x: [y.numpy() for y in eager(torch.from_numpy(x))])}
    stock = scratch / "stock.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's exporter warns of its own deprecations
        torch.onnx.export(
            eager,
            (torch.zeros((2, 3, 224, 224), dtype=torch.uint8),),
            str(stock),
            input_names=["image"],
            output_names=["embedding", "logits"],
            dynamo=True,
            dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
            external_data=False,
            verbose=False,
        )
    for engine in ENGINES:
        loaded = load_engine(engine, stock, EngineOptions(threads=threads))
        found[f"stock {engine}"] = Contender.of(
            lambda x, e=loaded: [e.run({"image": x})[name] for name in ("embedding", "logits")]
        )
        for precision in OURS:
            served = Classifier.load(folder / precision, engine, threads)
            found[f"ours {engine} {precision}"] = Contender(served.embed, served.logits)
    return found


def timed(
    contending: Mapping[str, Contender],
    folder: Path,
    gemm: Mapping[str, Mapping[str, float]],
    *,
    batch: int,
    seconds: float,
) -> list[dict[str, Any]]:
    """A row for each contender, printed as it is made."""
    bundle = Bundle(folder / "fp32")
    pixels = np.resize(bundle.golden().pixels, (batch, 3, 224, 224))
    gflop = batch * bundle.manifest.graphs["image"].flops / 1e9
    expected = contending["eager"].embed(pixels)
    for name, contender in contending.items():
        cosine = float((contender.embed(pixels) * expected).sum(axis=1).min())
        assert cosine >= LEAST_COSINE[precision_of(name)], f"{name} is off: cosine {cosine}"
    turns = {name: partial(contender.logits, pixels) for name, contender in contending.items()}
    times = take_turns(turns, seconds=seconds, warm_up=1, least=5)
    rows = []
    for name, measured in times.items():
        ratio = paired_ratio(times["eager"], measured)
        kind = precision_of(name)
        best = max(gemm[kind].values())
        share = gflop / (float(np.median(measured)) / 1000) / best
        row = {"batch": batch, "contender": name, "p50_ms": float(np.median(measured))}
        row |= {"times_eager": msgspec.to_builtins(ratio), "share_of_best_gemm": share}
        rows.append(row | {"turns": len(measured)})
        print(
            f"batch {batch}  {name:<20} {row['p50_ms']:8.1f} ms  {ratio.median:5.2f}x eager "
            f"({ratio.low:.2f} to {ratio.high:.2f})  {share:.0%} of the best {kind} product",
            flush=True,
        )
    for engine in ENGINES:
        ratio = paired_ratio(times[f"stock {engine}"], times[f"ours {engine} fp32"])
        rows.append({"batch": batch, "over_stock": engine, "ratio": msgspec.to_builtins(ratio)})
        print(f"batch {batch}  ours over stock, {engine}: {ratio.median:.3f}x", flush=True)
    return rows


def precision_of(contender: str) -> str:
    """What a contender computes in, by its name."""
    return "int8" if contender.endswith("int8") else "fp32"


def gemm_rates(scratch: Path, threads: int) -> dict[str, dict[str, float]]:
    """GFLOP/s of ROWS x INNER x COLUMNS: precision -> library -> the fastest of some calls."""
    random = np.random.default_rng(0)
    left = random.standard_normal((ROWS, INNER), np.float32)
    right = random.standard_normal((INNER, COLUMNS), np.float32)
    tensors = torch.from_numpy(left), torch.from_numpy(right)
    calls: dict[str, dict[str, Callable[[], object]]] = {
        "fp32": {"torch": lambda: torch.mm(*tensors)},
        "int8": {},
    }
    for precision in OURS:
        path = scratch / f"gemm-{precision}.onnx"
        onnx.save(gemm_model(right, quantised=precision == "int8"), path)
        for engine in ENGINES:
            loaded = load_engine(engine, path, EngineOptions(threads=threads))
            product = loaded.run({"left": left})["product"]
            error = np.abs(product - left @ right).max() / np.abs(product).max()
            assert error < (1e-5 if precision == "fp32" else 0.05), f"{engine}: off by {error}"
            calls[precision][engine] = lambda e=loaded: e.run({"left": left})
    rates: dict[str, dict[str, float]] = {}
    for precision, contending in calls.items():
        times = all_turns(contending, seconds=3, warm_up=3, least=10)
        flops = 2 * ROWS * INNER * COLUMNS
        fastest = {name: np.concatenate(turns).min() for name, turns in times.items()}
        rates[precision] = {name: flops / float(ms) / 1e6 for name, ms in fastest.items()}
        listed = ", ".join(f"{name} {rate:.0f}" for name, rate in rates[precision].items())
        print(f"{precision} product, GFLOP/s: {listed}", flush=True)
    return rates


def gemm_model(right: np.ndarray, *, quantised: bool) -> onnx.ModelProto:
    """`product` = `left` (ROWS, INNER) times a constant, in float32 or as QDQ in int8."""
    initialisers, nodes = [numpy_helper.from_array(right, "right")], []
    if quantised:
        scale = np.abs(right).max(axis=0) / 127
        initialisers = [
            numpy_helper.from_array(np.round(right / scale).astype(np.int8), "right8"),
            numpy_helper.from_array(scale.astype(np.float32), "scale"),
            numpy_helper.from_array(np.zeros(COLUMNS, np.int8), "zero"),
            numpy_helper.from_array(np.float32(10 / 255), "step"),  # normal numbers up to 5
            numpy_helper.from_array(np.uint8(128), "middle"),
        ]
        nodes = [
            helper.make_node("QuantizeLinear", ["left", "step", "middle"], ["left8"]),
            helper.make_node("DequantizeLinear", ["left8", "step", "middle"], ["seen"]),
            helper.make_node("DequantizeLinear", ["right8", "scale", "zero"], ["right"], axis=1),
        ]
    nodes.append(
        helper.make_node("MatMul", ["seen" if quantised else "left", "right"], ["product"])
    )
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("left", [ROWS, INNER]), ("product", [ROWS, COLUMNS]))
    ]
    graph = helper.make_graph(nodes, "gemm", values[:1], values[1:], initialisers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def class_bank(path: Path, threads: int, *, names: int = 1000, naive: int = 64) -> dict[str, float]:
    """Milliseconds a name: our class bank, and all 77 tokens of each in the same engine."""
    classifier = Classifier.load(path, "onnx", threads)
    words = load_dataset(emoji_path() / "split_zhou_styles.json").class_names
    pairs = [f"{first} {second}" for first, second in islice(permutations(words, 2), names)]
    classifier.with_classes(pairs[:8], [TEMPLATE])  # loads the text graph
    start = time.perf_counter()
    bank = classifier.with_classes(pairs, [TEMPLATE])
    ours = 1000 * (time.perf_counter() - start) / names
    rows = {"input_ids": _all_tokens(pairs[:naive]), "slots": np.full((naive, 77), -1)}
    rows["eot_index"] = rows["input_ids"].argmax(axis=1)  # the end of text has the largest number
    width = classifier.bundle.manifest.backbone.config.text.width
    prompts = np.zeros((1, 0, width), np.float32)
    text = classifier._towers.graph("text")
    start = time.perf_counter()
    embeddings = text.run({**rows, "prompts": prompts})["embedding"]
    whole = 1000 * (time.perf_counter() - start) / naive
    cosine = float((embeddings * bank.class_embeddings[:naive]).sum(axis=1).min())
    assert cosine > 1 - 1e-5, f"the class bank is off: cosine {cosine}"
    print(f"class bank: {ours:.2f} ms a name; 77 tokens: {whole:.2f} ms, {whole / ours:.1f}x")
    return {"ms_a_name": ours, "ms_a_name_of_77_tokens": whole, "ratio": whole / ours}


def _all_tokens(names: list[str]) -> np.ndarray:
    tokens = open_clip.get_tokenizer(MODEL)([TEMPLATE.format(name) for name in names])
    return tokens.numpy().astype(np.int64)


def cold_start(bundle: Path, engine: str) -> dict[str, float]:
    """Seconds from process start to the first answer, and the peak memory."""
    found = measure_cold_start(Bundle(bundle), engine=engine)
    later = float(np.median(found.later_s))
    print(
        f"cold start, int8, {engine}: {found.first_s:.2f} s the first time, {later:.2f} s later, "
        f"peak {found.peak_memory_mb:.0f} MB",
        flush=True,
    )
    return {"first_s": found.first_s, "later_s": later, "peak_memory_mb": found.peak_memory_mb}


if __name__ == "__main__":
    main()
