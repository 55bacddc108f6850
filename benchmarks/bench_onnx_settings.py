"""What onnxruntime's settings do to a bundle's image graph: time by turns, and memory at rest.

    python benchmarks/bench_onnx_settings.py [--bundle B] [--seconds 10] [--threads 2]

`engine` is what the engine `onnx` uses; each other row changes one setting. Times are over the
engine's at batch 1 and 8, above 1 is slower. Memory is what a process of its own holds at most that
loads the graph and runs it at batch 8. Answers are compared before anything is timed. A line goes
to `results/onnx_settings.jsonl`.
"""

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime
from recording import Recording

from vlp_deploy.embedded import default_bundle
from vlp_deploy.formats.bundle import Bundle
from vlp_deploy.measuring.timing import paired_ratio, take_turns

RESULTS = Path(__file__).parent / "results" / "onnx_settings.jsonl"
ERRORS_ONLY = 3
BATCHES = (1, 8)
Settings = onnxruntime.SessionOptions
Change = Callable[[Settings], object]


def _entry(name: str, value: str) -> Change:
    return lambda settings: settings.add_session_config_entry(f"session.{name}", value)


def _attribute(name: str, value: object) -> Change:
    return lambda settings: setattr(settings, name, value)


CHANGES: Mapping[str, Change] = {
    "engine": lambda settings: None,
    "threads spin": _entry("intra_op.allow_spinning", "1"),
    "no arena": _attribute("enable_cpu_mem_arena", False),
    "memory pattern": _attribute("enable_mem_pattern", True),
    "denormals are zero": _entry("set_denormal_as_zero", "1"),
    "no prepacking": _entry("disable_prepacking", "1"),
    "extended optimisation": _attribute(
        "graph_optimization_level", onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    ),
}


def load(graph: Path, change: str, threads: int) -> onnxruntime.InferenceSession:
    """The graph as the engine loads it, with one change."""
    settings = Settings()
    settings.log_severity_level = ERRORS_ONLY
    settings.enable_mem_pattern = False
    settings.intra_op_num_threads = threads
    if change != "threads spin":
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    CHANGES[change](settings)
    return onnxruntime.InferenceSession(str(graph), settings, providers=["CPUExecutionProvider"])


def inputs(bundle: Bundle, batch: int) -> dict[str, np.ndarray]:
    """Golden images, and the bundle's own classes."""
    pixels = bundle.golden().pixels
    return {"image": np.resize(pixels, (batch, *pixels.shape[1:])), **bundle.class_bank().inputs}


def peak_mb(bundle: Bundle, change: str, threads: int) -> float:
    """What a fresh process held at most."""
    command = [sys.executable, __file__, "--bundle", str(bundle.path), "--threads", str(threads)]
    done = subprocess.run([*command, "--peak", change], capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    """Measure, assert, print, append."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--seconds", type=float, default=10, help="of timing, a batch size")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--peak", choices=CHANGES, help="only print what this process takes")
    options = parser.parse_args()
    recording = Recording(["onnxruntime", "numpy"])
    bundle = Bundle(options.bundle or default_bundle())
    graph = bundle.graph_path(bundle.manifest.class_graph)
    if options.peak:
        session = load(graph, options.peak, options.threads)
        for _ in range(2):  # a plan of memory is made in the first run and used from the second on
            session.run(None, inputs(bundle, 8))
        status = Path("/proc/self/status").read_text()
        print(int(re.search(r"VmHWM:\s*(\d+)", status)[1]) * 1024 / 1e6)
        return
    sessions = {change: load(graph, change, options.threads) for change in CHANGES}
    rows: dict[str, dict[str, object]] = {
        change: {"peak_mb": peak_mb(bundle, change, options.threads)} for change in CHANGES
    }
    for batch in BATCHES:
        feeds = inputs(bundle, batch)
        expected = sessions["engine"].run(["embedding"], feeds)[0]
        for session in sessions.values():
            found = session.run(["embedding"], feeds)[0]
            assert (found * expected).sum(axis=1).min() > 1 - 1e-5
        calls = {name: partial(session.run, None, feeds) for name, session in sessions.items()}
        times = take_turns(calls, seconds=options.seconds, warm_up=1, least=5)
        for change in CHANGES:
            ratio = paired_ratio(times[change], times["engine"])
            rows[change][f"batch_{batch}"] = msgspec.to_builtins(ratio)
    for change, row in rows.items():
        shown = [f"{row[f'batch_{n}']['median']:.3f}x at batch {n}" for n in BATCHES]
        print(f"{change:<24} {', '.join(shown)}, peak {row['peak_mb']:.0f} MB")
    recording.append(
        RESULTS,
        precision=bundle.manifest.precision,
        rows=rows,
    )


if __name__ == "__main__":
    main()
