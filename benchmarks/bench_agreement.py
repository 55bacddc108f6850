"""Whether `vlp bench` tells the time that an engine really takes: within 10 % of a plain loop.

    python benchmarks/bench_agreement.py [--batch 1 8] [--seconds 2] [--rounds 9] [--bundle B]

`vlp bench` and the loop run by turns, each in a process of its own, `--rounds` times. The loop
shares no code with it: it reads the graph and its inputs, loads onnxruntime with the same number of
threads and no spinning, and takes `time.perf_counter_ns` around `session.run`. Compared are the
50th percentiles, round by round, because a machine drifts; the median of these ratios counts. One
line goes to `results/agreement.jsonl`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
from recording import Recording

from vlp_deploy.embedded import default_bundle
from vlp_deploy.formats.bundle import Bundle
from vlp_deploy.measuring.compare import load_report

RESULTS = Path(__file__).parent / "results" / "agreement.jsonl"
MOST_APART = 0.10
# for each batch size its quarter of a second to warm up, then `seconds` of calls
PLAIN_LOOP = """
import json, sys, time
import numpy, onnxruntime
graph, inputs, threads, seconds, *batches = sys.argv[1:]
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(threads)
options.add_session_config_entry("session.intra_op.allow_spinning", "0")
session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
given = dict(numpy.load(inputs))
images, found = given.pop("image"), {}
for batch in map(int, batches):
    given["image"] = numpy.resize(images, (batch, *images.shape[1:]))
    for period in (0.25, float(seconds)):
        times, begin = [], time.perf_counter_ns()
        while time.perf_counter_ns() - begin < 1e9 * period:
            start = time.perf_counter_ns()
            session.run(["logits"], given)
            times.append((time.perf_counter_ns() - start) / 1e6)
    found[batch] = sorted(times)[len(times) // 2]
print(json.dumps(found))
"""


def by_plain_loop(folder: Path, options: argparse.Namespace) -> dict[int, float]:
    """Milliseconds of the median call, by batch size."""
    words = [str(folder / "image.onnx"), str(folder / "inputs.npz"), str(options.threads)]
    words += [str(options.seconds), *map(str, options.batch)]
    command = [sys.executable, "-c", PLAIN_LOOP, *words]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return {int(batch): ms for batch, ms in json.loads(done.stdout).items()}


def by_bench(folder: Path, options: argparse.Namespace) -> dict[int, float]:
    """The same from the report of `vlp bench`."""
    command = [sys.executable, "-m", "vlp_deploy", "bench", str(options.bundle), "--engine", "onnx"]
    command += ["--seconds", str(options.seconds), "--threads", str(options.threads)]
    command += ["--no-cold-start", "--no-stages", "--concurrency", "", "--output", str(folder)]
    for batch in options.batch:
        command += ["--batch", str(batch)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    (contender,) = load_report(folder / "bench.json").contenders
    return {latency.batch: latency.p50_ms for latency in contender.latencies}


def write_inputs(bundle: Bundle, folder: Path) -> None:
    """The image graph, and what it is given, for the plain loop."""
    bank, role = bundle.class_bank(), bundle.manifest.class_graph
    (folder / "image.onnx").write_bytes(bundle.graph_path(role).read_bytes())
    np.savez(folder / "inputs.npz", image=bundle.golden().pixels, **bank.inputs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=None)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    recording = Recording(["vlp-deploy", "numpy", "onnxruntime"])
    options.bundle = options.bundle or default_bundle()
    bench, plain = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(Bundle(options.bundle), folder)
        for _ in range(options.rounds):
            bench.append(by_bench(folder, options))
            plain.append(by_plain_loop(folder, options))
    ratios = {}
    for batch in options.batch:
        told, taken = ([found[batch] for found in kind] for kind in (bench, plain))
        ratios[batch] = median(ms / plainly for ms, plainly in zip(told, taken, strict=True))
        print(
            f"batch {batch}: vlp bench {median(told):.3f} ms, plain loop {median(taken):.3f}, "
            f"{ratios[batch]:.3f}x"
        )
    recording.append(
        RESULTS,
        bench_ms=bench,
        plain_ms=plain,
        ratio=ratios,
    )
    for batch, ratio in ratios.items():
        assert abs(ratio - 1) <= MOST_APART, f"batch {batch}: {ratio:.3f} is beyond 10 %"


if __name__ == "__main__":
    main()
