"""The results become README.md's table, between its marks.

    python benchmarks/readme_table.py [--check]

Every row is a claim: which figure of which results. The newest run that has it counts; a claim
without results is left out. `--check` writes nothing and fails if the table is not what the results
give.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- benchmarks -->", "<!-- /benchmarks -->"
MEDIAN = ("median", "low", "high")
TIMES = ("times", "times_low", "times_high")
Json = Mapping[str, Any]
Figures = tuple[float, float, float]  # the figure and its interval


def faster(figures: Figures) -> str:
    """Another's time over ours."""
    middle, low, high = figures
    return f"**{middle:.2f}** times as fast ({low:.2f} to {high:.2f})"


def extra(figures: Figures) -> str:
    """Our time over another's, as what it adds."""
    middle, low, high = (f"{100 * (each - 1):+.1f}".replace("-", "−") for each in figures)
    return f"**{middle} %** time ({low} to {high})"


def share(figures: Figures) -> str:
    """What is reached of what is possible."""
    middle, low, high = (100 * each for each in figures)
    return f"**{middle:.0f} %** of it ({low:.0f} to {high:.0f})"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One row: the figures `keys`, under `within` if given, of the first row that fits `where`."""

    text: str
    file: str
    where: Json
    within: str = ""
    keys: tuple[str, str, str] = MEDIAN
    form: Callable[[Figures], str] = faster


def _vit(contender: str, batch: int, text: str) -> Claim:
    return Claim(
        text=f"ViT-B/16, batch {batch}: {text}, against PyTorch",
        file="vit_b16",
        where={"contender": contender, "batch": batch},
        within="times_eager",
    )


def _engine(engine: str, precision: str) -> Claim:
    return Claim(
        text=f"CoOp on vlp-tiny, batch 1: {engine} {precision}, against onnxruntime fp32",
        file="engines",
        where={"method": "coop", "engine": engine, "precision": precision, "batch": 1},
        keys=TIMES,
    )


CLAIMS = (
    *(
        _vit(f"ours {engine} {precision}", batch, f"{name} {precision}")
        for batch in (1, 8)
        for engine, name in (("onnx", "onnxruntime"), ("openvino", "OpenVINO"))
        for precision in ("fp32", "int8")
    ),
    _engine("onnx", "int8"),
    _engine("openvino", "fp32"),
    _engine("openvino", "int8"),
    Claim(
        text="`vlp classify` on JPEG files, against a loop of Pillow, torchvision and PyTorch",
        file="classify",
        where={"what": "loops", "against": "loop"},
        within="ratio",
    ),
    Claim(
        text="`vlp classify` on JPEG files, against that loop behind a DataLoader of 2 workers",
        file="classify",
        where={"what": "loops", "against": "2 workers"},
        within="ratio",
    ),
    Claim(
        text="`vlp classify` on JPEG files, ViT-B/16: decoding and engine overlapped ideally",
        file="classify",
        where={"what": "overlap"},
        within="ratio",
        form=share,
    ),
    Claim(
        text="a 12-megapixel JPEG to pixels, against Pillow's full decoding",
        file="classify",
        where={"what": "decode", "how": "scaled"},
        within="ratio",
    ),
    Claim(
        text="prompts in all 12 layers of ViT-B/16, folded, against none",
        file="folding",
        where={"graph": "VPT-deep folded", "flops": 32749471744},
        form=extra,
    ),
    Claim(
        text="prompts in all 6 layers of vlp-tiny, folded, against none",
        file="folding",
        where={"graph": "VPT-deep folded", "flops": 148089856},
        form=extra,
    ),
    Claim(
        text="prompts in all 6 layers of vlp-tiny, as tokens, against none",
        file="folding",
        where={"graph": "prompts as tokens", "flops": 214125568},
        form=extra,
    ),
)


def table(results: Path = RESULTS, claims: tuple[Claim, ...] = CLAIMS) -> str:
    """The table of all claims that have results, in Markdown."""
    lines = ["| what | result, with its 95 % interval | measured by |", "|---|---|---|"]
    for claim in claims:
        if found := _newest(claim, results):
            command, figures = found
            lines.append(f"| {claim.text} | {claim.form(figures)} | `{command}` |")
    return "\n".join(lines)


def rewritten(readme: str, content: str) -> str:
    """README with the marked block replaced. Raises SystemExit if the marks are not there once."""
    if readme.count(BEGIN) != 1 or readme.count(END) != 1:
        raise SystemExit(f"README.md needs one {BEGIN} and one {END}")
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{content}\n{END}{after}"


def _newest(claim: Claim, results: Path) -> tuple[str, Figures] | None:
    """The last run's command and figures for a claim."""
    found = None
    for run in _runs(results / f"{claim.file}.jsonl"):
        for row in run.get("rows", ()):
            if all(row.get(key) == value for key, value in claim.where.items()):
                figures = row[claim.within] if claim.within else row
                middle, low, high = (float(figures[key]) for key in claim.keys)
                found = run["command"], (middle, low, high)
                break
    return found


def _runs(path: Path) -> Iterator[Json]:
    """The runs of a file in the order of time; none without the file."""
    if path.exists():
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        yield from sorted(lines, key=lambda run: run["when"])


def main() -> None:
    """Write README's table, or check it."""
    path = ROOT / "README.md"
    readme = path.read_text()
    wanted = rewritten(readme, table())
    if wanted == readme:
        return
    if "--check" in sys.argv[1:]:
        raise SystemExit("README.md's table is old: run python benchmarks/readme_table.py")
    path.write_text(wanted)


if __name__ == "__main__":
    main()
