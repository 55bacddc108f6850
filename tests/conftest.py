"""What all tests share: an order, a private cache folder, the golden data, no silent skips.

With VLP_NO_SKIPS=1, as in continuous integration, a skipped test is a failed one; only golden cases
may be skipped, and only where VLP_GOLDEN is not set.
"""

import os
from collections.abc import Generator
from pathlib import Path

import pytest

# Minutes each, so they are begun first: under -n no worker has one of them left in the end.
LONG = (
    "test_golden_road.py",
    "test_every_method.py",
    "test_bulk.py",
    "test_kill.py",
    "test_parallel.py",
)
if "PYTEST_XDIST_WORKER" in os.environ:  # there is one for each core
    os.environ.setdefault("OMP_NUM_THREADS", "1")
GOLDEN_REASON = "VLP_GOLDEN is not set: no numbers of the official code to compare with"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(item.path.name, len(LONG)))


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
