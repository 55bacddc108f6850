"""`auto`: the fastest engine that gives a bundle's own answers, and what happens when one does not.

The engines here are fake ones with a fault or a delay each.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from vlp_deploy import Classifier, cli
from vlp_deploy.cache import cache_folder
from vlp_deploy.engine_choice import BATCHES, Choice, known_choice
from vlp_deploy.engines import ENGINES
from vlp_deploy.engines.base import Arrays, EngineOptions
from vlp_deploy.engines.fake import FakeEngine
from vlp_deploy.errors import EngineError, MissingExtraError
from vlp_deploy.formats.bundle import Bundle

loads: Counter[str] = Counter()
held: list[FakeEngine] = []  # engines that were loaded and not closed


class Quick(FakeEngine):
    name = "quick"
    release: ClassVar[str] = "quick 1"

    def __init__(self, graph: Path, options: EngineOptions) -> None:
        super().__init__(graph, options)
        loads[self.name] += 1
        held.append(self)

    def close(self) -> None:
        super().close()
        if self in held:
            held.remove(self)

    @classmethod
    def installed_version(cls) -> str:
        return cls.release


class Slow(Quick):
    name = "slow"

    def _run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        time.sleep(0.01)  # a hundred times what the quick one takes
        return super()._run(inputs)


class Wrong(Quick):
    name = "wrong"

    def _run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        return {name: np.roll(value, 1, axis=-1) for name, value in super()._run(inputs).items()}


class Broken(Quick):
    name = "broken"

    def __init__(self, graph: Path, options: EngineOptions) -> None:
        raise EngineError("its library is damaged")


class Absent(Quick):
    name = "absent"

    @classmethod
    def is_installed(cls) -> bool:
        return False

    def __init__(self, graph: Path, options: EngineOptions) -> None:
        raise MissingExtraError("the absent engine", needs="a package", extra="absent")


@pytest.fixture(autouse=True)
def _no_loads() -> None:
    loads.clear()
    held.clear()


@pytest.fixture
def engines() -> Iterator[Callable[..., None]]:
    """Makes these classes all the engines that there are."""
    real = dict(ENGINES)

    def register(*classes: type[FakeEngine]) -> None:
        ENGINES.clear()
        ENGINES.update({cls.name: f"{__name__}:{cls.__name__}" for cls in classes})

    yield register
    ENGINES.clear()
    ENGINES.update(real)


def choices() -> list[Path]:
    return list((cache_folder() / "engine-choices").glob("*.json"))


def test_auto_takes_the_fastest(fake_bundle: Path, engines) -> None:
    engines(Slow, Quick)

    assert Classifier.load(fake_bundle).engine == "quick"


def test_candidates_take_turns_and_are_never_held_together(
    fake_bundle: Path, engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines(Slow, Quick)
    order: list[str] = []

    def load(self: Quick, graph: Path, options: EngineOptions) -> None:
        order.append(self.name)
        assert not held
        real(self, graph, options)

    real = Quick.__init__
    monkeypatch.setattr(Quick, "__init__", load)

    Classifier.load(fake_bundle)

    assert order == ["quick", "slow", "quick", "slow", "quick"]
    assert [engine.name for engine in held] == ["quick"]


def test_auto_remembers_and_loads_the_fastest_only(fake_bundle: Path, engines) -> None:
    engines(Slow, Quick)
    Classifier.load(fake_bundle)
    loads.clear()

    assert Classifier.load(fake_bundle).engine == "quick"
    assert loads == {"quick": 1}


def test_nothing_is_timed_with_one_candidate(fake_bundle: Path, engines) -> None:
    engines(Slow, Absent)

    assert Classifier.load(fake_bundle).engine == "slow"
    assert choices() == []


@pytest.mark.parametrize(
    "change",
    [
        lambda options, monkeypatch: options.update(threads=3),
        lambda options, monkeypatch: monkeypatch.setattr(Slow, "release", "slow 2"),
        lambda options, monkeypatch: monkeypatch.setattr(
            "vlp_deploy.engine_choice.processor_name", lambda: "another"
        ),
    ],
)
def test_what_speed_depends_on_is_measured_again(
    fake_bundle: Path, engines, change, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines(Slow, Quick)
    Classifier.load(fake_bundle)
    options: dict[str, Any] = {}
    change(options, monkeypatch)

    Classifier.load(fake_bundle, **options)

    assert len(choices()) == 2


@pytest.mark.parametrize("content", [b"", b"{", b'{"conditions": 1}', b"\xff" * 100])
def test_damaged_memory_is_measured_again(fake_bundle: Path, engines, content: bytes) -> None:
    engines(Slow, Quick)
    Classifier.load(fake_bundle)
    (path,) = choices()
    path.write_bytes(content)

    assert Classifier.load(fake_bundle).engine == "quick"
    assert msgspec.json.decode(path.read_bytes(), type=Choice).milliseconds.keys() == {
        "quick",
        "slow",
    }


def test_memory_of_other_conditions_is_not_believed(fake_bundle: Path, engines) -> None:
    engines(Slow, Quick)
    Classifier.load(fake_bundle)
    (path,) = choices()
    stale = msgspec.json.decode(path.read_bytes(), type=Choice)
    stale = msgspec.structs.replace(
        stale,
        conditions=msgspec.structs.replace(stale.conditions, bundle="another"),
        milliseconds={"slow": {1: 0.1}},
    )
    path.write_bytes(msgspec.json.encode(stale))

    assert Classifier.load(fake_bundle).engine == "quick"


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        (Broken, "broken is left out: its library is damaged"),
        (Wrong, "does not give this bundle's"),
    ],
)
def test_auto_warns_once_and_takes_the_next(
    fake_bundle: Path, engines, fault: type[FakeEngine], complaint: str
) -> None:
    engines(fault, Slow)

    with pytest.warns(UserWarning, match=complaint):
        assert Classifier.load(fake_bundle).engine == "slow"

    assert Classifier.load(fake_bundle).engine == "slow"  # warnings are errors here


def test_a_remembered_engine_that_breaks_later_is_passed_over(
    fake_bundle: Path, engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines(Slow, Quick)
    Classifier.load(fake_bundle)
    monkeypatch.setattr(Quick, "__init__", Broken.__init__)
    monkeypatch.setattr(Slow, "__init__", FakeEngine.__init__)

    with pytest.warns(UserWarning, match="quick is left out"):
        assert Classifier.load(fake_bundle).engine == "slow"


@pytest.mark.parametrize(("fault", "complaint"), [(Broken, "damaged"), (Wrong, "own answers")])
def test_a_named_engine_never_falls_back(
    fake_bundle: Path, engines, fault: type[FakeEngine], complaint: str
) -> None:
    engines(fault, Quick)

    with pytest.raises(EngineError, match=complaint):
        Classifier.load(fake_bundle, fault.name)
    assert not loads or not loads["quick"]


@pytest.mark.filterwarnings("ignore:engine")
def test_auto_raises_where_no_engine_passes(fake_bundle: Path, engines) -> None:
    engines(Broken, Wrong)

    with pytest.raises(EngineError, match="own answers"):
        Classifier.load(fake_bundle)
    assert choices() == []


def test_auto_without_any_engine_says_what_to_install(fake_bundle: Path, engines) -> None:
    engines(Absent)

    with pytest.raises(MissingExtraError, match=r"pip install 'vlp-deploy\[absent\]'"):
        Classifier.load(fake_bundle)


def test_bundle_exported_for_an_absent_engine_runs_in_another(changed_bundle, engines) -> None:
    engines(Absent, Quick)

    with pytest.warns(UserWarning, match="exported for absent, which is not.* quick runs"):
        assert Classifier.load(changed_bundle(engine="absent")).engine == "quick"


def test_precision_that_a_named_engine_lacks_is_refused_with_the_table(changed_bundle) -> None:
    with pytest.raises(EngineError, match=r"onnx does not take fp8.*\nengine +fp32"):
        Classifier.load(changed_bundle(precision="fp8"), "onnx")


class Small(Quick):
    name = "small"

    def _run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        if len(inputs["image"]) == BATCHES[-1]:
            raise EngineError("no memory is left")
        return super()._run(inputs)


def test_an_engine_that_fails_while_it_is_timed_is_passed_over(
    fake_bundle: Path, engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines(Small, Slow)
    monkeypatch.setattr("vlp_deploy.classes.towers.prove", lambda *_, **__: None)

    with pytest.warns(UserWarning, match="small is left out: no memory is left"):
        assert Classifier.load(fake_bundle).engine == "slow"


class Built(Quick):
    name = "built"
    builds = True


def test_auto_builds_for_minutes_only_what_a_bundle_is_for(
    fake_bundle: Path, changed_bundle, engines
) -> None:
    engines(Built, Slow)

    assert Classifier.load(fake_bundle).engine == "slow"
    assert known_choice(Bundle(fake_bundle), EngineOptions()) == ["slow"]
    assert Classifier.load(changed_bundle(engine="built")).engine == "built"
    engines(Built)
    assert Classifier.load(fake_bundle).engine == "built"


def test_cuda_leaves_out_engines_of_the_cpu(
    fake_bundle: Path, engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines(Quick)
    monkeypatch.setattr(Quick, "devices", ("cpu",))

    with pytest.raises(EngineError, match=r"no engine of this version runs fp32 .* on cuda"):
        Classifier.load(fake_bundle, device="cuda")


def test_known_choice_runs_nothing(fake_bundle: Path, engines) -> None:
    engines(Slow, Quick)
    bundle, options = Bundle(fake_bundle), EngineOptions()

    assert known_choice(bundle, options) == ["slow", "quick"]
    assert not loads

    Classifier.load(fake_bundle)
    found = known_choice(bundle, options)
    assert isinstance(found, Choice)
    assert list(found.milliseconds) == ["quick", "slow"]
    assert found.milliseconds["slow"].keys() == {1, 2}


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        ((Slow, Quick), "slow or quick: the first start will measure"),
        ((Quick,), "quick, the only installed engine"),
        ((Absent,), "nothing: absent is not installed"),
    ],
)
def test_inspect_says_what_runs_here(
    fake_bundle: Path, engines, classes, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    engines(*classes)

    assert cli.run(["inspect", str(fake_bundle)]) == 0

    assert said in " ".join(capsys.readouterr().out.split())


def test_inspect_shows_what_was_measured(
    fake_bundle: Path, engines, capsys: pytest.CaptureFixture[str]
) -> None:
    engines(Slow, Quick)
    Classifier.load(fake_bundle)

    assert cli.run(["inspect", str(fake_bundle)]) == 0

    shown = " ".join(capsys.readouterr().out.split())
    assert "quick (" in shown
    assert "ms at batch 2), as measured on this machine" in shown
