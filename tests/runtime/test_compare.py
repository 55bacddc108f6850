"""What changed between two reports, when the answer is known."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from vlp_deploy import cli
from vlp_deploy.errors import DataError
from vlp_deploy.measuring.bench import warnings_about
from vlp_deploy.measuring.compare import Comparison, compare, differences, load_report
from vlp_deploy.measuring.records import BenchReport, ContenderResult
from vlp_deploy.measuring.timing import PASSES, Machine, latency

MACHINE = Machine(cpu="any", cores=2, load_average=0.1, python="3.11", packages={"a": "1"})


def noisy(
    milliseconds: float,
    *,
    seed: int = 0,
    slower: float = 1.0,
    hits_engine: float = 1.0,
    wavering: float = 0.05,
    batch: int = 1,
    threads: int = 2,
) -> BenchReport:
    """A run on a machine that is `slower` at fixed work, and at the engine's to another power.

    Passes differ by `wavering`; calls take a tenth longer than they have to, some much longer.
    """
    random = np.random.default_rng(seed)
    passes, reference = [], []
    for _ in range(PASSES):
        load = slower * np.exp(random.normal(0, wavering))
        passes.append(milliseconds * load**hits_engine * (1 + random.exponential(0.1, 50)))
        reference.append(load * (1 + random.exponential(0.1, 50)))
    measured = latency(passes, reference, batch=batch, first_ms=1.0)
    return BenchReport(
        bundle="bundle",
        method="coop",
        engine="onnx",
        precision="fp32",
        classes=3,
        gflops_per_image=1.0,
        threads=threads,
        machine=MACHINE,
        warnings=warnings_about(MACHINE, [measured]),
        contenders=(ContenderResult(name="vlp-deploy", latencies=(measured,)),),
    )


def write(path: Path, report: BenchReport) -> Path:
    path.write_bytes(msgspec.json.encode(report))
    return path


def test_a_delay_is_found_though_the_machine_got_faster() -> None:
    (change,) = compare(noisy(3.0), noisy(8.0, slower=0.8, seed=1)).changes

    assert change.is_real
    assert change.low < 8 / 3 < change.high


def test_a_small_change_is_found_on_a_quiet_machine() -> None:
    found = [
        compare(
            noisy(3.0, wavering=0.01, seed=seed), noisy(3.5, wavering=0.01, seed=100 + seed)
        ).changes[0]
        for seed in range(20)
    ]

    assert sum(change.is_real for change in found) >= 19


@pytest.mark.parametrize("hits_engine", [0.3, 1.0, 1.7])  # other programs, how they hit an engine
@pytest.mark.parametrize("slower", [0.5, 1.0, 2.0])
def test_a_loaded_machine_is_no_change(slower: float, hits_engine: float) -> None:
    found = [
        compare(
            noisy(3.0, seed=seed),
            noisy(3.0, slower=slower, hits_engine=hits_engine, wavering=0.1, seed=100 + seed),
        ).changes[0]
        for seed in range(40)
    ]

    assert sum(change.is_real for change in found) <= 2  # 1 of 20


def test_a_report_equals_itself() -> None:
    (change,) = compare(noisy(3.0), noisy(3.0)).changes

    assert change.ratio == 1.0
    assert change.low < 1 < change.high
    assert not change.is_real


def test_reports_of_other_things_cannot_be_compared() -> None:
    with pytest.raises(DataError, match="vlp-deploy at 1 against vlp-deploy at 8"):
        compare(noisy(2.0), noisy(2.0, batch=8))


def test_other_conditions_are_named() -> None:
    (found,) = differences(noisy(2.0), noisy(2.0, threads=1))

    assert differences(noisy(2.0), noisy(2.0)) == ()
    assert (found.what, found.before, found.after) == ("threads", "2", "1")


def test_a_package_of_one_run_only_is_named() -> None:
    before = noisy(2.0)
    machine = msgspec.structs.replace(MACHINE, packages={"b": "2"})

    found = differences(before, msgspec.structs.replace(before, machine=machine))

    assert [(d.what, d.before, d.after) for d in found] == [("a", "1", "none"), ("b", "none", "2")]


def test_another_engine_of_another_contender_is_named() -> None:
    before = noisy(2.0)
    other = ContenderResult(name="b", engine="onnx", precision="fp32", latencies=())
    reports = [
        msgspec.structs.replace(before, contenders=(*before.contenders, contender))
        for contender in (other, msgspec.structs.replace(other, engine="openvino"))
    ]

    (found,) = differences(*reports)

    assert (found.what, found.before, found.after) == ("b runs in", "onnx fp32", "openvino fp32")


def test_an_unsteady_machine_is_told() -> None:
    (before, after) = noisy(2.0), noisy(2.0, wavering=0.5)

    assert before.warnings == ()
    (warning,) = compare(before, after).warnings
    assert warning.startswith("after: the machine was not steady")


def test_a_loaded_machine_is_told() -> None:
    loaded = msgspec.structs.replace(MACHINE, load_average=1.1)  # of two cores

    (warning,) = warnings_about(loaded, noisy(2.0).contenders[0].latencies)

    assert "load average was 1.1 on 2 cores" in warning


def test_compare_takes_files_and_folders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "after").mkdir()
    before = write(tmp_path / "a.json", noisy(3.0))
    write(tmp_path / "after" / "bench.json", noisy(8.0, threads=1))

    code = cli.run(
        ["bench", "--compare", str(before), str(tmp_path / "after"), "--output", str(tmp_path)]
    )

    shown = " ".join(capsys.readouterr().out.split())
    assert code == 0
    assert "SLOWER" in shown
    assert "1 of 1 figures changed" in shown
    assert "threads" in shown
    content = (tmp_path / "comparison.json").read_bytes()
    assert msgspec.json.decode(content, type=Comparison).changes[0].is_real


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "is no report"),
        (b"[1]", "is no report"),
        (b'{"a": 1}', "is no report"),
        (b'{"schema_version": 1}', "has schema version 1; .* reads 4. Measure again"),
        (b'{"schema_version": 4, "tea": 1}', "is damaged"),
    ],
)
def test_what_is_no_report_is_refused(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(content)

    with pytest.raises(DataError, match=reason):
        load_report(tmp_path / "x.json")


def test_a_report_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x\.json: No such file"):
        load_report(tmp_path / "x.json")
