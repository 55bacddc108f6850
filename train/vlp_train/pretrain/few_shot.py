"""Print what CoOp makes of 1, 2 and 4 vendors' drawings a class, and whether more is better.

    python -m vlp_train.pretrain.few_shot --output runs/few-shot [--context class-specific]

Methods can be compared on an embedded CLIP only if it behaves as large ones do: accuracy on other
vendors' styles rises from zero-shot to 1, 2 and 4 training styles, as the mean over three seeds.
Exit code 1 if it does not. CoOp (arXiv:2109.01134, section 3) learns a unified context, or one for
every class. A seed's shots are nested, more of them contain the fewer, so that the curve shows what
more drawings give and not which were drawn. Every step takes as many drawings as there are classes,
so that more shots also have more steps, as in CoOp's code, where batches have one size. The same
command goes on where it was interrupted.
"""

import argparse
import csv
import io
import random
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean

from rich.console import Console

from vlp_deploy.cli import guarded
from vlp_deploy.data.dataset import Dataset, Sample, load_dataset
from vlp_deploy.errors import DataError, TrainingError
from vlp_deploy.files import write_atomic
from vlp_deploy.formats.checkpoint import PromptCheckpoint
from vlp_train.pretrain.evaluate import EMOJI

SHOTS = (1, 2, 4)
SEEDS = (1, 2, 3)
EPOCHS = 50
_WORDS = "a small colourful picture of a"
_ZERO_SHOT = ("--method", "zeroshot", "--template", f"{_WORDS} {{}}.")
_COOP = ("--method", "coop", "--learning-rate", "8", "--no-augment")
# Chosen by accuracy on one training style, then another, from the others.
CONTEXTS = {
    "unified": ("-O", f"words={_WORDS}"),
    "class-specific": ("-O", "class_specific=true", "-O", "context_tokens=1"),
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all runs of a curve share; every run is a folder in `output`."""

    data: Path
    output: Path
    context: str  # one of CONTEXTS
    pretrained: str | None


def nested_shots(samples: Sequence[Sample], *, shots: int, seed: int) -> list[Sample]:
    """Draw `shots` samples of every class, among them those that fewer shots would be.

    Raises:
        DataError: a class has fewer.
    """
    by_label: dict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_label[sample.label].append(sample)
    fewest = min(map(len, by_label.values()), default=0)
    if fewest < shots:
        raise DataError(f"{shots} shots asked for; there are classes with {fewest}. Ask for fewer")
    generator = random.Random(seed)
    orders = [generator.sample(own, len(own)) for _, own in sorted(by_label.items())]
    return [sample for order in orders for sample in order[:shots]]


def split_file(data: Dataset, *, shots: int, seed: int) -> bytes:
    """The drawn and the test samples of a data set as CSV."""
    drawn = nested_shots(data.split("train"), shots=shots, seed=seed)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["path", "label", "split"])
    for split, samples in (("train", drawn), ("test", data.split("test"))):
        for each in samples:  # absolute: a list's paths are relative to its own folder
            writer.writerow([each.path.absolute(), data.class_names[each.label], split])
    return text.getvalue().encode()


def accuracy(setting: Setting, data: Path, name: str, options: Sequence[str]) -> float:
    """Run `vlp train` into `setting.output`/`name`, or go on with it, and return test top-1.

    Raises:
        TrainingError: training failed; it has said why.
    """
    folder = setting.output / name
    weights = [] if setting.pretrained is None else ["--pretrained", setting.pretrained]
    words = ["train", str(data), *options, *weights, "--output", str(folder), "--resume"]
    command = [sys.executable, "-m", "vlp_deploy", *words]
    code = subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode
    if code:
        raise TrainingError(
            f"`vlp {' '.join(words)}` ended with exit code {code}. If it was started with other "
            "options or weights, take another --output"
        )
    metrics = PromptCheckpoint.load(folder).header.provenance["metrics"]
    return float(metrics["test"]["top1"])


def curve(
    setting: Setting, *, shots: Sequence[int], seeds: Sequence[int], epochs: int
) -> dict[int, list[float]]:
    """Return accuracies by number of shots, one a seed; 0 shots is zero-shot."""
    data = load_dataset(setting.data)
    name = setting.data.stem
    found = {0: [accuracy(setting, setting.data, f"{name}-zeroshot", _ZERO_SHOT)]}
    for count in shots:
        found[count] = []
        for seed in seeds:
            split = setting.output / f"{name}-{count}-{seed}.csv"
            write_atomic(split, split_file(data, shots=count, seed=seed))
            options = [*_COOP, *CONTEXTS[setting.context]]
            options += ["--batch-size", str(len(data.class_names))]
            options += ["--seed", str(seed), "--epochs", str(epochs)]
            run = f"{split.stem}-{setting.context}"
            found[count].append(accuracy(setting, split, run, options))
            message = f"{count} styles, seed {seed}: {100 * found[count][-1]:.1f} %"
            Console(stderr=True).print(message)
    return found


def rises(accuracies: Mapping[int, Sequence[float]]) -> bool:
    """Tell whether the means over seeds rise with every number of shots."""
    means = [mean(accuracies[shots]) for shots in sorted(accuracies)]
    return all(earlier < later for earlier, later in pairwise(means))


def curve_table(accuracies: Mapping[int, Sequence[float]]) -> str:
    """Return the curve as Markdown, top-1 in percent."""
    lines = ["| training styles | every seed | mean |", "|---|---|---|"]
    for shots, found in sorted(accuracies.items()):
        seeds = ", ".join(f"{100 * each:.1f}" for each in found)
        lines.append(f"| {shots or 'none'} | {seeds} | {100 * mean(found):.1f} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, train, print the curve and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m vlp_train.pretrain.few_shot", description="Print CoOp's few-shot curve."
    )
    split = EMOJI / "split_zhou_styles.json"
    parser.add_argument("--data", type=Path, default=split, help="a split as CoOp writes them")
    parser.add_argument("--output", type=Path, required=True, help="folder for the runs")
    parser.add_argument(
        "--context",
        choices=tuple(CONTEXTS),
        default="unified",
        help="one for all classes, or one for each; default: %(default)s",
    )
    parser.add_argument("--pretrained", default=None, help="weights other than the embedded ones")
    parser.add_argument("--shots", type=int, nargs="+", default=SHOTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    options = parser.parse_args(arguments)
    setting = Setting(
        data=options.data,
        output=options.output,
        context=options.context,
        pretrained=options.pretrained,
    )
    found = curve(setting, shots=options.shots, seeds=options.seeds, epochs=options.epochs)
    verdict = "rises" if rises(found) else "does NOT rise"
    sys.stdout.write(f"{curve_table(found)}\n\nTop-1 {verdict} with every step.\n")
    return 0 if rises(found) else 1


if __name__ == "__main__":
    sys.exit(guarded(main))
