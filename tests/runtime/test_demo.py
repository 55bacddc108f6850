"""What the demo accepts as agreement with PyTorch; the whole demo runs in tests/road."""

import json
from pathlib import Path

import pytest

from vlp_deploy.commands.demo import _check_agreement
from vlp_deploy.errors import VlpError


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
