"""A bundle's latency, throughput, cold start and accuracy, beside what users would run instead.

Everything is measured in one run on one machine: contenders take turns, and the text embeddings of
every contender are computed beforehand, where they do not depend on the image. B batch, K classes,
S image size.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlp_deploy.classes.coupled import fixed_batch
from vlp_deploy.data.dataset import Dataset, Sample
from vlp_deploy.errors import DataError, EngineError, VlpError
from vlp_deploy.formats.architecture import Preprocessing
from vlp_deploy.formats.bundle import Bundle
from vlp_deploy.images.loading import load_image
from vlp_deploy.images.preprocess import preprocess
from vlp_deploy.measuring.records import Accuracy, Agreement, ColdStart, ContenderResult
from vlp_deploy.measuring.timing import (
    PASSES,
    Doubles,
    Latency,
    Machine,
    latency,
    milliseconds,
    paired_ratio,
    reference_work,
    take_turns,
)

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]
Progress = Callable[[str, int], None]  # what is being done, and how many steps of it just were

# what else can run the same tuned classifier -> the function that loads it
AGAINST = {"torch": "vlp_train.eager:load_eager"}
ACCURACY_BATCH = 64
LEAST_ROUNDS = 2  # of a pass
MOST_LOAD = 0.5  # of the cores, by other programs
MOST_WAVERING = 1.3  # between the slowest pass of the reference work and the fastest
REFERENCE_WORK = "reference work"


class Contender(Protocol):
    """Anything that turns pixels into logits."""

    def logits(self, pixels: Pixels) -> Floats:
        """uint8 (B, 3, S, S) → (B, K)."""


@dataclass(frozen=True, kw_only=True)
class Times:
    """Milliseconds of every call of one contender, by batch size: the first, and the passes."""

    first: dict[int, float]
    passes: dict[int, list[Doubles]]


def measure_contenders(
    contenders: Mapping[str, Contender],
    bundle: Bundle,
    samples: Sequence[Sample],
    *,
    batches: Sequence[int],
    seconds: float,
    threads: int,
    progress: Progress,
) -> tuple[ContenderResult, ...]:
    """Latency of all contenders by turns, then their logits for `samples`. The first is the
    reference.

    `seconds` are spent on every batch size.
    """
    pixels = bundle.golden().pixels
    times = measure_latencies(
        contenders, pixels, batches=batches, seconds=seconds, threads=threads, progress=progress
    )
    batch = fixed_batch(bundle.manifest.structure)
    logits = {
        name: all_logits(
            contender, samples, bundle.manifest.preprocessing, progress=progress, batch=batch
        )
        for name, contender in (contenders.items() if samples else ())
    }
    labels = np.array([sample.label for sample in samples], np.int64)
    reference, work = next(iter(contenders)), times[REFERENCE_WORK]
    cached = bundle.class_bank().embeddings is not None
    return tuple(
        ContenderResult(
            name=name,
            text_embeddings_cached=cached,
            latencies=tuple(
                latency(ms, work.passes[n], batch=n, first_ms=times[name].first[n])
                for n, ms in times[name].passes.items()
            ),
            ratios=tuple(
                paired_ratio(np.concatenate(ms), np.concatenate(times[reference].passes[n]))
                for n, ms in times[name].passes.items()
            ),
            accuracy=accuracy(logits[name], labels) if samples else None,
            agreement=agreement(logits[reference], logits[name]) if samples else None,
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
        times = {
            name: Times(
                first={batch: milliseconds(calls[batch][name]) for batch in batches},
                passes={batch: [] for batch in batches},
            )
            for name in (*contenders, REFERENCE_WORK)
        }
        for batch in PASSES * tuple(batches):
            measured = take_turns(calls[batch], seconds=seconds / PASSES, least=LEAST_ROUNDS)
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
            "was measured: other programs take part of the machine. Trust ratios only"
        )
    work = [ms for each in measured for ms in each.reference_passes_ms]
    if max(work) > MOST_WAVERING * min(work):
        found.append(
            f"the machine was not steady: the same piece of work took {min(work):.2f} to "
            f"{max(work):.2f} ms. Trust ratios only"
        )
    return tuple(found)


def all_logits(
    contender: Contender,
    samples: Sequence[Sample],
    preprocessing: Preprocessing,
    *,
    progress: Progress,
    batch: int | None = None,
) -> Floats:
    """Logits (n, K) of every sample, exactly decoded; DataError names an unreadable image.

    With `batch`, every run has exactly as many images: what the last one lacks is filled with its
    own images again.
    """
    rows, size = [], batch or ACCURACY_BATCH
    for start in range(0, len(samples), size):
        chunk = samples[start : start + size]
        pixels = np.stack([_pixels(s.path, preprocessing) for s in chunk])
        full = pixels if batch is None else np.resize(pixels, (batch, *pixels.shape[1:]))
        rows.append(contender.logits(full)[: len(chunk)])
        progress("accuracy", len(chunk))
    return np.concatenate(rows)


def _pixels(path: Path, preprocessing: Preprocessing) -> Pixels:
    try:
        return preprocess(load_image(path), preprocessing)
    except VlpError as error:
        raise DataError(f"test image {path}: {error}. Mend or remove it") from error


def accuracy(logits: Floats, labels: NDArray[np.int64]) -> Accuracy:
    """Top-1 and top-5 of logits (n, K) against labels (n,); ties and NaN count as wrong."""
    of_truth = logits[np.arange(len(labels)), labels][:, None]
    rank = (~(logits < of_truth)).sum(axis=1)  # 1 = best
    return Accuracy(
        images=len(labels), top1=float((rank <= 1).mean()), top5=float((rank <= 5).mean())
    )


def agreement(reference: Floats, other: Floats) -> Agreement:
    """Compare two contenders' logits (n, K)."""
    return Agreement(
        images=len(reference),
        max_logit_difference=float(np.abs(reference - other).max()),
        same_top1=int((reference.argmax(axis=1) == other.argmax(axis=1)).sum()),
    )


def labels_in_bundle(dataset: Dataset, classes: Sequence[str]) -> list[Sample]:
    """The test samples with labels counted in the bundle's `classes`.

    Raises DataError if DATA has classes that the bundle lacks.
    """
    index = {name: number for number, name in enumerate(classes)}
    if strangers := [name for name in dataset.class_names if name not in index]:
        raise DataError(
            f"{dataset.source} has {len(strangers)} classes that the bundle does not know, first "
            f"{strangers[0]!r}; the bundle has {len(classes)}. Add --data-classes to classify "
            "into the classes of the data instead"
        )
    return [
        Sample(path=sample.path, label=index[dataset.class_names[sample.label]])
        for sample in dataset.split("test")
    ]


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


def measure_cold_start(bundle: Bundle, *, engine: str, repeats: int = 5) -> ColdStart:
    """Start `vlp classify` on one image in fresh processes, the first with an empty cache.

    Raises EngineError, with the process's last words, if one fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image.png"
        Image.fromarray(bundle.golden().pixels[0].transpose(1, 2, 0)).save(image)
        verb = ["classify", str(image), "--format", "jsonl"]
        verb += ["--bundle", str(bundle.path), "--engine", engine]
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
