"""What all tests share: an order, a private cache folder, the golden data, no silent skips.

With VLP_NO_SKIPS=1, as in continuous integration, a skipped test is a failed one; only golden cases
may be skipped, and only where VLP_GOLDEN is not set.
"""

import os
import re
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

# Minutes each, so they are begun first: with -n no worker has one of them left in the end.
LONG = (
    "test_golden_road.py",
    "test_every_method.py",
    "test_bulk.py",
    "test_kill.py",
    "test_parallel.py",
)
# A file stays whole, as its fixtures take long; of golden cases those that share a CLIP do.
TOGETHER = re.compile(r"(.*?)::[^\[]*(\[ViT-B-\d+)?")
if "PYTEST_XDIST_WORKER" in os.environ:  # there is one for each core
    os.environ.setdefault("OMP_NUM_THREADS", "1")
GOLDEN_REASON = "VLP_GOLDEN is not set: no numbers of the official code to compare with"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(item.path.name, len(LONG)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With -n, what one worker does without the others."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            found = TOGETHER.match(nodeid)
            return found.expand(r"\1\2") if found else nodeid

    return Scheduling(config, log)


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
    if report.skipped and not hasattr(report, "wasxfail"):
        _refuse_to_skip(report, str(call.excinfo.value) if call.excinfo else "")
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Of a whole file, as `importorskip` skips it."""
    report = yield
    if report.skipped:
        _refuse_to_skip(report, str(report.longrepr))
    return report


def _refuse_to_skip(report: pytest.TestReport | pytest.CollectReport, reason: str) -> None:
    if os.environ.get("VLP_NO_SKIPS") and GOLDEN_REASON not in reason:
        report.outcome = "failed"
        report.longrepr = f"skipped where nothing may be skipped: {reason}"
