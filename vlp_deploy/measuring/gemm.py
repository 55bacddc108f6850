"""What this machine can do at most: the rate of a float32 matrix product in NumPy.

It is measured in a process of its own, because NumPy's library takes its number of threads from the
environment when it is loaded. B batch.

    python -m vlp_deploy.measuring.gemm ROWS INNER COLUMNS
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence

import numpy as np

from vlp_deploy.errors import EngineError
from vlp_deploy.formats.architecture import VisionTower
from vlp_deploy.measuring.records import BenchReport, GemmRate
from vlp_deploy.measuring.timing import Latency, milliseconds

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
SECONDS, LEAST_CALLS = 0.5, 5


def measure_gemm(
    tower: VisionTower, *, batches: Sequence[int], threads: int
) -> tuple[GemmRate, ...]:
    """For each batch size the best rate of tokens of all images · the first matrix of an MLP.

    It is the better one of one thread and all `threads`: small products, and those on a machine
    that has other work, are slower on many.
    """
    return tuple(
        max(
            (_rate(tower, batch=batch, threads=count) for count in sorted({1, threads})),
            key=lambda rate: rate.gflops_per_s,
        )
        for batch in batches
    )


def _rate(tower: VisionTower, *, batch: int, threads: int) -> GemmRate:
    rows = batch * (tower.patches + 1)  # prompts left out: a few tokens more change no rate
    shape = (rows, tower.width, tower.mlp_width)
    command = [sys.executable, "-m", __name__, *map(str, shape)]
    environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EngineError(f"the matrix product could not be measured: {done.stderr.strip()}")
    library, rate = done.stdout.strip().rsplit(" ", 1)
    return GemmRate(
        batch=batch,
        rows=rows,
        inner=tower.width,
        columns=tower.mlp_width,
        threads=threads,
        library=library,
        gflops_per_s=float(rate),
    )


def gemm_share(report: BenchReport, latency: Latency) -> float | None:
    """Which part of the machine's best rate the bundle's graph reached; None if not measured.

    Its operations are those of its matrix products and convolutions, two a multiply-add.
    """
    best = {rate.batch: rate.gflops_per_s for rate in report.gemm}.get(latency.batch)
    if best is None:
        return None
    return report.gflops_per_image * latency.batch / (latency.p50_ms / 1000) / best


def best_rate(rows: int, inner: int, columns: int) -> float:
    """GFLOP/s of the fastest of the products that fit into SECONDS."""
    random = np.random.default_rng(0)
    left = random.standard_normal((rows, inner), np.float32)
    right = random.standard_normal((inner, columns), np.float32)
    product = np.empty((rows, columns), np.float32)
    times: list[float] = []
    deadline = time.perf_counter() + SECONDS
    while len(times) < LEAST_CALLS or time.perf_counter() < deadline:
        times.append(milliseconds(lambda: np.matmul(left, right, out=product)))
    return 2 * rows * inner * columns / min(times) / 1e6


def library_name() -> str:
    """NumPy's library of matrix products, with its version."""
    found = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return f"numpy {np.__version__} {found['name']} {found['version']}"


if __name__ == "__main__":
    sizes = [int(argument) for argument in sys.argv[1:]]
    print(library_name(), best_rate(sizes[0], sizes[1], sizes[2]))
