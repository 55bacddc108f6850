"""`--html`: one bounded page that shows what was found, whatever names and labels hold."""

import base64
import io
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from vlp_deploy import cli
from vlp_deploy.bulk.outputs import gallery
from vlp_deploy.bulk.outputs.gallery import Gallery
from vlp_deploy.bulk.results import Row
from vlp_deploy.images.limits import DEFAULT_LIMITS

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Tags, texts and thumbnails; fails for tags that are not closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text("utf-8")
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(self.source)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data

    def images(self) -> list[Image.Image]:
        sources = [attributes["src"] or "" for tag, attributes in self.tags if tag == "img"]
        encoded = [source.removeprefix("data:image/jpeg;base64,") for source in sources]
        return [Image.open(io.BytesIO(base64.b64decode(text))) for text in encoded]


def write(path: Path, rows: list[Row], image: Path) -> Page:
    page = Gallery(path, limits=DEFAULT_LIMITS, title="a <b> & c", force=False)
    for row in rows:
        page.take(row, str(image))
    page.finish()
    return Page(path)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    Image.new("RGB", (400, 300), "red").save(tmp_path / "x.png")
    return tmp_path / "x.png"


def test_names_and_labels_are_shown_and_never_obeyed(tmp_path: Path, image: Path) -> None:
    odd = "<script>alert('1')</script>\"&\n\udcff"
    page = write(tmp_path / "g.html", [Row(odd, (f"label {odd}",), 0.5)], image)

    assert "script" not in {tag for tag, _ in page.tags}
    assert "<script>alert('1')" in page.text
    assert "a <b> & c" in page.text
    assert page.images()[0].size == (192, 144)


def test_page_needs_nothing_else_and_suits_phones_and_dark_rooms(
    tmp_path: Path, image: Path
) -> None:
    page = write(
        tmp_path / "g.html", [Row("x", ("a",), 0.5), Row("y", (), 0.0, failed=True)], image
    )

    assert "http://" not in page.source
    assert "https://" not in page.source
    assert "prefers-color-scheme: dark" in page.source
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in (
        page.tags
    )
    assert all(attrs["loading"] == "lazy" for tag, attrs in page.tags if tag == "img")
    assert "Images: 1. Classes: 1. Inputs that failed: 1." in page.text


def test_images_stand_under_each_label_and_those_of_no_class_come_last(
    tmp_path: Path, image: Path
) -> None:
    rows = [Row(f"{n}.png", (), 0.2) for n in range(3)]
    rows += [Row("both.png", ("b", "a"), 0.75), Row("bad.png", (), 0.0, failed=True)]

    page = write(tmp_path / "g.html", rows, image)

    assert len(page.images()) == 5
    assert "Images: 4. Classes: 2. Of none of them: 3. Inputs that failed: 1." in page.text
    assert page.text.count("75.0% b, a: both.png") == 2
    sections = page.text[page.text.index("\na 1") :]
    assert sections.index("\nb 1") < sections.index("(none of these) 3")


def test_page_is_bounded_and_says_what_is_left_out(
    tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery, "PER_LABEL", 3)
    rows = [Row(f"{number}.png", ("ab"[number % 2],), number / 10) for number in range(10)]

    page = write(tmp_path / "g.html", rows, image)
    assert len(page.images()) == 6
    assert "4 are left out" in page.text
    assert page.text.index("4.png") < page.text.index("2.png")  # the most probable first

    monkeypatch.setattr(gallery, "MAX_BYTES", 1)
    assert len(write(tmp_path / "h.html", rows, image).images()) == 1


def test_page_that_broke_off_or_came_later_shows_everything(
    tmp_path: Path, fake_bundle: Path, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [image, tmp_path / "absent.png", image]
    command = ["classify", *map(str, paths), "--bundle", str(fake_bundle)]
    command += ["--output", str(tmp_path / "out.jsonl"), "--html", str(tmp_path / "g.html")]

    pages = []
    for _ in range(2):  # the output is complete the second time
        assert cli.run(command) == 1
        pages.append(Page(tmp_path / "g.html"))

    assert len(pages[0].images()) == 2
    assert pages[0].source == pages[1].source


def test_file_that_is_no_gallery_is_left_alone(
    tmp_path: Path, fake_bundle: Path, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "g.html").write_text("mine")
    command = ["classify", str(image), "--bundle", str(fake_bundle)]
    command += ["--html", str(tmp_path / "g.html")]

    assert cli.run(command) == 1
    assert "Name another --html" in capsys.readouterr().err
    assert (tmp_path / "g.html").read_text() == "mine"
    assert cli.run([*command, "--force"]) == 0
    assert len(Page(tmp_path / "g.html").images()) == 1
