"""The pages of a bench report: complete, self-contained, readable, whatever names hold."""

import re
from html.parser import HTMLParser
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vlp_deploy.measuring.accuracy import (
    Accuracy,
    Agreement,
    ClassAccuracy,
    Findings,
    Mistake,
    Share,
    base_to_new,
    unknown,
)
from vlp_deploy.measuring.metrics import Interval, reliability
from vlp_deploy.measuring.records import (
    STAGES,
    BenchReport,
    ColdStart,
    ContenderResult,
    GemmRate,
    Loop,
    Stages,
)
from vlp_deploy.measuring.timing import Machine, Ratio, latency, spread
from vlp_deploy.report.charts import Place, frontier, trade
from vlp_deploy.report.figure import Figure
from vlp_deploy.report.labels import PAPER, place_names, text_box
from vlp_deploy.report.markdown import markdown
from vlp_deploy.report.page import page
from vlp_deploy.report.quality import quality_figures
from vlp_deploy.report.scale import linear, logarithmic, number
from vlp_deploy.report.speed import speed_figures
from vlp_deploy.report.write import PAGE_FILE, TEXT_FILE, write_pages

HOSTILE = '<script>alert("1")</script> & | `x` \x07'
CONTENDERS = {  # name -> engine, precision, milliseconds at batch 1, top-1
    "vlp-deploy": ("openvino", "int8", 1.9, 0.701),
    "torch": ("torch", "fp32", 8.3, 0.705),
    "torch-compile": ("torch-compile", "fp32", 6.9, 0.705),
    "openclip-onnx": ("openclip-onnx", "fp32", 5.2, 0.705),
    "coop-fp32": ("onnx", "fp32", 4.1, 0.705),
    "coop-bf16": ("openvino", "bf16", 3.4, 0.704),
}
RNG = np.random.default_rng(0)


def times(milliseconds: float, calls: int = 400) -> np.ndarray:
    """Times as they are on a machine: never much below the best, sometimes far above it."""
    return milliseconds * (0.95 + RNG.gamma(1.5, 0.05, calls))


def contender(name: str) -> ContenderResult:
    engine, precision, base, top1 = CONTENDERS[name]
    batches = {batch: base * batch**0.85 for batch in (1, 8, 32)}
    loops = [
        Loop(
            kind="closed",
            batch=1,
            concurrency=callers,
            achieved_rate=1000 / base * min(callers, 2) * 0.7,
            images_per_s=1000 / base * min(callers, 2) * 0.7,
            latency=spread(times(base * callers)),
        )
        for callers in (1, 2, 4)
    ]
    open_loop = Loop(
        kind="open",
        batch=1,
        concurrency=8,
        rate=100.0,
        achieved_rate=99.0,
        images_per_s=99.0,
        latency=spread(times(base * 1.3)),
    )
    images = 2000
    return ContenderResult(
        name=name,
        engine=engine,
        precision=precision,
        latencies=tuple(
            latency([times(ms)], [times(1.0)], batch=batch, first_ms=3 * ms)
            for batch, ms in batches.items()
        ),
        ratios=tuple(Ratio(median=base / 1.9, low=base / 2, high=base / 1.8) for _ in batches),
        loops=(*loops, open_loop),
        accuracy=Accuracy(
            images=images,
            top1=Interval(value=top1, low=top1 - 0.02, high=top1 + 0.02),
            top5=Interval(value=0.93, low=0.92, high=0.94),
            nll=1.04,
            ece=0.031,
        ),
        agreement=Agreement(
            images=images,
            max_logit_difference=0.002,
            same_top1=1980,
            top1_difference=Interval(value=0.701 - top1, low=-0.009, high=0.002),
        ),
    )


def share(name: str, top1: float) -> Share:
    interval = Interval(value=top1, low=top1 - 0.05, high=min(top1 + 0.05, 1))
    return Share(name=name, images=300, classes=40, top1=interval)


def sample_report(*, examples: tuple[str, str] = ("", ""), classes: int = 40) -> BenchReport:
    """A report with everything in it."""
    confidence = RNG.beta(4, 2, 2000)
    hits = RNG.random(2000) < confidence * 0.95
    names = [HOSTILE, "red panda", "a class with quite a long name, as data sets have", "owl"]
    names += [f"class {index}" for index in range(len(names), classes)]
    spreads = dict(zip(STAGES, map(spread, map(times, (0.05, 2.1, 0.8, 1.9, 0.02))), strict=True))
    return BenchReport(
        bundle="bundles/coop-int8",
        method="coop",
        engine="openvino",
        precision="int8",
        classes=classes,
        gflops_per_image=32.7,
        threads=2,
        data="photos/",
        machine=Machine(
            cpu="A processor", cores=2, load_average=0.2, python="3.12.1", packages={"numpy": "2"}
        ),
        warnings=("the machine was not steady",),
        cold_start=ColdStart(first_s=1.2, later_s=(0.6, 0.7), peak_memory_mb=312),
        stages=Stages(source="labelled images", images=200, spreads=spreads),
        gemm=(
            GemmRate(
                batch=1,
                rows=197,
                inner=768,
                columns=3072,
                threads=2,
                library="a library",
                gflops_per_s=190.0,
            ),
        ),
        findings=Findings(
            temperature=1.3,
            bins=reliability(confidence, hits),
            classes=tuple(
                ClassAccuracy(name=name, images=20, right=20 - index % 21)
                for index, name in enumerate(names)
            ),
            mistakes=tuple(
                Mistake(
                    truth=first,
                    answer=second,
                    images=9 - index,
                    truth_example=examples[0],
                    answer_example=examples[1],
                )
                for index, (first, second) in enumerate(pairwise(names[:6]))
            ),
            domains=tuple(map(share, ("photo", "sketch", HOSTILE), (0.8, 0.41, 0.62))),
            base_to_new=base_to_new(share("base", 0.81), share("new", 0.64)),
            transfer=(share("flowers", 0.7), share("cars", 0.5)),
            unknown=unknown(RNG.beta(5, 2, 500), RNG.beta(2, 3, 300)),
        ),
        contenders=tuple(map(contender, CONTENDERS)),
    )


class Page(HTMLParser):
    """Every address and the order of tags; fails for tags that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.sections: list[str] = []
        self.tags: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "srcset", "data", "action", "poster"):
                self.addresses.append(value or "")
            if tag == "section" and name == "id":
                self.sections.append(value or "")
        if tag not in ("meta", "img", "col"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def figures_of(report: BenchReport) -> list[Figure]:
    return [*quality_figures(report), *speed_figures(report)]


def page_of(report: BenchReport) -> str:
    return page(report, figures_of(report), {})


def test_page_has_every_figure_and_closes_what_it_opens() -> None:
    found = Page(page_of(sample_report()))

    assert found.open == []
    assert found.sections == [
        *(
            "others",
            "trade",
            "reliability",
            "domains",
            "base-new",
            "transfer",
            "unknown",
            "classes",
        ),
        *("latency-1", "latency-8", "latency-32", "throughput", "loop-closed", "loop-open"),
        *("stages", "mistakes", "machine"),
    ]


def test_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (300, 200), "red").save(tmp_path / name)
    examples = (str(tmp_path / "a.png"), str(tmp_path / "b.png"))

    write_pages(sample_report(examples=examples), tmp_path)

    text = (tmp_path / PAGE_FILE).read_text()
    found = Page(text)
    assert len(found.addresses) == 10  # five pairs of thumbnails
    assert all(address.startswith("data:image/jpeg;base64,") for address in found.addresses)
    assert not re.search(r"https?:|url\(|@import|<script|\bon\w+=", text)
    assert "default-src 'none'" in text
    assert len(text) < 400_000


def test_names_are_shown_and_never_run(tmp_path: Path) -> None:
    report = sample_report()

    write_pages(report, tmp_path)

    assert "script" not in Page((tmp_path / PAGE_FILE).read_text()).tags
    assert r"\<script\>" in (tmp_path / TEXT_FILE).read_text()
    assert "\x07" not in (tmp_path / PAGE_FILE).read_text()


def test_a_figure_says_in_words_what_it_shows() -> None:
    for figure in figures_of(sample_report()):
        assert figure.table.rows
        assert {len(row) for row in figure.table.rows} == {len(figure.table.header)}, figure.name
        assert figure.is_table or "<title>" in figure.plot
        assert figure.is_table or "<desc>" in figure.plot


def test_a_bare_report_still_makes_a_page(tmp_path: Path) -> None:
    full = sample_report()
    ours = full.contenders[0]
    bare = BenchReport(
        **{
            name: getattr(full, name)
            for name in ("bundle", "method", "engine", "precision", "classes", "threads")
        },
        gflops_per_image=1.0,
        machine=full.machine,
        contenders=(
            ContenderResult(name=ours.name, latencies=ours.latencies[:1], ratios=ours.ratios[:1]),
        ),
    )

    write_pages(bare, tmp_path)

    sections = Page((tmp_path / PAGE_FILE).read_text()).sections
    assert sections == ["latency-1", "throughput", "machine"]


def test_an_image_that_is_gone_leaves_its_place_empty(tmp_path: Path) -> None:
    write_pages(sample_report(examples=(str(tmp_path / "gone.png"), "")), tmp_path)

    found = Page((tmp_path / PAGE_FILE).read_text())
    assert found.addresses == []
    assert "mistakes" in found.sections


def test_markdown_tables_have_as_many_cells_as_columns() -> None:
    report = sample_report()

    lines = markdown(report, figures_of(report)).splitlines()

    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) > 60
    for before, after in pairwise(lines):
        if before.startswith("|") and after.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", before)) == len(re.findall(r"(?<!\\)\|", after))


def test_long_tables_say_how_much_is_left_out_of_markdown() -> None:
    report = sample_report(classes=1000)

    assert "960 more rows" in markdown(report, figures_of(report))


def test_facts_and_comparisons_are_in_both_files(tmp_path: Path) -> None:
    write_pages(sample_report(), tmp_path)

    for file in (PAGE_FILE, TEXT_FILE):
        text = (tmp_path / file).read_text()
        assert "70.1%" in text
        assert "−0.4 (−0.9 to +0.2)" in text.replace("\\", "")
        assert "312 MB" in text
        assert "the machine was not steady" in text


@given(
    st.lists(st.floats(-1e9, 1e9, allow_subnormal=False), min_size=1, max_size=9),
    st.booleans(),
)
def test_linear_ticks_are_few_and_enclose_all_values(values: list[float], zero: bool) -> None:
    scale = linear(values, start=0, end=100, zero=zero)

    assert 2 <= len(scale.ticks) <= 12
    slack = 1e-6 * max(abs(scale.low), abs(scale.high))
    assert scale.low - slack <= min(values)
    assert max(values) <= scale.high + slack


@given(st.lists(st.floats(1e-4, 1e6), min_size=1, max_size=9))
def test_logarithmic_ticks_are_few_and_within(values: list[float]) -> None:
    scale = logarithmic(values, start=0, end=100)

    assert 1 <= len(scale.ticks) <= 6
    assert all(scale.low <= tick <= scale.high for tick in scale.ticks)
    assert scale.low < min(values) <= max(values) < scale.high


def test_numbers_are_short() -> None:
    values = (0, 0.001234, 0.5, 1.0, 12.345, 1234.5, 1e6, -0.25, 1e-9)

    assert [number(value) for value in values] == [
        *("0", "0.00123", "0.5", "1", "12.3", "1,234", "1,000,000", "-0.25", "1.0e-09"),
    ]


def test_frontier_has_what_nothing_beats_at_both() -> None:
    points = [(1.0, 0.5), (2.0, 0.4), (3.0, 0.7), (3.0, 0.6), (4.0, 0.7)]

    assert frontier(points) == [(1.0, 0.5), (3.0, 0.7)]


@given(
    st.lists(
        st.tuples(
            st.text("abc", min_size=1, max_size=12),
            st.tuples(st.floats(60, 410), st.floats(30, 240)),
        ),
        max_size=8,
    )
)
def test_names_beside_points_never_overlap(names: list[tuple[str, tuple[float, float]]]) -> None:
    boxes = []
    for drawn in place_names(names):
        found = re.search(r'x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)".*>(\w+)<', drawn)
        assert found is not None
        boxes.append(text_box(found[4], (float(found[1]), float(found[2])), found[3]))

    assert all(box.is_inside(PAPER.grown(0.1)) for box in boxes)
    # written to a tenth of a unit
    assert not any(
        one.grown(-0.1).overlaps(other.grown(-0.1)) for one, other in combinations(boxes, 2)
    )


def test_no_axis_promises_more_than_everything() -> None:
    certain = Interval(value=1, low=0.99, high=1)

    drawn = trade("title", "description", [Place(name="a", x=2.0, interval=certain)])

    assert "100%" in drawn
    assert "101%" not in drawn


@pytest.mark.parametrize("count", [1, 9])
def test_more_contenders_than_markers_still_make_a_page(count: int) -> None:
    full = sample_report()
    ours = full.contenders[0]
    many = tuple(
        ContenderResult(name=f"c{index}", latencies=ours.latencies, ratios=ours.ratios)
        for index in range(count)
    )
    report = BenchReport(
        **{name: getattr(full, name) for name in full.__struct_fields__ if name != "contenders"},
        contenders=many,
    )

    assert Page(page_of(report)).open == []
