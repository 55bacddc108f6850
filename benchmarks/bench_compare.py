"""How often `vlp bench --compare` finds a delay of 5 ms, and how often it finds one that is none.

    python benchmarks/bench_compare.py [--runs 20] [--seconds 2] [--load 1] [--bundle B]

Each run is a process of its own, as two runs of `vlp bench` are. Plain and delayed runs alternate:
plain against delayed must be found in 19 of 20 pairs, plain against the next plain in at most 1 of
20. With `--load N`, N other processes come and go meanwhile: each works and rests for 0.1 to 3
seconds, so that every run meets another machine. One line goes to `results/compare.jsonl`.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
from recording import Recording

from vlp_deploy.classifier import Classifier
from vlp_deploy.embedded import default_bundle
from vlp_deploy.measuring.bench import measure_contenders, warnings_about
from vlp_deploy.measuring.compare import Change, compare, load_report
from vlp_deploy.measuring.records import OURS, BenchReport
from vlp_deploy.measuring.timing import describe_machine

RESULTS = Path(__file__).parent / "results" / "compare.jsonl"
DELAY_MS = 5.0
MOST_MISTAKES = 1 / 20
BATCHES = (1, 8)


class Delayed:
    """A classifier that takes longer than it has to."""

    def __init__(self, classifier: Classifier, delay_ms: float) -> None:
        self.classifier, self.delay_s = classifier, delay_ms / 1000

    def logits(self, pixels: np.ndarray) -> np.ndarray:
        if self.delay_s:
            time.sleep(self.delay_s)
        return self.classifier.logits(pixels)


def measure(bundle: Path, output: Path, *, seconds: float, threads: int, delay_ms: float) -> None:
    """One run of what `vlp bench` measures, to a report."""
    machine = describe_machine(["onnxruntime"])
    classifier = Classifier.load(bundle, threads=threads)
    results = measure_contenders(
        {OURS: Delayed(classifier, delay_ms)},
        classifier.bundle,
        batches=BATCHES,
        seconds=seconds,
        threads=threads,
        progress=lambda text, n: None,
    )
    manifest = classifier.bundle.manifest
    report = BenchReport(
        bundle=str(bundle),
        method=manifest.method,
        engine=classifier.engine,
        precision=manifest.precision,
        classes=len(classifier.classes),
        gflops_per_image=manifest.graphs[manifest.class_graph].flops / 1e9,
        threads=threads,
        machine=machine,
        warnings=warnings_about(machine, results[0].latencies),
        contenders=results,
    )
    output.write_bytes(msgspec.json.encode(report))


def in_fresh_process(options: argparse.Namespace, output: Path, *, delay_ms: float) -> BenchReport:
    """`measure`, as two runs of `vlp bench` do it: each by itself."""
    command = [sys.executable, __file__, "--bundle", str(options.bundle), "--child", str(output)]
    command += ["--seconds", str(options.seconds), "--threads", str(options.threads)]
    subprocess.run([*command, "--delay", str(delay_ms)], check=True)
    return load_report(output)


def disturb(seed: int) -> None:
    """Work and rest by turns, for ever."""
    chance, values = random.Random(seed), np.ones(1 << 16)
    while True:
        until = time.perf_counter() + chance.uniform(0.1, 3)
        while time.perf_counter() < until:
            np.tanh(values)
        time.sleep(chance.uniform(0.1, 3))


@contextmanager
def load(processes: int) -> Iterator[None]:
    """Other programs, while this context lasts."""
    command = [sys.executable, __file__, "--disturb"]
    others = [subprocess.Popen([*command, str(seed)]) for seed in range(processes)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def run_all(options: argparse.Namespace) -> tuple[list[BenchReport], list[BenchReport]]:
    """Plain runs, one more than delayed ones, by turns."""
    plain, delayed = [], []
    with tempfile.TemporaryDirectory() as folder, load(options.load):
        output = Path(folder) / "report.json"
        for number in range(options.runs):
            plain.append(in_fresh_process(options, output, delay_ms=0))
            delayed.append(in_fresh_process(options, output, delay_ms=DELAY_MS))
            print(f"{number + 1} of {options.runs}", file=sys.stderr)
        plain.append(in_fresh_process(options, output, delay_ms=0))
    return plain, delayed


def changes(before: Sequence[BenchReport], after: Sequence[BenchReport]) -> list[list[Change]]:
    """Of each pair, all figures."""
    return [list(compare(old, new).changes) for old, new in zip(before, after, strict=True)]


def told(pairs: Sequence[Sequence[Change]]) -> int:
    """In how many pairs a figure is said to have changed."""
    return sum(any(change.is_real for change in pair) for pair in pairs)


def figures(pairs: Sequence[Sequence[Change]]) -> dict[str, list[list[float]]]:
    """Ratio and interval of every pair, by figure."""
    found: dict[str, list[list[float]]] = {}
    for pair in pairs:
        for change in pair:
            interval = [round(x, 3) for x in (change.low, change.ratio, change.high)]
            found.setdefault(change.figure, []).append(interval)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=None)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=2.0, help="on each batch size")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--load", type=int, default=0, help="other processes that come and go")
    parser.add_argument("--delay", type=float, default=0.0, help=argparse.SUPPRESS)
    parser.add_argument("--child", type=Path, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--disturb", type=int, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.bundle = options.bundle or default_bundle()
    if options.disturb is not None:
        return disturb(options.disturb)
    if options.child:
        return measure(
            options.bundle,
            options.child,
            seconds=options.seconds,
            threads=options.threads,
            delay_ms=options.delay,
        )
    recording = Recording(["vlp-deploy", "numpy", "onnxruntime"])
    plain, delayed = run_all(options)
    none, some = changes(plain[:-1], plain[1:]), changes(plain[:-1], delayed)
    warned = sum(bool(report.warnings) for report in plain + delayed)
    print(
        f"{DELAY_MS:.0f} ms found in {told(some)} of {options.runs} pairs, none found as a change "
        f"in {told(none)}; {warned} of {len(plain + delayed)} runs warned of the machine"
    )
    recording.append(
        RESULTS,
        pairs=options.runs,
        delay_ms=DELAY_MS,
        delay_found=told(some),
        none_found=told(none),
        without_delay=figures(none),
        with_delay=figures(some),
        warned=warned,
    )
    assert told(some) >= (1 - MOST_MISTAKES) * options.runs, "the delay is overlooked too often"
    assert told(none) <= MOST_MISTAKES * options.runs, "changes are told that are none"


if __name__ == "__main__":
    main()
