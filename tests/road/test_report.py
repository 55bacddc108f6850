"""The report in a real browser: everything drawn, nothing fetched, nothing too wide for a phone.

Chromium opens the report as a page and inside a frame as wide as a phone; what the frame looks like
is read by a script of the page around it, since the report itself allows none.
"""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlp_deploy import cli
from vlp_deploy.formats.fake_bundle import write_fake_bundle

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-quic", "--virtual-time-budget=2000"),
    "--host-resolver-rules=MAP * ~NOTFOUND",  # what the browser itself asks for goes nowhere
)
# In the browser's log a request has the number of its purpose; this is "a resource of a page".
PAGE_REQUEST = re.compile(r'"traffic_annotation":101845102,"url":"((?:https?|wss?|ftp)://[^"]*)"')
CLASSES = ("red", "a <b>bold & long name of a colour", "blue", "grey")
PLOTS = {"trade", "reliability", "unknown", "latency-1", "latency-2", "throughput"}
PLOTS |= {"loop-closed", "loop-open"}
TABLES = {"domains", "base-new", "transfer", "classes", "stages", "mistakes", "machine", "others"}

# what is in the frame: for each section its plots and pictures, and texts that cover each other
PROBE = """
const page = document.querySelector("iframe").contentDocument;
page.querySelectorAll("details").forEach(each => each.open = true);
const area = box => box.width * box.height;
const seen = {};
for (const section of page.querySelectorAll("section")) {
  const texts = [...section.querySelectorAll("svg[role=img] > text")];
  const boxes = texts.map(each => each.getBoundingClientRect());
  const overlaps = [];
  for (let i = 0; i < boxes.length; i++) for (let j = 0; j < i; j++) {
    const [a, b] = [boxes[i], boxes[j]];
    // a line's box is higher than its letters
    const across = a.left < b.right - 1 && b.left < a.right - 1;
    if (across && a.top < b.bottom - 4 && b.top < a.bottom - 4)
      overlaps.push(texts[i].textContent + " | " + texts[j].textContent);
  }
  const drawing = section.querySelector("svg[role=img]");
  const frame = drawing && drawing.getBoundingClientRect();
  seen[section.id] = {
    drawn: drawing ? area(frame) : 0,
    marks: section.querySelectorAll("svg[role=img] :is(.line, .mark, .fill)").length,
    outside: drawing ? texts.filter((_, i) => boxes[i].left < frame.left - 1
      || boxes[i].right > frame.right + 1).map(each => each.textContent) : [],
    pictures: [...section.querySelectorAll("img")].filter(each => each.naturalWidth > 0).length,
    overlaps,
    bars: [...section.querySelectorAll(".bars rect")].length,
  };
}
const root = page.documentElement;
document.title = "seen";
document.body.replaceChildren();
const output = document.createElement("pre");
output.textContent = JSON.stringify({
  sections: seen, width: root.scrollWidth, shown: root.clientWidth});
document.body.append(output);
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report in which everything was asked for, of a small bundle."""
    folder = tmp_path_factory.mktemp("report")
    write_fake_bundle(folder / "bundle", CLASSES)
    (folder / "twin").symlink_to("bundle", target_is_directory=True)
    known = _class_folders(folder / "known", CLASSES)
    (folder / "base.txt").write_text("red\nblue\n")
    strangers = _class_folders(folder / "strangers", ("violet", "orange"))
    words = ["bench", folder / "bundle", "--engine", "fake", "--no-cold-start", "--seconds", "0.2"]
    words += ["--batch", "1", "--batch", "2", "--rate", "50", "--data", known]
    words += ["--unknown", strangers, "--transfer", strangers, "--domain", r"(\w+)\.png$"]
    words += ["--base-classes", folder / "base.txt", "--beside", folder / "twin"]
    assert cli.run([*map(str, words), "--output", str(folder / "out")]) == 0
    return folder / "out" / "report.html"


def _class_folders(folder: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        (folder / name).mkdir(parents=True)
        for style in ("flat", "round", "thin"):
            seed = sum(map(ord, name + style))
            pixels = np.random.default_rng(seed).integers(0, 256, (40, 40, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{style}.png")
    return folder


def chromium(page: Path, folder: Path, *flags: str) -> tuple[str, list[str]]:
    """The document after its scripts ran, and the addresses that pages asked the net for."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    log = folder / "net.json"
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", f"--log-net-log={log}"]
    command += [*flags, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return done.stdout, PAGE_REQUEST.findall(log.read_text())


def framed(report: Path, folder: Path, *, width: int) -> Path:
    """A page around the report that looks into it."""
    content = html.escape(report.read_text())
    page = folder / "frame.html"
    page.write_text(
        f'<!DOCTYPE html><meta charset="utf-8"><body><iframe width="{width}" height="800"'
        f' srcdoc="{content}"></iframe><script>addEventListener("load", () => {{{PROBE}}})</script>'
    )
    return page


@pytest.mark.parametrize("width", [390, 1200])
def test_everything_is_drawn_and_nothing_is_too_wide(
    width: int, report: Path, tmp_path: Path
) -> None:
    dom, asked = chromium(framed(report, tmp_path, width=width), tmp_path, "--dump-dom")

    found = re.search(r"<pre>(.*?)</pre>", dom, re.DOTALL)
    assert found is not None
    seen = json.loads(html.unescape(found[1]))
    assert seen["width"] <= seen["shown"]
    assert seen["sections"].keys() == PLOTS | TABLES
    for name, section in seen["sections"].items():
        assert section["overlaps"] == [], name
        assert section["outside"] == [], name
        if name in PLOTS:
            assert section["drawn"] > 30_000, name  # square pixels
            assert section["marks"] > 0, name
    assert seen["sections"]["classes"]["bars"] == len(CLASSES)
    assert seen["sections"]["mistakes"]["pictures"] > 0
    assert asked == []


def test_opening_the_report_asks_the_net_for_nothing(report: Path, tmp_path: Path) -> None:
    picture = tmp_path / "shot.png"

    _, asked = chromium(report, tmp_path, f"--screenshot={picture}", "--window-size=1200,900")

    assert asked == []
    with Image.open(picture) as shot:
        assert len(shot.convert("RGB").getcolors(1 << 24) or ()) > 100  # something is drawn


def test_a_page_that_asks_the_net_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "asks.html"
    page.write_text('<img src="http://localhost:9/picture.png">')

    _, asked = chromium(page, tmp_path, "--dump-dom")

    assert asked
    assert set(asked) == {"http://localhost:9/picture.png"}


def test_names_are_shown_as_they_are(report: Path, tmp_path: Path) -> None:
    dom, _ = chromium(report, tmp_path, "--dump-dom")

    assert html.escape(CLASSES[1], quote=False) in dom
    assert "<b>bold" not in dom
