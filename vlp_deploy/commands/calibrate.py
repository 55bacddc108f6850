"""`vlp calibrate`: a bundle whose probabilities can be believed, fitted to labelled images.

One half of the images is fitted to, the other tells how well it worked; what is stored is what was
told of. Legend: n labelled images, m images of no class, K classes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from vlp_deploy.classes.coupled import fixed_batch
from vlp_deploy.classifier import Classifier
from vlp_deploy.data.dataset import Sample, load_dataset
from vlp_deploy.data.strangers import unknown_samples
from vlp_deploy.errors import DataError
from vlp_deploy.formats.architecture import Record
from vlp_deploy.formats.bundle import Bundle, check_target, write_calibrated
from vlp_deploy.measuring.accuracy import confidence
from vlp_deploy.measuring.calibration import (
    Calibration,
    fit_class_thresholds,
    fit_reject_threshold,
    fit_temperature,
)
from vlp_deploy.measuring.evaluation import all_logits, labels_in_bundle
from vlp_deploy.measuring.metrics import (
    AnyFloats,
    Booleans,
    Doubles,
    Interval,
    Labels,
    area_under_roc,
    expected_calibration_error,
    false_accepts_at,
    log_probabilities,
    negative_log_likelihood,
    reliability,
    share_interval,
)

LEAST_IMAGES = 20  # labelled ones; with fewer, halves say nothing
LEAST_UNKNOWN_CLASSES = 4  # from here on, half of them are kept apart


class HeldOut(Record, frozen=True, kw_only=True):
    """What the images that were not fitted to say."""

    images: int
    accuracy: float
    ece_before: float
    ece_after: float
    nll_before: float
    nll_after: float


class Rejection(Record, frozen=True, kw_only=True):
    """How known and unknown images are told apart by their largest probability."""

    threshold: float
    asked: float  # the false-accept rate that was fitted for
    fitted_to: int  # unknown images
    held_out: int  # of the same unknown classes
    known_accepted: Interval
    same_unknown_accepted: Interval  # held-out images of the unknown classes fitted to
    other_unknown_accepted: Interval | None  # of unknown classes that were kept apart
    auroc: float
    fpr95: float


class SeveralLabels(Record, frozen=True, kw_only=True):
    """What thresholds for each class do to held-out images, of which one label is known each."""

    labels: float  # an image is given, on average
    precision: float  # of them are that one
    recall: float  # images whose label is among them


class Report(Record, frozen=True, kw_only=True):
    """What a calibration did, as it is kept in the bundle's history."""

    temperature: float
    fitted_to: int
    held_out: HeldOut
    rejection: Rejection | None
    several_labels: SeveralLabels | None


def calibrate(
    bundle: Annotated[Path, typer.Argument(help="Folder made by `vlp export`.")],
    data: Annotated[
        Path,
        typer.Argument(
            help="Labelled images of the bundle's classes that nothing was trained on: class "
            "folders, a list, or CoOp's split file, of which the test split is taken."
        ),
    ],
    output: Annotated[Path, typer.Option(help="The calibrated bundle; it must not exist yet.")],
    unknown: Annotated[
        Path | None,
        typer.Option(
            help="Images of none of the classes, in class folders or in one folder: fits when to "
            "answer 'none of these'."
        ),
    ] = None,
    false_accept: Annotated[
        float,
        typer.Option(min=0.0001, max=0.5, help="Share of unknown images that may get an answer."),
    ] = 0.05,
    multi_label: Annotated[
        bool, typer.Option(help="Also fit a threshold for each class: several labels an image.")
    ] = False,
    image_root: Annotated[
        Path | None, typer.Option(help="What the paths in a list DATA are relative to.")
    ] = None,
    classnames: Annotated[
        Path | None, typer.Option(help="File of 'folder name' lines that names DATA's classes.")
    ] = None,
    engine: Annotated[str, typer.Option(help="auto, or an engine's name.")] = "auto",
    device: Annotated[str, typer.Option(help="cpu, or cuda.")] = "cpu",
    force: Annotated[
        bool, typer.Option("--force", help="Replace a bundle at --output, in one step.")
    ] = False,
) -> None:
    """Fit temperature and reject threshold, and write them into a copy of the bundle.

    The temperature makes 70 % mean right seven times of ten, for images like those of DATA. Half
    of the images are fitted to; the other half is what the printed figures are about. `vlp classify
    --reject` then answers 'none of these' below the threshold.
    """
    check_target(output, replace=force)
    opened = Bundle(bundle)
    dataset = load_dataset(data, image_root=image_root, classnames=classnames)
    classifier = Classifier.load(bundle, engine=engine, device=device)
    advice = "Leave those images out, or give them to --unknown"
    samples = labels_in_bundle(dataset, classifier.classes, advice=advice)
    _check_enough(samples, data)
    strangers = unknown_samples(unknown, classifier.classes) if unknown else ()
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading images", total=len(samples) + len(strangers))

        def logits_of(chosen: Sequence[Sample]) -> AnyFloats:
            return all_logits(
                classifier,
                chosen,
                opened.manifest.preprocessing,
                progress=lambda _, n: bar.update(task, advance=n),
                batch=fixed_batch(opened.manifest.structure),
            )

        known_logits = logits_of(samples)
        unknown_logits = logits_of(strangers) if strangers else None
    labels = np.array([sample.label for sample in samples])
    kinds = np.array([sample.label for sample in strangers])
    fitted, report = fit(
        known_logits,
        labels,
        None if unknown_logits is None else (unknown_logits, kinds),
        false_accept=false_accept,
        multi_label=multi_label,
        before=opened.manifest.temperature,
    )
    write_calibrated(
        opened,
        output,
        temperature=fitted.temperature,
        reject_threshold=fitted.reject_threshold,
        class_thresholds=fitted.thresholds,
        step=_step(report, data, unknown),
        replace=force,
    )
    show(report, output)


def fit(
    logits: AnyFloats,
    labels: Labels,
    unknown: tuple[AnyFloats, Labels] | None,
    *,
    false_accept: float,
    multi_label: bool,
    before: float = 1.0,
) -> tuple[Calibration, Report]:
    """Fit to halves of logits (n, K), labels (n,) and of unknown logits (m, K), kinds (m,).

    `before` is the temperature that there was.
    """
    use, keep = halves(labels)
    temperature = fit_temperature(logits[use], labels[use])
    rejection = None
    if unknown is not None:
        rejection = _rejection(
            confidence(logits[use], temperature),
            confidence(logits[keep], temperature),
            confidence(unknown[0], temperature),
            unknown[1],
            false_accept=false_accept,
        )
    thresholds: tuple[float, ...] = ()
    several: SeveralLabels | None = None
    if multi_label:
        thresholds = fit_class_thresholds(logits[use], labels[use], classes=logits.shape[1])
        several = _several_labels(logits[keep] >= np.array(thresholds), labels[keep])
    report = Report(
        temperature=temperature,
        fitted_to=len(use),
        held_out=_held_out(logits[keep], labels[keep], (before, temperature)),
        rejection=rejection,
        several_labels=several,
    )
    fitted = Calibration(
        temperature=temperature,
        reject_threshold=None if rejection is None else rejection.threshold,
        thresholds=thresholds,
    )
    return fitted, report


def halves(labels: Labels) -> tuple[Labels, Labels]:
    """Indices of two halves with every class in both; the first has the odd ones."""
    random = np.random.default_rng(0)
    parts: tuple[list[int], list[int]] = ([], [])
    for label in np.unique(labels):
        indices = random.permutation(np.flatnonzero(labels == label))
        middle = (len(indices) + 1) // 2
        parts[0].extend(indices[:middle])
        parts[1].extend(indices[middle:])
    first, second = (np.sort(np.array(part, np.int64)) for part in parts)
    return first, second


def _rejection(
    known_use: Doubles,
    known_keep: Doubles,
    unknown: Doubles,
    kinds: Labels,
    *,
    false_accept: float,
) -> Rejection:
    """Fit the threshold to half the images of half the unknown classes; measure on the others."""
    classes = np.unique(kinds)
    apart = classes[1::2] if len(classes) >= LEAST_UNKNOWN_CLASSES else classes[:0]
    other = np.isin(kinds, apart)
    use, keep = halves(kinds[~other])
    same = unknown[~other]
    threshold = fit_reject_threshold(known_use, same[use], false_accept=false_accept)
    if not len(keep):
        raise DataError("every unknown class has one image: none is left to measure on. Add some")
    everything = np.concatenate([same[keep], unknown[other]])
    return Rejection(
        threshold=threshold,
        asked=false_accept,
        fitted_to=len(use),
        held_out=len(keep),
        known_accepted=share_interval(known_keep >= threshold),
        same_unknown_accepted=share_interval(same[keep] >= threshold),
        other_unknown_accepted=share_interval(unknown[other] >= threshold) if other.any() else None,
        auroc=area_under_roc(known_keep, everything),
        fpr95=false_accepts_at(known_keep, everything),
    )


def _several_labels(given: Booleans, labels: Labels) -> SeveralLabels:
    """`given` (n, K) says which labels each image is given."""
    hits = given[np.arange(len(labels)), labels]
    return SeveralLabels(
        labels=float(given.sum() / len(labels)),
        precision=float(hits.sum() / max(1, given.sum())),
        recall=float(hits.mean()),
    )


def _held_out(logits: AnyFloats, labels: Labels, temperatures: tuple[float, float]) -> HeldOut:
    figures = []
    for each in temperatures:
        log_p = log_probabilities(logits, temperature=each)
        confidence, answers = np.exp(log_p.max(axis=1)), log_p.argmax(axis=1)
        bins = reliability(confidence, answers == labels)
        figures.append((expected_calibration_error(bins), negative_log_likelihood(log_p, labels)))
    return HeldOut(
        images=len(labels),
        accuracy=float((answers == labels).mean()),
        ece_before=figures[0][0],
        ece_after=figures[1][0],
        nll_before=figures[0][1],
        nll_after=figures[1][1],
    )


def _check_enough(samples: Sequence[Sample], data: Path) -> None:
    labels = np.array([sample.label for sample in samples])
    if len(samples) < LEAST_IMAGES:
        raise DataError(
            f"{data} has {len(samples)} images to calibrate with; at least {LEAST_IMAGES} are "
            "needed, and some hundreds are sensible. Add more"
        )
    if np.bincount(labels).max() < 2:
        raise DataError(
            f"{data} has one image for every class: none is left to measure on after fitting. "
            "Give two or more of a class"
        )


def _step(report: Report, data: Path, unknown: Path | None) -> dict[str, Any]:
    figures: dict[str, Any] = msgspec.to_builtins(report)
    names = {"data": data.name, "unknown": unknown.name if unknown else None}
    return {"step": "calibrate", **names, **figures}


def show(report: Report, output: Path) -> None:
    """Print what was fitted and what the held-out half says of it."""
    console = Console(highlight=False, markup=False, emoji=False)
    held_out = report.held_out
    console.print(f"temperature {report.temperature:.4g}, fitted to {report.fitted_to} images")
    table = Table(f"on {held_out.images} held-out images", "before", "after")
    table.add_row(
        "expected calibration error", f"{held_out.ece_before:.2%}", f"{held_out.ece_after:.2%}"
    )
    table.add_row(
        "negative log-likelihood", f"{held_out.nll_before:.3f}", f"{held_out.nll_after:.3f}"
    )
    console.print(table, f"top-1 {held_out.accuracy:.1%}, which a temperature does not change.")
    if rejection := report.rejection:
        console.print(
            f"Answers below a probability of {rejection.threshold:.4f} are 'none of these'; fitted "
            f"to {rejection.fitted_to} unknown images. On {rejection.held_out} more, and on others:"
        )
        accepted = Table("accepted", "share", "95 % interval")
        rows = {
            "images of the classes": rejection.known_accepted,
            f"the unknown classes fitted to (asked for {rejection.asked:.1%})": (
                rejection.same_unknown_accepted
            ),
            "other unknown classes": rejection.other_unknown_accepted,
        }
        for name, interval in rows.items():
            if interval is not None:
                span = f"{interval.low:.1%} to {interval.high:.1%}"
                accepted.add_row(name, f"{interval.value:.1%}", span)
        console.print(accepted)
        console.print(
            f"known against unknown: AUROC {rejection.auroc:.3f}, FPR95 {rejection.fpr95:.1%}"
        )
    if several := report.several_labels:
        console.print(
            f"with --multi-label: {several.labels:.2f} labels an image, precision "
            f"{several.precision:.1%}, recall {several.recall:.1%}"
        )
    fitted = {"--reject": report.rejection, "--multi-label": report.several_labels}
    option = next((f" {name}" for name, found in fitted.items() if found), "")
    following = f"vlp classify images/ --bundle {output}{option}"
    console.print(f"{output} written. Next: {following}", soft_wrap=True)
