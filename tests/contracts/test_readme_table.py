"""README's table of benchmarks is what the results give."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "readme_table.py"
pytestmark = pytest.mark.skipif(
    not SCRIPT.exists(), reason="the benchmarks are not here: an installed copy"
)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("readme_table", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(when: str, median: float) -> str:
    row = {"what": "loops", "ratio": {"median": median, "low": 1.5, "high": 2.5}}
    return json.dumps({"when": when, "command": f"run {when}", "rows": [{"other": 1}, row]}) + "\n"


def test_readme_has_the_table_that_the_results_give(script: ModuleType) -> None:
    readme = (ROOT / "README.md").read_text()

    assert script.rewritten(readme, script.table()) == readme, (
        "run python benchmarks/readme_table.py"
    )
    assert len(script.table().splitlines()) > 5


def test_the_newest_run_counts(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(run("2026-02", 2.0) + run("2026-01", 3.0))
    claim = script.Claim(text="a", file="x", where={"what": "loops"}, within="ratio")

    *_, row = script.table(tmp_path, (claim,)).splitlines()

    assert row == "| a | **2.00** times as fast (1.50 to 2.50) | `run 2026-02` |"


def test_a_claim_without_results_is_left_out(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(run("2026-01", 3.0))
    claims = tuple(
        script.Claim(text="a", file=file, where=where)
        for file, where in (("absent", {}), ("x", {"what": "another"}))
    )

    assert len(script.table(tmp_path, claims).splitlines()) == 2


def test_only_what_is_between_the_marks_changes(script: ModuleType) -> None:
    readme = f"before\n{script.BEGIN}\nold\n{script.END}\nafter\n"

    assert script.rewritten(readme, "new") == readme.replace("old", "new")
    with pytest.raises(SystemExit, match="needs one"):
        script.rewritten("nothing", "new")
