"""`vlp export BUNDLE`: engines of a bundle, here or for a GPU elsewhere. The GPU is fake."""

import sys
from pathlib import Path

import pytest

from tests.runtime.fake_tensorrt import FakeDriver, fake_build, fake_module
from vlp_deploy import cli
from vlp_deploy.engines import tensorrt
from vlp_deploy.engines.tensorrt.builder import BuildReport, BuildRequest
from vlp_deploy.engines.tensorrt.cuda import first_gpu
from vlp_deploy.engines.tensorrt.plans import plans_folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLP_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[BuildRequest]:
    """A TensorRT for RTX without a GPU; what it was asked to build."""
    requests: list[BuildRequest] = []

    def build(request: BuildRequest) -> BuildReport:
        requests.append(request)
        return fake_build(request)

    monkeypatch.setattr(tensorrt, "build_plan", build)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", fake_module(FakeDriver(devices=0)))
    return requests


def export(*arguments: object) -> int:
    return cli.run(["export", *map(str, arguments)])


def test_plans_for_a_gpu_elsewhere_are_built_once(
    fake_bundle: Path, built: list[BuildRequest], capsys: pytest.CaptureFixture[str]
) -> None:
    ahead = (fake_bundle, "--engine", "tensorrt-rtx", "--compute-capability", "8.9")

    assert export(*ahead) == 0
    assert export(*ahead, "--compute-capability", "8.6") == 0

    assert [(Path(r.graph).stem, r.compute_capability) for r in built] == [
        *(("image", "8.9"), ("text", "8.9")),
        *(("image", "8.6"), ("text", "8.6")),
    ]
    printed = capsys.readouterr().out
    assert "never run before the first load" in printed
    assert all(role in printed for role in ("image", "text"))


def test_plans_can_be_carried_away(
    fake_bundle: Path, built: list[BuildRequest], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "carried"
    ahead = (fake_bundle, "--engine", "tensorrt-rtx", "--compute-capability", "8.9")

    assert export(*ahead, "--output", target) == 0

    names = sorted(path.name for path in plans_folder().iterdir() if path.is_dir())
    assert sorted(path.name for path in (target / "tensorrt").iterdir()) == names
    assert f"VLP_CACHE={target}" in capsys.readouterr().out
    before = len(built)
    assert export(*ahead, "--compute-capability", "8.6", "--output", target) == 1
    assert "exists already" in capsys.readouterr().err
    assert len(built) == before  # said before minutes are spent


@pytest.mark.parametrize(
    ("options", "code", "complaint"),
    [
        (("--compute-capability", "8.9"), 2, "is for --engine tensorrt-rtx; engine 'tensorrt'"),
        (("--engine", "fake", "--output", "x"), 2, "--output needs --precision"),
        (
            ("--engine", "tensorrt-rtx", "--compute-capability", "9.0"),
            1,
            "'9.0' cannot be built for; expected one of 8.6, 8.9",
        ),
        (("--engine", "tensorrtx"), 1, "Did you mean 'tensorrt"),
        (("--engine", "tensorrt-rtx"), 1, "no NVIDIA driver on this machine"),
        (("--engine", "tensorrt"), 3, "pip install 'vlp-deploy[tensorrt]'"),
    ],
)
def test_what_cannot_be_built_says_why(
    fake_bundle: Path,
    built: list[BuildRequest],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    code: int,
    complaint: str,
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setattr("vlp_deploy.engines.tensorrt.cuda.LIBRARY", "libno-such-driver.so")
    monkeypatch.setattr(tensorrt.TensorRtEngine, "reads", ".fake")
    first_gpu.cache_clear()

    assert export(fake_bundle, *options) == code

    assert complaint in capsys.readouterr().err
    assert built == []


def test_an_engine_of_this_machine_is_loaded_and_proven(
    fake_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(fake_bundle, "--engine", "fake") == 0

    assert "image, text ready in fake 1, proven by the bundle's own images" in (
        capsys.readouterr().out
    )


def test_help_of_a_bundle_is_its_own(fake_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(fake_bundle, "--help") == 0

    assert "--compute-capability" in capsys.readouterr().out
