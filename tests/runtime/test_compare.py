"""What changed between two reports, when the answer is known."""

import numpy as np
import pytest

from vlp_deploy.errors import DataError
from vlp_deploy.measuring.records import BenchReport, ContenderResult
from vlp_deploy.measuring.compare import compare, differences
from vlp_deploy.measuring.timing import Doubles, Latency, Machine


def report(times_ms: Doubles, work_ms: Doubles, *, batch: int = 1, threads: int = 2) -> BenchReport:
    latency = Latency.of(times_ms, work_ms, batch=batch)
    return BenchReport(
        bundle="bundle",
        method="coop",
        engine="onnx",
        precision="fp32",
        classes=3,
        gflops_per_image=1.0,
        threads=threads,
        machine=Machine(cpu="any", cores=2, load_average=0.1, python="3.11", packages={"a": "1"}),
        contenders=(ContenderResult(name="vlp-deploy", latencies=(latency,)),),
    )


def noisy(milliseconds: float, *, speed: float = 1.0, seed: int = 0) -> BenchReport:
    """A run of 200 calls on a machine that takes `speed` times as long and wavers by a tenth."""
    random = np.random.default_rng(seed)
    drift = speed * (1 + 0.2 * np.sin(np.arange(200) / 30))
    work, times = (drift * random.normal(ms, ms / 10, 200) for ms in (1.0, milliseconds))
    return report(times, work)


def test_a_delay_is_found_though_the_machine_got_faster() -> None:
    (change,) = compare(noisy(3.0), noisy(8.0, speed=0.4, seed=1))

    assert change.is_real
    assert change.ratio == pytest.approx(8 / 3, rel=0.1)
    assert change.after < 1.5 * change.before  # the clock alone would not tell


@pytest.mark.parametrize("speed", [0.5, 1.0, 3.0])
def test_the_same_code_has_not_changed(speed: float) -> None:
    found = [
        compare(noisy(3.0, seed=seed), noisy(3.0, speed=speed, seed=100 + seed))[0].is_real
        for seed in range(40)
    ]

    assert sum(found) <= 2  # 1 of 20


def test_a_report_equals_itself() -> None:
    (change,) = compare(noisy(3.0), noisy(3.0))

    assert change.ratio == 1.0
    assert change.low < 1 < change.high
    assert not change.is_real


def test_reports_of_other_things_cannot_be_compared() -> None:
    times = np.full(20, 2.0)

    with pytest.raises(DataError, match="vlp-deploy at 1 against vlp-deploy at 8"):
        compare(report(times, times), report(times, times, batch=8))


def test_other_conditions_are_named() -> None:
    times = np.full(20, 2.0)

    assert differences(report(times, times), report(times, times)) == ()
    assert differences(report(times, times), report(times, times, threads=1)) == ("threads: 2 → 1",)
