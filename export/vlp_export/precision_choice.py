"""`--precision`: a precision by name, or with `auto` the fastest that answers as float32 does.

`auto` rewrites the bundle in every precision that the engine takes, runs it in that engine on
calibration images that no range was taken from, and takes the fastest that loses no more accuracy
and changes no more answers than the budget allows. What was tried, and why it was not taken, goes
into the history of the bundle.

Legend: n images, K classes.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from vlp_deploy.classes.conditioned import run_in_pieces
from vlp_deploy.classes.coupled import one_by_one
from vlp_deploy.engines.support import refuse_unsupported, why_unsupported
from vlp_deploy.engines.tensorrt import TENSORRT
from vlp_deploy.errors import EngineError, ParityError
from vlp_deploy.formats.bundle import BundleContents, Precision
from vlp_deploy.measuring.timing import paired_ratio, take_turns
from vlp_deploy.tolerance import LEAST_AGREEMENT, MOST_ACCURACY_LOSS
from vlp_export.evaluation_images import UNKNOWN, EvaluationImages, evaluation_images
from vlp_export.precision import QUANTISED, RANGE_IMAGES, Pixels, PrecisionTarget, in_precision
from vlp_export.running import Progress
from vlp_export.served import run_in

AUTO = "auto"
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
MOST_IMAGES = 512  # that `auto` holds the budget on
LEAST_APART = 2 * RANGE_IMAGES  # of fewer, ranges would take more than are left to judge by
TIMED_BATCHES = (1, 8)
TIMED_SECONDS = 2.0  # a batch size
LEAST_GAIN = 1.05  # times the speed of float32; less may be noise

Floats = NDArray[np.float32]
Answer = Callable[[NDArray[np.uint8]], Floats]  # (B, 3, S, S) → logits (B, K)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How far answers may change for speed, on the calibration images."""

    accuracy_loss: float = MOST_ACCURACY_LOSS  # percentage points, where labels are known
    agreement: float = LEAST_AGREEMENT  # per cent of equal top-1 classes

    def __post_init__(self) -> None:
        if not 0 <= self.accuracy_loss <= 100:
            raise EngineError(f"--max-accuracy-loss is {self.accuracy_loss}; expected 0 to 100")
        if not 0 <= self.agreement <= 100:
            raise EngineError(f"--min-agreement is {self.agreement}; expected 0 to 100")


@dataclass(frozen=True, kw_only=True)
class PrecisionChoice:
    """What the user asked for; `calibration` is a place with images."""

    precision: str = "fp32"
    engine: str = "onnx"
    calibration: Path | None = None
    budget: Budget = Budget()

    def __post_init__(self) -> None:
        if self.precision != AUTO:
            refuse_unsupported(self.engine, self.precision)
        elif self.engine in TENSORRT:
            raise EngineError(
                f"--precision auto measures on this machine, and {self.engine} is built on the one "
                "with the GPU. Choose a precision by name"
            )

    @property
    def needs_images(self) -> bool:
        """Whether images decide how the graphs are written."""
        return self.precision in (AUTO, *QUANTISED)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One precision that `auto` looked at; speed in times of float32, agreement in per cent."""

    precision: Precision
    speed: dict[str, float] | None = None  # by batch size
    agreement: float | None = None
    accuracy_loss: float | None = None  # points; None without labels
    refused: str = ""

    @property
    def slowest(self) -> float:
        """What is gained at least."""
        return min(self.speed.values()) if self.speed else 0.0


def settle_precision(
    contents: BundleContents, choice: PrecisionChoice, report: Progress
) -> BundleContents:
    """The float32 bundle in the precision that was asked for, or that is best.

    Raises ParityError if the one that was asked for is too far off; EngineError, DataError.
    """
    if choice.precision == AUTO:
        return _best(contents, choice, report)
    target = PrecisionTarget(
        precision=PRECISIONS[PRECISIONS.index(choice.precision)], engine=choice.engine
    )
    if not choice.needs_images:
        return in_precision(contents, target)
    report("reading calibration images")
    images = evaluation_images(choice.calibration, contents.manifest, most=RANGE_IMAGES)
    report(f"rewriting graphs in {target.precision}")
    lowered = in_precision(contents, target, images.pixels)
    return _recorded(lowered, {"ranges_of": images.source, "images": len(images.pixels)})


def _best(contents: BundleContents, choice: PrecisionChoice, report: Progress) -> BundleContents:
    report("reading calibration images")
    most = RANGE_IMAGES + MOST_IMAGES
    images = evaluation_images(choice.calibration, contents.manifest, most=most)
    ranged, judged = parted(images)
    best, gain, trials = contents, 1.0, []
    for precision in PRECISIONS[1:]:
        target = PrecisionTarget(precision=precision, engine=choice.engine)
        report(f"trying {precision}")
        lowered, trial = _try(contents, target, ranged, judged, choice.budget)
        trials.append(trial)
        if lowered is not None and not trial.refused and trial.slowest > gain:
            best, gain = lowered, trial.slowest
    record = {
        "asked": AUTO,
        "measured_on": images.source,
        "images": len(judged.pixels),
        "range_images": len(ranged),
        "apart": len(ranged) + len(judged.pixels) == len(images.pixels),
        "budget": asdict(choice.budget),
        "trials": [asdict(trial) for trial in trials],
    }
    return _recorded(best, record)


def parted(images: EvaluationImages) -> tuple[Pixels, EvaluationImages]:
    """Images to take ranges from, evenly spread, and the others, to hold the budget on.

    On its own images a range would be judged too kindly. Where they are fewer than LEAST_APART, all
    are to judge by.
    """
    count = len(images.pixels)
    spread = np.unique(np.linspace(0, count - 1, RANGE_IMAGES).astype(int))
    rest = np.arange(count) if count < LEAST_APART else np.setdiff1d(np.arange(count), spread)
    judged = replace(images, pixels=images.pixels[rest], labels=images.labels[rest])
    return images.pixels[spread], judged


def _try(
    contents: BundleContents,
    target: PrecisionTarget,
    ranged: Pixels,
    judged: EvaluationImages,
    budget: Budget,
) -> tuple[BundleContents | None, Trial]:
    if reason := why_unsupported(target.engine, target.precision):
        return None, Trial(precision=target.precision, refused=reason)
    try:
        lowered = in_precision(contents, target, ranged)
        trial = _measured(contents, lowered, target, judged)
    except (EngineError, ParityError) as error:
        return None, Trial(precision=target.precision, refused=str(error))
    return lowered, replace(trial, refused=_refusal(trial, budget))


def _measured(
    contents: BundleContents,
    lowered: BundleContents,
    target: PrecisionTarget,
    images: EvaluationImages,
) -> Trial:
    """Both bundles in the engine that is to serve them: speed by turns, and answers."""
    answers = _answer(contents, target.engine), _answer(lowered, target.engine)
    expected, found = (_all_logits(answer, images.pixels) for answer in answers)
    speed = {str(batch): _speed(*answers, _batch(images.pixels, batch)) for batch in TIMED_BATCHES}
    agreement = found.argmax(axis=1) == expected.argmax(axis=1)
    known = images.labels != UNKNOWN
    loss = None
    if known.any():
        right = [(x.argmax(axis=1) == images.labels)[known].mean() for x in (expected, found)]
        loss = round(float(100 * (right[0] - right[1])), 3)
    return Trial(
        precision=target.precision,
        speed=speed,
        agreement=round(float(100 * agreement.mean()), 3),
        accuracy_loss=loss,
    )


def _answer(contents: BundleContents, engine: str) -> Answer:
    manifest, bank = contents.manifest, contents.bank
    content = contents.graphs[manifest.graphs[bank.graph].file]
    graph = run_in(engine, content, precision=manifest.precision)
    run = one_by_one(lambda pixels: run_in_pieces(graph, pixels, bank.inputs), manifest.structure)
    return lambda pixels: run(pixels)[1]


def _all_logits(answer: Answer, pixels: NDArray[np.uint8]) -> Floats:
    batch = max(TIMED_BATCHES)
    return np.concatenate([answer(pixels[n : n + batch]) for n in range(0, len(pixels), batch)])


def _batch(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """The first images, over again where they are fewer."""
    return pixels[np.arange(size) % len(pixels)]


def _speed(first: Answer, second: Answer, pixels: NDArray[np.uint8]) -> float:
    """How many times as fast the second is."""
    times = take_turns(
        {"first": lambda: first(pixels), "second": lambda: second(pixels)},
        seconds=TIMED_SECONDS,
        least=3,
    )
    return round(paired_ratio(times["first"], times["second"]).median, 3)


def _refusal(trial: Trial, budget: Budget) -> str:
    """Why a trial is beyond the budget; empty if it is not."""
    if trial.agreement is not None and trial.agreement < budget.agreement:
        return f"agrees with fp32 on {trial.agreement:.2f} %, wanted are {budget.agreement:g} %"
    if trial.accuracy_loss is not None and trial.accuracy_loss > budget.accuracy_loss:
        return f"loses {trial.accuracy_loss:.2f} points, allowed are {budget.accuracy_loss:g}"
    if trial.slowest < LEAST_GAIN:
        return f"gains less than {100 * (LEAST_GAIN - 1):.0f} % over fp32"
    return ""


def _recorded(contents: BundleContents, record: dict[str, Any]) -> BundleContents:
    """With what is known of its precision in the last step of its history."""
    *earlier, last = contents.manifest.history or ({},)
    entry = {"is": contents.manifest.precision, **record}
    manifest = msgspec.structs.replace(
        contents.manifest, history=(*earlier, {**last, "precision": entry})
    )
    return replace(contents, manifest=manifest)
