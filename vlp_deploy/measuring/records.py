"""What `vlp bench` writes as JSON: one report of one run, with everything that was measured.

Times are wall-clock milliseconds unless the name says otherwise. B batch, K classes.
"""

from typing import Literal

from vlp_deploy.formats.architecture import Record
from vlp_deploy.measuring.accuracy import Accuracy, Agreement, Findings
from vlp_deploy.measuring.timing import Latency, Machine, Ratio, Spread

SCHEMA_VERSION = 4
OURS = "vlp-deploy"  # the contender that is the bundle itself
STAGES = ("read", "decode", "preprocess", "engine", "head")


class ColdStart(Record, frozen=True, kw_only=True):
    """From process start to the answer for one image, and the process's peak memory."""

    first_s: float  # with an empty cache
    later_s: tuple[float, ...]
    peak_memory_mb: float


class Loop(Record, frozen=True, kw_only=True):
    """Many callers at once. Closed: `concurrency` threads, each calls again when it is answered.

    Open: requests arrive at `rate` a second, whether or not the last ones are answered, and are
    taken by `concurrency` threads; latency counts from the moment a request was due. Without
    `kept_up` requests came faster than they were answered, and latency is how long the run was.
    """

    kind: Literal["closed", "open"]
    batch: int
    concurrency: int
    rate: float | None = None  # requests a second that were asked for; open loops only
    achieved_rate: float  # requests a second that were answered
    images_per_s: float
    unanswered: int = 0  # when the time was up; they count with their age by then
    kept_up: bool = True
    latency: Spread


class Stages(Record, frozen=True, kw_only=True):
    """What one image costs in each of STAGES, by itself, on one thread (the engine: its own)."""

    source: str  # which images
    images: int
    spreads: dict[str, Spread]


class GemmRate(Record, frozen=True, kw_only=True):
    """The best rate of a float32 matrix product (rows, inner) · (inner, columns) in NumPy.

    The shape is that of the first product of an MLP at this batch: tokens of all images, width,
    width of the MLP. `threads` are as many as are fastest, at most the engine's.
    """

    batch: int
    rows: int
    inner: int
    columns: int
    threads: int
    library: str
    gflops_per_s: float


class ContenderResult(Record, frozen=True, kw_only=True):
    """What was measured of one contender. `ratio` is its time over the bundle's, per batch size.

    `text_embeddings_cached`: the text tower ran before the measuring, not for every image.
    `agreement` is that with the bundle, which has none itself.
    """

    name: str
    engine: str = ""
    precision: str = ""
    text_embeddings_cached: bool = True
    latencies: tuple[Latency, ...]
    ratios: tuple[Ratio, ...] = ()
    loops: tuple[Loop, ...] = ()
    accuracy: Accuracy | None = None
    agreement: Agreement | None = None


class BenchReport(Record, frozen=True, kw_only=True):
    """One run of `vlp bench`, as it is written to JSON. The first contender is the bundle.

    `warnings` are what keeps the times from being quoted, a loaded machine say. `left_out` is what
    was asked for and cannot be measured, with the reason.
    """

    schema_version: int = SCHEMA_VERSION
    bundle: str
    method: str
    engine: str
    precision: str
    device: str = "cpu"
    classes: int
    gflops_per_image: float
    threads: int
    data: str = ""
    machine: Machine
    warnings: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    cold_start: ColdStart | None = None
    stages: Stages | None = None
    gemm: tuple[GemmRate, ...] = ()  # one for each batch size
    findings: Findings | None = None  # what labelled images say of the bundle
    contenders: tuple[ContenderResult, ...]
