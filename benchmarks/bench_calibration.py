"""Do calibrated probabilities keep their promises?

The embedded CLIP looks at all emoji drawings once. Every seed then makes half of the classes known
and the other half unknown, and `vlp calibrate`'s own function fits temperature and reject threshold
to half of the images; what is told is about the other half, and about unknown classes that nothing
was fitted to. Asserted, and so an error here: temperature scaling lowers the expected calibration
error in every seed, and false accepts are as many as the fit's exact law allows.

    python benchmarks/bench_calibration.py

Legend: n images, K classes.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from recording import Recording

from vlp_deploy import Classifier, embedded
from vlp_deploy.commands.calibrate import Report, fit
from vlp_deploy.data.dataset import load_dataset
from vlp_deploy.measuring.evaluation import all_logits
from vlp_deploy.measuring.metrics import Doubles

RESULTS = Path(__file__).parent / "results" / "calibration.jsonl"
LEVEL = 0.95


def emoji_logits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Logits (n, K) of the embedded bundle for every drawing, and labels (n,)."""
    classifier = Classifier.load(embedded.default_bundle())
    dataset = load_dataset(embedded.emoji_path())
    samples = dataset.split("all")
    logits = all_logits(
        classifier, samples, classifier.bundle.manifest.preprocessing, progress=lambda _, n: None
    )
    place = [classifier.classes.index(name) for name in dataset.class_names]
    return logits[:, place], np.array([sample.label for sample in samples])


def calibrated(
    logits: NDArray[np.float32], labels: NDArray[np.int64], seed: int, false_accept: float
) -> Report:
    """What is told of a calibration with a random half of the classes unknown."""
    order = np.random.default_rng(seed).permutation(logits.shape[1])
    known = np.sort(order[: len(order) // 2])
    is_known = np.isin(labels, known)
    _, report = fit(
        logits[is_known][:, known],
        np.searchsorted(known, labels[is_known]),
        (logits[~is_known][:, known], labels[~is_known]),
        false_accept=false_accept,
        multi_label=False,
    )
    return report


def binomial(count: int, chance: float) -> Doubles:
    """The law of the number of successes in `count` trials."""
    ways = [math.comb(count, k) for k in range(count + 1)]
    return np.array([w * chance**k * (1 - chance) ** (count - k) for k, w in enumerate(ways)])


def false_accepts(fitted_to: int, count: int, chance: float) -> Doubles:
    """The law of the false accepts among `count` images when `fitted_to` others set the threshold.

    It lies above the k-th highest of those, so that the chance to pass is itself random, as
    Beta(k, fitted_to + 1 - k): beta-binomial (arXiv:2107.07511, section 3.2).
    """
    a = math.floor(chance * (fitted_to + 1) + 1e-9)
    b = fitted_to + 1 - a

    def log_beta(x: float, y: float) -> float:
        return math.lgamma(x) + math.lgamma(y) - math.lgamma(x + y)

    return np.array(
        [
            math.comb(count, k) * math.exp(log_beta(k + a, count - k + b) - log_beta(a, b))
            for k in range(count + 1)
        ]
    )


def within(law: Doubles, count: int, level: float = LEVEL) -> bool:
    """Whether `count` lies in the central interval of a law."""
    below = np.cumsum(law)
    tail = (1 - level) / 2
    low, high = int(np.searchsorted(below, tail)), int(np.searchsorted(below, 1 - tail))
    return low <= count <= high


def check(reports: list[Report], level: float = LEVEL) -> dict[str, int]:
    """Assert what must hold, and count in how many seeds the plain binomial interval does, too."""
    lawful = 0
    contained = 0
    for seed, report in enumerate(reports):
        before, after = report.held_out.ece_before, report.held_out.ece_after
        assert after <= before, f"seed {seed}: the calibration error rose, {before} to {after}"
        rejection = report.rejection
        assert rejection is not None
        accepted = rejection.same_unknown_accepted
        law = false_accepts(rejection.fitted_to, rejection.held_out, rejection.asked)
        lawful += within(law, round(accepted.value * rejection.held_out), level)
        contained += accepted.low <= rejection.asked <= accepted.high
    # of lawful seeds there are as many as the level says, but for chance: 1 in 1,000
    least = int(np.searchsorted(np.cumsum(binomial(len(reports), level)), 0.001))
    assert lawful >= least, f"false accepts fit their law in {lawful} of {len(reports)} seeds"
    return {"within_law": lawful, "within_binomial": contained}


def table(reports: list[Report]) -> str:
    """One line a seed."""
    lines = [
        "seed  T      ECE before  after   accepted: known  same unknown (asked)  other unknown"
    ]
    for seed, report in enumerate(reports):
        held_out, rejection = report.held_out, report.rejection
        assert rejection is not None
        other = rejection.other_unknown_accepted
        assert other is not None
        same = rejection.same_unknown_accepted
        lines.append(
            f"{seed:>4}  {report.temperature:<5.3g}  {held_out.ece_before:>10.2%}"
            f"  {held_out.ece_after:>6.2%}  {rejection.known_accepted.value:>14.1%}"
            f"  {same.value:>6.1%} in {same.low:.1%} to {same.high:.1%} ({rejection.asked:.0%})"
            f"  {other.value:>6.1%} in {other.low:.1%} to {other.high:.1%}"
        )
    return "\n".join(lines)


def main() -> None:
    """Fit, check, print, append."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--false-accept", type=float, default=0.05)
    options = parser.parse_args()
    recording = Recording(["onnxruntime", "numpy"])
    logits, labels = emoji_logits()
    reports = [
        calibrated(logits, labels, seed, options.false_accept) for seed in range(options.seeds)
    ]
    print(table(reports))
    counts: dict[str, Any] = check(reports)
    print(
        f"of {options.seeds} seeds, false accepts fit their exact law in {counts['within_law']};"
        f" in {counts['within_binomial']} the binomial interval of the measured rate holds the"
        " asked one"
    )
    recording.append(
        RESULTS,
        bundle=embedded.default_bundle().name,
        seeds=options.seeds,
        **counts,
        reports=msgspec.to_builtins(reports),
    )


if __name__ == "__main__":
    main()
