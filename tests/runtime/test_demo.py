"""What the demo needs and accepts as agreement with PyTorch; all of it runs in tests/road."""

import json
import re
import tomllib
from pathlib import Path

import pytest

from vlp_deploy.commands import demo
from vlp_deploy.commands.demo import EXTRAS, _check_agreement, _require_extras
from vlp_deploy.errors import MissingExtraError, VlpError


def report(path: Path, difference: float | None) -> Path:
    """A report of `vlp bench`; NaN is written as null."""
    agreement = {"images": 2, "max_logit_difference": difference, "same_top1": 2}
    machine = {"cpu": "", "cores": 1, "load_average": 0, "python": "", "packages": {}}
    contender = {"name": "torch", "latencies": [], "agreement": agreement}
    content = dict.fromkeys(("bundle", "method", "engine", "precision"), "")
    content |= {"classes": 2, "gflops_per_image": 0.1, "threads": 1, "machine": machine}
    path.write_text(json.dumps({**content, "contenders": [contender]}))
    return path


def test_agreement_within_tolerance_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _check_agreement(report(tmp_path / "bench.json", 0.0019), 2, tolerance=0.002)

    assert "agrees with PyTorch on all 2 test images" in capsys.readouterr().out


@pytest.mark.parametrize("difference", [0.0021, None])
def test_more_than_tolerance_and_nan_stop_the_demo(
    tmp_path: Path, difference: float | None
) -> None:
    with pytest.raises(VlpError, match="please report this"):
        _check_agreement(report(tmp_path / "bench.json", difference), 2, tolerance=0.002)


def test_the_demo_needs_what_its_extra_installs_and_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    (listed,) = project["optional-dependencies"]["demo"]
    assert set(re.findall(r"\w+", listed.partition("[")[2])) == set(EXTRAS)

    monkeypatch.setattr(demo, "find_spec", lambda name: None if name == "resvg_py" else object())
    _require_extras()
    monkeypatch.setattr(demo, "find_spec", lambda name: None if name == "torch" else object())
    with pytest.raises(MissingExtraError, match=r"needs torch\. .*vlp-deploy\[demo\]"):
        _require_extras()
