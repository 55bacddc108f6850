"""A bundle's latency, throughput and cold start, beside what users would run instead.

Everything is measured in one run on one machine: contenders take turns, and the text embeddings of
every contender are computed beforehand, where they do not depend on the image. B batch, S image
size.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vlp_deploy.errors import EngineError
from vlp_deploy.formats.bundle import Bundle
from vlp_deploy.measuring.contender import Contender, Pixels, Progress
from vlp_deploy.measuring.records import ColdStart, ContenderResult
from vlp_deploy.measuring.timing import (
    PASSES,
    Doubles,
    Latency,
    Machine,
    all_turns,
    latency,
    medians,
    milliseconds,
    paired_ratio,
    reference_work,
)

LEAST_ROUNDS = 2  # of a pass
WARM_UP = 3  # calls before each pass
MOST_LOAD = 0.5  # of the cores, by other programs
MOST_WAVERING = 1.3  # between the slowest pass of the reference work and the fastest
REFERENCE_WORK = "reference work"
# Threads that wait for one another suffer more from other programs than one thread does.
WHAT_TO_TRUST = "Trust no time, and ratios only as far as their intervals"


@dataclass(frozen=True, kw_only=True)
class Times:
    """Milliseconds of every call of one contender, by batch size: the first, and all turns of each
    pass."""

    first: dict[int, float]
    passes: dict[int, list[list[Doubles]]]

    def calls(self, batch: int) -> list[Doubles]:
        """All calls of each pass."""
        return [np.concatenate(turns) for turns in self.passes[batch]]

    def turns(self, batch: int) -> Doubles:
        """The median calls of all turns, which those of another contender are paired with."""
        return medians([turn for turns in self.passes[batch] for turn in turns])


def measure_contenders(
    contenders: Mapping[str, Contender],
    bundle: Bundle,
    *,
    batches: Sequence[int],
    seconds: float,
    threads: int,
    progress: Progress,
) -> tuple[ContenderResult, ...]:
    """Latency of all contenders by turns. The first is what the others are compared with.

    `seconds` are spent on every batch size.
    """
    pixels = bundle.golden().pixels
    times = measure_latencies(
        contenders, pixels, batches=batches, seconds=seconds, threads=threads, progress=progress
    )
    reference, work = next(iter(contenders)), times[REFERENCE_WORK]
    cached = bundle.class_bank().embeddings is not None
    return tuple(
        ContenderResult(
            name=name,
            text_embeddings_cached=cached,
            latencies=tuple(
                latency(times[name].calls(n), work.calls(n), batch=n, first_ms=times[name].first[n])
                for n in batches
            ),
            ratios=tuple(
                paired_ratio(times[name].turns(n), times[reference].turns(n)) for n in batches
            ),
        )
        for name in contenders
    )


def measure_latencies(
    contenders: Mapping[str, Contender],
    pixels: Pixels,
    *,
    batches: Sequence[int],
    seconds: float,
    threads: int,
    progress: Progress,
) -> dict[str, Times]:
    """Times of all contenders by turns, and of REFERENCE_WORK, which uses as many `threads`.

    `pixels` (n, 3, S, S) are repeated to fill a batch. The batch sizes take turns, too, PASSES
    times each.
    """
    with reference_work(threads) as work:
        calls: dict[int, dict[str, Callable[[], object]]] = {}
        for batch in batches:
            images = np.resize(pixels, (batch, *pixels.shape[1:]))
            calls[batch] = {name: _call(clf, images) for name, clf in contenders.items()}
            calls[batch][REFERENCE_WORK] = work
        times = {}
        for name in (*contenders, REFERENCE_WORK):
            progress(f"first calls of {name}, which may compile", 0)
            times[name] = Times(
                first={batch: milliseconds(calls[batch][name]) for batch in batches},
                passes={batch: [] for batch in batches},
            )
        for batch in PASSES * tuple(batches):
            measured = all_turns(
                calls[batch], seconds=seconds / PASSES, warm_up=WARM_UP, least=LEAST_ROUNDS
            )
            for name, passed in measured.items():
                times[name].passes[batch].append(passed)
            progress(f"latency at batch {batch}", 1)
    return times


def _call(contender: Contender, images: Pixels) -> Callable[[], object]:
    return lambda: contender.logits(images)


def warnings_about(machine: Machine, measured: Sequence[Latency]) -> tuple[str, ...]:
    """What keeps times from being quoted: `machine` as it was before, and how steady it was."""
    found = []
    if machine.load_average > MOST_LOAD * machine.cores:
        found.append(
            f"the load average was {machine.load_average} on {machine.cores} cores before anything "
            f"was measured: other programs take part of the machine. {WHAT_TO_TRUST}"
        )
    work = [ms for each in measured for ms in each.reference_passes_ms]
    if max(work) > MOST_WAVERING * min(work):
        found.append(
            f"the machine was not steady: the same piece of work took {min(work):.2f} to "
            f"{max(work):.2f} ms. {WHAT_TO_TRUST}"
        )
    return tuple(found)


# `vlp` in a process that says in the end what memory it took. The parent cannot ask the system for
# it, because a child's record begins with the parent's own size.
TELLING_PROGRAM = """
import re, sys
from pathlib import Path
from vlp_deploy.cli import run
code = run(sys.argv[1:])
print(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
sys.exit(code)
"""


def measure_cold_start(
    bundle: Bundle, *, engine: str, device: str = "cpu", repeats: int = 5
) -> ColdStart:
    """Start `vlp classify` on one image in fresh processes, the first with an empty cache.

    Raises EngineError, with the process's last words, if one fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image.png"
        Image.fromarray(bundle.golden().pixels[0].transpose(1, 2, 0)).save(image)
        verb = ["classify", str(image), "--format", "jsonl"]
        verb += ["--bundle", str(bundle.path), "--engine", engine, "--device", device]
        environment = {**os.environ, "VLP_CACHE": f"{folder}/cache"}
        seconds, peak_kib = [], 0
        for _ in range(1 + repeats):
            start = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-c", TELLING_PROGRAM, *verb],
                env=environment,
                check=False,
                capture_output=True,
                text=True,
            )
            seconds.append(time.perf_counter() - start)
            if done.returncode:
                said = done.stderr.strip().splitlines() or ["nothing was said"]
                raise EngineError(
                    f"`vlp classify` in a fresh process failed with exit code {done.returncode}: "
                    f"{said[-1]}. Leave it out with --no-cold-start"
                )
            peak_kib = max(peak_kib, int(done.stdout.split()[-1]))
    return ColdStart(
        first_s=seconds[0], later_s=tuple(seconds[1:]), peak_memory_mb=peak_kib * 1024 / 1e6
    )
