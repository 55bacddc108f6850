"""Every method beside zero-shot on the embedded emoji: base, new, their harmonic mean, new styles.

    python benchmarks/bench_methods.py [--methods coop vpt …] [--seeds 1 2 3] [--shots 2] [--jobs 1]

A run draws `shots` of the four training styles for each base class and learns from them, with the
options of the method's recipe (`vlp_train.recipes`). Measured are

    base     drawings of the training styles that were not drawn, classes of the training
    new      drawings of the training styles, classes that nobody trained on
    H        the harmonic mean of the two
    styles   drawings of three vendors whose style nobody trained on, classes of the training

by the un-folded forward pass. Zero-shot is the best of the templates, chosen on each column for
itself: what a tuned prompt has to beat. A table goes to stdout, a line to `results/methods.jsonl`.
"""

import argparse
import csv
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from recording import Recording

from vlp_deploy.cli import run
from vlp_deploy.data.dataset import Sample, few_shot, load_dataset
from vlp_deploy.embedded import emoji_path
from vlp_deploy.formats.checkpoint import PromptCheckpoint
from vlp_train.evaluate import ENSEMBLE
from vlp_train.recipes import RECIPES

RESULTS = Path(__file__).parent / "results" / "methods.jsonl"
ZERO_SHOT = "zeroshot"
COLUMNS = ("base", "new", "H", "styles")
Scores = dict[str, float]  # by column


@dataclass(frozen=True, kw_only=True)
class Data:
    """One seed's files: `base` has a train and a test split, the others test only."""

    base: Path
    new: Path
    styles: Path


def write_data(folder: Path, *, shots: int, seed: int) -> Data:
    """Draw the shots and write lists of what is learned from and what is measured on."""
    base, new = (load_dataset(emoji_path() / f"split_zhou_{part}.json") for part in ("base", "new"))
    drawn = few_shot(base.split("train"), shots=shots, seed=seed)
    left = [sample for sample in base.split("train") if sample not in set(drawn)]
    splits = {
        "base": (base.class_names, {"train": drawn, "test": left}),
        "new": (new.class_names, {"test": new.split("train")}),
        "styles": (base.class_names, {"test": base.split("test")}),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, (class_names, samples) in splits.items():
        _write_list(folder / f"{name}.csv", class_names, samples)
    return Data(**{name: folder / f"{name}.csv" for name in splits})


def _write_list(
    path: Path, class_names: Sequence[str], splits: Mapping[str, Sequence[Sample]]
) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        for split, samples in splits.items():
            writer.writerows((s.path, class_names[s.label], split) for s in samples)


def train(name: str, data: Data, folder: Path, *, seed: int, shots: int) -> tuple[Scores, float]:
    """One run's accuracies in percent, and its seconds."""
    started = time.perf_counter()
    arguments = RECIPES[name].arguments(data.base, folder, seed=seed, shots=shots)
    arguments += ["--output", str(folder / name), "--force"]
    arguments += ["--evaluate", str(data.new), "--evaluate", str(data.styles)]
    if run(arguments):
        raise SystemExit(f"vlp {' '.join(arguments)} failed")
    metrics = PromptCheckpoint.load(folder / name).header.provenance["metrics"]
    return scores_of(metrics), time.perf_counter() - started


def scores_of(metrics: Mapping[str, Any]) -> Scores:
    """The columns of the table."""
    base, new, styles = (100 * metrics[source]["top1"] for source in ("test", "new", "styles"))
    return {"base": base, "new": new, "H": harmonic(base, new), "styles": styles}


def harmonic(a: float, b: float) -> float:
    """Harmonic mean of two percentages."""
    return 2 * a * b / (a + b) if a + b else 0.0


def zero_shot(data: Data, folder: Path) -> tuple[Scores, float]:
    """The best accuracy of any one template or of their average, column by column."""
    started = time.perf_counter()
    best: dict[str, float] = {}
    for column in ("base", "new", "styles"):
        arguments = RECIPES[ZERO_SHOT].arguments(getattr(data, column), folder)
        if run([*arguments, "--output", str(folder / ZERO_SHOT), "--force"]):
            raise SystemExit(f"zero-shot on {column} failed")
        metrics = PromptCheckpoint.load(folder / ZERO_SHOT).header.provenance["metrics"]
        assert ENSEMBLE in metrics, "several templates are compared"
        best[column] = 100 * max(metric["top1"] for metric in metrics.values())
    scores = {**best, "H": harmonic(best["base"], best["new"])}
    return scores, time.perf_counter() - started


def check_dpc(runs: Mapping[str, Sequence[Scores]]) -> None:
    """DPC serves new classes with its backbone's prompt: the accuracies must be the same."""
    for name, scores in runs.items():
        for tuned, before in zip(scores, runs.get(RECIPES[name].stage1, ()), strict=False):
            assert tuned["new"] == before["new"], f"{name} changed the answers for new classes"


def table(runs: Mapping[str, Sequence[Scores]]) -> str:
    """Markdown: mean ± standard deviation over the seeds, the best of each column marked."""
    means = {
        name: {column: mean(s[column] for s in scores) for column in COLUMNS}
        for name, scores in runs.items()
    }
    best = {column: max(row[column] for row in means.values()) for column in COLUMNS}
    lines = [
        f"| method | {' | '.join(COLUMNS)} |",
        f"|---|{'---|' * len(COLUMNS)}",
    ]
    for name, scores in runs.items():
        cells = []
        for column in COLUMNS:
            spread = stdev(s[column] for s in scores) if len(scores) > 1 else 0.0
            cell = f"{means[name][column]:.1f} ± {spread:.1f}"
            cells.append(f"**{cell}**" if means[name][column] == best[column] else cell)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class Seed:
    """Every run of one seed."""

    names: Sequence[str]
    seed: int
    shots: int
    folder: Path
    threads: int

    def measure(self) -> dict[str, tuple[Scores, float]]:
        """Scores and seconds by the name of the recipe, stage 1 before stage 2."""
        torch.set_num_threads(self.threads)
        data = write_data(self.folder / "data", shots=self.shots, seed=self.seed)
        return {
            name: zero_shot(data, self.folder)
            if name == ZERO_SHOT
            else train(name, data, self.folder, seed=self.seed, shots=self.shots)
            for name in self.names
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--shots", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=1, help="seeds at a time, sharing the cores")
    options = parser.parse_args()
    recording = Recording(["torch", "numpy"])
    wanted = {*options.methods, *(RECIPES[name].stage1 for name in options.methods)}
    names = [name for name in RECIPES if name in wanted]
    with tempfile.TemporaryDirectory() as scratch:
        seeds = [
            Seed(
                names=names,
                seed=seed,
                shots=options.shots,
                folder=Path(scratch) / str(seed),
                threads=max(1, len(os.sched_getaffinity(0)) // options.jobs),
            )
            for seed in options.seeds
        ]
        with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
            measured = list(pool.map(Seed.measure, seeds))
    runs = {name: [of_seed[name][0] for of_seed in measured] for name in names}
    seconds = {name: mean(of_seed[name][1] for of_seed in measured) for name in names}
    check_dpc(runs)
    print(table(runs))
    recording.append(
        RESULTS,
        shots=options.shots,
        seeds=options.seeds,
        percent=runs,
        seconds=seconds,
    )


if __name__ == "__main__":
    main()
