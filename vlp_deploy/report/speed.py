"""From the times in a report to plots and tables."""

from collections.abc import Iterator, Sequence

from vlp_deploy.measuring.records import BenchReport, ContenderResult, Loop, Stages
from vlp_deploy.measuring.timing import Latency
from vlp_deploy.report.charts import Bar, Series, bars, distributions, rates
from vlp_deploy.report.figure import Figure, Table
from vlp_deploy.report.scale import number

LATENCY_HEADER = ("", "batch", "p50 ms", "p90 ms", "p95 ms", "p99 ms", "images/s", "calls")


def speed_figures(report: BenchReport) -> Iterator[Figure]:
    """Latency of each batch size, throughput, callers at once, and stages."""
    batches = sorted({latency.batch for c in report.contenders for latency in c.latencies})
    for batch in batches:
        yield _latency(report.contenders, batch)
    yield _throughput(report.contenders)
    for kind in ("closed", "open"):
        if any(loop.kind == kind for c in report.contenders for loop in c.loops):
            yield _loops(report.contenders, kind)
    if report.stages:
        yield _stages(report.stages)


def _latency(contenders: Sequence[ContenderResult], batch: int) -> Figure:
    found = [(c.name, each) for c in contenders for each in c.latencies if each.batch == batch]
    series = [Series(name=name, points=_distribution(each)) for name, each in found]
    title = f"Latency at batch {batch}"
    medians = ", ".join(f"{name} {number(each.p50_ms)} ms" for name, each in found)
    return Figure(
        name=f"latency-{batch}",
        title=title,
        reading="How many calls took no longer than so long. Left is faster, upright is steadier.",
        plot=distributions(title, f"Median: {medians}", series),
        legend=tuple(name for name, _ in found),
        table=Table(
            header=(*LATENCY_HEADER, "median, 95% interval", "first call, ms"),
            rows=tuple(
                (
                    *_cells(name, each),
                    f"{number(each.p50_low_ms)} to {number(each.p50_high_ms)}",
                    number(each.first_ms),
                )
                for name, each in found
            ),
        ),
    )


def _distribution(latency: Latency) -> tuple[tuple[float, float], ...]:
    last = len(latency.quantiles_ms) - 1
    return tuple((ms, index / last) for index, ms in enumerate(latency.quantiles_ms))


def _cells(name: str, latency: Latency) -> tuple[str, ...]:
    times = (latency.p50_ms, latency.p90_ms, latency.p95_ms, latency.p99_ms)
    rest = (number(latency.images_per_s), str(latency.calls))
    return (name, str(latency.batch), *map(number, times), *rest)


def _throughput(contenders: Sequence[ContenderResult]) -> Figure:
    series = [
        Series(
            name=c.name,
            points=tuple((each.p50_ms, each.images_per_s) for each in c.latencies),
            names=tuple(f"batch {each.batch}" for each in c.latencies),
        )
        for c in contenders
    ]
    title = "Throughput against latency"
    best = max((each.images_per_s, c.name) for c in contenders for each in c.latencies)
    return Figure(
        name="throughput",
        title=title,
        reading="A point for each batch size. Higher is more images a second, left is less to "
        "wait for them.",
        plot=rates(title, f"Most: {best[1]} with {number(best[0])} images a second", series),
        legend=tuple(c.name for c in contenders),
        table=Table(
            header=(*LATENCY_HEADER, "time, ours = 1"),
            rows=tuple(
                (*_cells(c.name, each), f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})")
                for c in contenders
                for each, ratio in zip(c.latencies, c.ratios, strict=True)
            ),
        ),
    )


LOOPS = {
    "closed": (
        "Callers at once",
        "Each caller asks again as soon as it is answered; a point for each number of callers. "
        "Where the line turns right without rising, more callers only wait longer.",
    ),
    "open": (
        "Requests at a given rate",
        "Requests arrive at a rate, whether or not the last ones are answered; a point for each "
        "rate. Where the line breaks away to the right, they come faster than they are served.",
    ),
}


def _loops(contenders: Sequence[ContenderResult], kind: str) -> Figure:
    title, reading = LOOPS[kind]
    loops = {c.name: [loop for loop in c.loops if loop.kind == kind] for c in contenders}
    series = [
        Series(
            name=name,
            points=tuple((loop.latency.p99_ms, loop.images_per_s) for loop in each),
            names=tuple(_asked(loop) for loop in each),
        )
        for name, each in loops.items()
    ]
    most = max(loop.images_per_s for each in loops.values() for loop in each)
    return Figure(
        name=f"loop-{kind}",
        title=title,
        reading=reading,
        plot=rates(
            title, f"At most {number(most)} images a second", series, x_label="p99 of a call, ms"
        ),
        legend=tuple(loops),
        table=Table(
            header=(
                "",
                "load",
                "batch",
                "requests/s",
                "p50 ms",
                "p99 ms",
                "images/s",
                *("unanswered", "kept up"),
            ),
            rows=tuple(
                (
                    name,
                    _asked(loop),
                    str(loop.batch),
                    number(loop.achieved_rate),
                    number(loop.latency.p50_ms),
                    number(loop.latency.p99_ms),
                    number(loop.images_per_s),
                    str(loop.unanswered),
                    "yes" if loop.kept_up else "no",
                )
                for name, each in loops.items()
                for loop in each
            ),
        ),
    )


def _asked(loop: Loop) -> str:
    if loop.rate is not None:
        return f"{number(loop.rate)}/s"
    return f"{loop.concurrency} caller{'s' if loop.concurrency > 1 else ''}"


def _stages(stages: Stages) -> Figure:
    spreads = stages.spreads
    total = sum(spread.p50_ms for spread in spreads.values())
    shown = [
        Bar(
            name=name,
            value=spread.p50_ms,
            shown=f"{number(spread.p50_ms)} ms",
            low=spread.p50_low_ms,
            high=spread.p50_high_ms,
        )
        for name, spread in spreads.items()
    ]
    return Figure(
        name="stages",
        title="Where an image's time goes",
        reading=f"Medians of {stages.images} images ({stages.source}), each stage by "
        f"itself; together {number(total)} ms.",
        plot=bars(shown, head=("stage", "time"), largest=max(bar.value for bar in shown)),
        is_table=True,
        table=Table(
            header=("stage", "p50 ms", "p90 ms", "p99 ms", "share"),
            rows=tuple(
                (
                    name,
                    number(spread.p50_ms),
                    number(spread.p90_ms),
                    number(spread.p99_ms),
                    f"{spread.p50_ms / total:.0%}",
                )
                for name, spread in spreads.items()
            ),
        ),
    )
