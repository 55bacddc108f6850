"""From what a report says of accuracy to plots and tables."""

from collections.abc import Iterator, Sequence

from vlp_deploy.measuring.accuracy import ClassAccuracy, Findings, Share, Unknown
from vlp_deploy.measuring.metrics import Interval
from vlp_deploy.measuring.records import BenchReport, ContenderResult
from vlp_deploy.report.charts import Bar, Place, acceptance, bars, reliability_diagram, trade
from vlp_deploy.report.figure import Figure, Table
from vlp_deploy.report.scale import number

ALL_CLASSES = 30  # with more, the worst and the best are drawn
EACH_END = 12


def quality_figures(report: BenchReport) -> Iterator[Figure]:
    """Accuracy against latency, then what the images say of the bundle."""
    measured = [c for c in report.contenders if c.accuracy and c.latencies]
    if measured:
        yield _trade(measured)
    if found := report.findings:
        yield _reliability(found, report.contenders[0])
        yield from _shares(found)
        if found.unknown:
            yield _unknown(found.unknown)
        yield _classes(found.classes)


def _trade(contenders: Sequence[ContenderResult]) -> Figure:
    batch = contenders[0].latencies[0].batch
    rows, places = [], []
    for c in contenders:
        latency = next((each for each in c.latencies if each.batch == batch), None)
        if latency is None or c.accuracy is None:
            continue
        places.append(Place(name=c.name, x=latency.p50_ms, interval=c.accuracy.top1))
        apart = c.agreement.top1_difference if c.agreement else None
        rows.append(
            (
                c.name,
                c.engine,
                c.precision,
                f"{number(latency.p50_ms)}",
                *_interval_cells(c.accuracy.top1),
                f"{c.accuracy.top5.value:.1%}",
                f"{c.accuracy.nll:.3f}",
                f"{c.accuracy.ece:.1%}",
                points_text(apart.value) if apart else "",
                f"{points_text(apart.low)} to {points_text(apart.high)}" if apart else "",
            )
        )
    title = "Accuracy against latency"
    said = ", ".join(f"{p.name} {p.interval.value:.1%} in {number(p.x)} ms" for p in places)
    return Figure(
        name="trade",
        title=title,
        reading=f"At batch {batch}. High and left is best; the line joins what nothing beats at "
        "both. Intervals are of each by itself: compare contenders by the paired difference in the "
        "table.",
        plot=trade(title, said, places),
        legend=tuple(place.name for place in places),
        table=Table(
            header=(
                *("", "engine", "precision", "p50 ms", "top-1", "95% interval"),
                *("top-5", "NLL", "ECE", "bundle minus this, points", "95% interval"),
            ),
            rows=tuple(rows),
        ),
    )


def _reliability(found: Findings, ours: ContenderResult) -> Figure:
    title = "Do probabilities mean what they say?"
    ece = ours.accuracy.ece if ours.accuracy else 0.0
    bins = found.bins
    return Figure(
        name="reliability",
        title=title,
        reading="Bars that end at the diagonal: 70% is right seven times of ten; squares are the "
        "mean probabilities. Below the diagonal answers are too sure. Expected calibration error "
        f"{ece:.1%}, at temperature {number(found.temperature)}.",
        plot=reliability_diagram(title, f"Expected calibration error {ece:.1%}", bins),
        table=Table(
            header=("probability", "images", "mean probability", "right"),
            rows=tuple(
                (
                    f"{index / len(bins):.0%} to {(index + 1) / len(bins):.0%}",
                    str(each.images),
                    f"{each.confidence:.1%}" if each.images else "",
                    f"{each.accuracy:.1%}" if each.images else "",
                )
                for index, each in enumerate(bins)
            ),
        ),
    )


def _shares(found: Findings) -> Iterator[Figure]:
    if found.domains:
        yield _share_figure(
            "domains", "By domain", "The same classes in other styles.", found.domains
        )
    if both := found.base_to_new:
        yield _share_figure(
            "base-new",
            "Base and new classes",
            f"Each half classified among itself; harmonic mean of both {both.harmonic_mean:.1%}.",
            (both.base, both.new),
        )
    if found.transfer:
        yield _share_figure(
            "transfer",
            "Other data sets",
            "Each classified into class names of its own, with the same prompt.",
            found.transfer,
        )


def _share_figure(name: str, title: str, reading: str, shares: Sequence[Share]) -> Figure:
    shown = [
        Bar(
            name=each.name,
            value=each.top1.value,
            shown=f"{each.top1.value:.1%}",
            low=each.top1.low,
            high=each.top1.high,
        )
        for each in shares
    ]
    rows = ((s.name, str(s.images), str(s.classes), *_interval_cells(s.top1)) for s in shares)
    return Figure(
        name=name,
        title=title,
        reading=f"{reading} Thin lines are 95% intervals.",
        plot=bars(shown, head=("", "top-1"), largest=1),
        is_table=True,
        table=Table(header=("", "images", "classes", "top-1", "95% interval"), rows=tuple(rows)),
    )


def _unknown(found: Unknown) -> Figure:
    title = "Known against unknown images"
    said = f"AUROC {found.auroc:.3f}, FPR95 {found.fpr95:.1%}"
    return Figure(
        name="unknown",
        title=title,
        reading="For each threshold on the probability, how many known and unknown images get an "
        f"answer. The upper left corner is best, the diagonal is chance. {said}.",
        plot=acceptance(title, said, found.accepted),
        table=Table(
            header=("figure", "value"),
            rows=(
                ("unknown images", str(found.images)),
                ("AUROC", f"{found.auroc:.3f}"),
                ("FPR95: unknown images accepted with 95% of the known", f"{found.fpr95:.1%}"),
            ),
        ),
    )


def _classes(classes: Sequence[ClassAccuracy]) -> Figure:
    ordered = sorted(classes, key=lambda each: (_share_of(each), each.name))
    chosen, reading = ordered, "From the worst to the best."
    if len(ordered) > ALL_CLASSES:
        chosen = [*ordered[:EACH_END], *ordered[-EACH_END:]]
        reading = (
            f"The {EACH_END} worst and the {EACH_END} best of {len(ordered)} classes; all of them "
            "stand in the table."
        )
    shown = [
        Bar(name=each.name, value=_share_of(each), shown=f"{each.right} of {each.images}")
        for each in chosen
    ]
    return Figure(
        name="classes",
        title="By class",
        reading=reading,
        plot=bars(shown, head=("class", "right"), largest=1),
        is_table=True,
        table=Table(
            header=("class", "images", "right", "share"),
            rows=tuple(
                (each.name, str(each.images), str(each.right), f"{_share_of(each):.1%}")
                for each in ordered
            ),
        ),
    )


def _share_of(each: ClassAccuracy) -> float:
    return each.right / each.images


def points_text(share: float) -> str:
    """A difference of shares in percentage points, with its sign.

    >>> points_text(-0.001)
    '−0.1'
    """
    return f"{100 * share:+.1f}".replace("-", "\N{MINUS SIGN}")


def _interval_cells(interval: Interval) -> tuple[str, str]:
    return f"{interval.value:.1%}", f"{interval.low:.1%} to {interval.high:.1%}"
