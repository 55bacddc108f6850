"""Engine x precision x method x batch on the embedded emoji: how right, how fast, how large.

    python benchmarks/bench_engines.py [--methods zeroshot coop maple dpt] [--seconds 1] [--full]

Each method is tuned by its recipe (without `--full` in its short form, whose accuracies mean
little) and exported in every precision that each engine of the CPU takes; pairs that do not go
together are listed with the reason. A bundle is then served by its engine:

    |Δlogit|    largest difference from the un-folded model, on the reference images (fp32)
    cosine      smallest, of an image's embedding in this precision and in float32
    neighbours  smallest cosine of an image's embedding alone and among seven others
    agreement   share of the same top-1 classes as float32 in onnxruntime has, test drawings
    top-1       accuracy on the test drawings, styles that nobody trained on
    times       time of float32 in onnxruntime over its time, by turns; above 1 is faster

A row that breaks its promise (`vlp_deploy/tolerance.py`, neighbours) fails the run. Tables go to
stdout and `results/engines.md`, a line to `results/engines.jsonl`.
"""

import argparse
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from recording import Recording

from vlp_deploy.classifier import Classifier
from vlp_deploy.cli import run
from vlp_deploy.data.dataset import load_dataset
from vlp_deploy.embedded import emoji_path
from vlp_deploy.engines.support import PRECISIONS, why_unsupported
from vlp_deploy.errors import ParityError
from vlp_deploy.images.loading import load_image
from vlp_deploy.images.preprocess import preprocess
from vlp_deploy.measuring.timing import paired_ratio, take_turns
from vlp_export.exporter import export
from vlp_train.recipes import RECIPES

RESULTS = Path(__file__).parent / "results"
ENGINES = ("onnx", "openvino")
BATCHES = (1, 8)
DATA = emoji_path() / "split_zhou_styles.json"
# Cosines that each precision promises: of the embedding, and of the same among neighbours.
PROMISED = {"fp32": 1 - 1e-5, "fp16": 0.999, "bf16": 0.999, "int8": 0.99}
COLUMNS = ("method", "engine", "precision", "batch", "|Δlogit|", "cosine", "neighbours")
COLUMNS += ("agreement", "top-1", "times", "MB")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One cell of engine x precision x method x batch."""

    method: str
    engine: str
    precision: str
    batch: int
    max_logit_difference: float
    cosine: float
    neighbours: float
    agreement: float
    top1: float
    times: float
    times_low: float
    times_high: float
    megabytes: float

    def cells(self) -> tuple[str, ...]:
        """As the table shows it."""
        times = f"{self.times:.2f} ({self.times_low:.2f} to {self.times_high:.2f})"
        right = f"{self.agreement:.1%}", f"{self.top1:.1%}"
        cosines = f"{self.cosine:.6f}", f"{self.neighbours:.6f}"
        names = self.method, self.engine, self.precision, str(self.batch)
        difference, size = f"{self.max_logit_difference:.1e}", f"{self.megabytes:.1f}"
        return (*names, difference, *cosines, *right, times, size)


class Served:
    """A bundle in an engine, with its answers for the test drawings."""

    def __init__(self, path: Path, engine: str, pixels: np.ndarray, threads: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # bf16 on a processor without its units
            self.classifier = Classifier.load(path, engine, threads)
        batches = [pixels[start : start + 8] for start in range(0, len(pixels), 8)]
        self.logits = np.concatenate([self.classifier.logits(batch) for batch in batches])
        self.bytes = sum(file.stat().st_size for file in path.iterdir())

    def neighbours(self, pixels: np.ndarray) -> float:
        """The smallest cosine of an image's embedding alone and among others."""
        among = self.classifier.embed(pixels)
        alone = np.concatenate([self.classifier.embed(image[None]) for image in pixels])
        return float((among * alone).sum(axis=1).min())


def main() -> None:
    """Tune, export, serve, assert, print, append."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=["zeroshot", "coop", "maple", "dpt"])
    parser.add_argument("--seconds", type=float, default=1, help="of timing, a cell")
    parser.add_argument("--images", type=int, default=512, help="test drawings")
    parser.add_argument("--full", action="store_true", help="tune by the whole recipes")
    options = parser.parse_args()
    recording = Recording(["onnxruntime", "openvino", "torch"])
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    rows: list[Row] = []
    refused: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["VLP_CACHE"] = f"{scratch}/cache"
        for method in options.methods:
            rows += measure_method(method, Path(scratch), refused, options)
            print(table(row for row in rows if row.method == method), flush=True)
    check(rows)
    reasons = [f"- {pair}: {reason}" for pair, reason in refused.items()]
    page = "\n".join([table(rows), "", "Not in the table:", "", *reasons, ""])
    print(*reasons, sep="\n")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "engines.md").write_text(page)
    recording.append(
        RESULTS / "engines.jsonl",
        rows=[asdict(row) for row in rows],
        refused=refused,
    )


def measure_method(
    method: str, folder: Path, refused: dict[str, str], options: argparse.Namespace
) -> list[Row]:
    """Every engine and precision; what cannot be exported is added to `refused`."""
    recipe = RECIPES[method]
    if recipe.stage1:
        raise SystemExit(f"{method} goes on from {recipe.stage1}: measure that")
    words = recipe.arguments(DATA, folder, smoke=not options.full)
    if run([*words, "--output", str(folder / method), "--force"]):
        raise SystemExit(f"vlp {' '.join(words)} failed")
    paths = dict(exported(method, folder, refused))
    pixels, labels = test_images(paths["onnx", "fp32"], most=options.images)
    threads = len(os.sched_getaffinity(0))
    served = {pair: Served(path, pair[0], pixels, threads) for pair, path in paths.items()}
    reference = served["onnx", "fp32"]
    rows = []
    for batch in BATCHES:
        images = np.resize(pixels, (batch, *pixels.shape[1:]))
        calls = {pair: lambda s=s, x=images: s.classifier.logits(x) for pair, s in served.items()}
        times = take_turns(calls, seconds=options.seconds * len(calls), least=5)
        for pair, answers in served.items():
            ratio = paired_ratio(times["onnx", "fp32"], times[pair])
            (parity,) = (
                row
                for row in answers.classifier.bundle.manifest.parity
                if (row.precision, row.batch) == (pair[1], batch)
                and row.engine == (pair[0] if pair[1] == "fp32" else row.engine)
            )
            rows.append(
                Row(
                    method=method,
                    engine=pair[0],
                    precision=pair[1],
                    batch=batch,
                    max_logit_difference=parity.max_logit_difference,
                    cosine=parity.min_cosine,
                    neighbours=answers.neighbours(pixels[:8]),
                    agreement=float(
                        (answers.logits.argmax(1) == reference.logits.argmax(1)).mean()
                    ),
                    top1=float((answers.logits.argmax(1) == labels).mean()),
                    times=ratio.median,
                    times_low=ratio.low,
                    times_high=ratio.high,
                    megabytes=answers.bytes / 1e6,
                )
            )
    return rows


def exported(
    method: str, folder: Path, refused: dict[str, str]
) -> Iterator[tuple[tuple[str, str], Path]]:
    """(engine, precision) and its bundle."""
    for engine in ENGINES:
        for precision in PRECISIONS:
            if reason := why_unsupported(engine, precision):
                refused[f"{engine} {precision}"] = reason
                continue
            path = folder / f"{method}-{engine}-{precision}"
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    export(folder / method, path, engine=engine, precision=precision)
            except ParityError as error:
                refused[f"{engine} {precision} {method}"] = str(error).splitlines()[0]
            else:
                yield (engine, precision), path


def test_images(bundle: Path, *, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Test drawings (n, 3, S, S) and the numbers of their classes in the bundle (n,)."""
    dataset = load_dataset(DATA)
    classifier = Classifier.load(bundle, "onnx", 1)
    settings = classifier.bundle.manifest.preprocessing
    every = dataset.split("test")
    samples = [every[i] for i in np.unique(np.linspace(0, len(every) - 1, most).astype(int))]
    pixels = np.stack([preprocess(load_image(sample.path), settings) for sample in samples])
    number = {name: index for index, name in enumerate(classifier.classes)}
    labels = np.array([number[dataset.class_names[sample.label]] for sample in samples])
    return pixels, labels


def check(rows: Sequence[Row]) -> None:
    """What every row promises."""
    for row in rows:
        least = PROMISED[row.precision]
        assert row.cosine >= least, f"{row} is too far from float32"
        assert row.neighbours >= 1 - 1e-4, f"in {row} answers depend on the batch"
        if row.precision == "fp32":
            assert row.agreement >= 0.998, f"{row}: float32 does not depend on the engine"


def table(rows: Iterator[Row] | Sequence[Row]) -> str:
    """Markdown."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    return "\n".join(lines + [f"| {' | '.join(row.cells())} |" for row in rows])


if __name__ == "__main__":
    main()
