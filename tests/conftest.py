"""What all tests share: a private cache folder, the golden data, and a refusal to skip in silence.

With VLP_NO_SKIPS=1, as in continuous integration, a skipped test is a failed one; only golden cases
may be skipped, and only where VLP_GOLDEN is not set.
"""

import os
from collections.abc import Generator
from pathlib import Path

import pytest

GOLDEN_REASON = "VLP_GOLDEN is not set: no numbers of the official code to compare with"


@pytest.fixture(autouse=True)
def _private_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLP_CACHE", str(tmp_path / "vlp-cache"))
    monkeypatch.delenv("VLP_BUNDLE", raising=False)


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of reference numbers made by the methods' official code."""
    if not (folder := os.environ.get("VLP_GOLDEN")):
        pytest.skip(GOLDEN_REASON)
    return Path(folder)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("VLP_NO_SKIPS"):
        reason = str(call.excinfo.value) if call.excinfo else ""
        if GOLDEN_REASON not in reason:
            report.outcome = "failed"
            report.longrepr = f"skipped where nothing may be skipped: {reason}"
    return report
