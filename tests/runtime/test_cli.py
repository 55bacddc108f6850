"""Exit codes and messages of the `vlp` command."""

import errno
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Annotated

import pytest
import typer

from vlp_deploy import __version__, cli, extras
from vlp_deploy.errors import BundleError


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A verb `try` whose behaviour a test sets as `module.action`."""
    module = ModuleType("tried_verb")

    def attempt(number: Annotated[int, typer.Argument(help="Any number.")]) -> object:
        """Try something."""
        return module.action(number)

    module.attempt = attempt  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tried_verb", module)
    monkeypatch.setitem(cli.VERBS, "try", cli.Verb("tried_verb:attempt", "Try"))
    return module


def fail(error: BaseException) -> object:
    raise error


@pytest.mark.parametrize(
    ("category", "said"),
    [
        ("UserWarning", "vlp: warning: mind the gap\n"),
        ("RuntimeWarning", "<string>:1: RuntimeWarning: mind the gap\n"),
    ],
)
def test_warnings_for_users_are_one_line_without_code(category: str, said: str) -> None:
    program = (
        "import sys, warnings; from vlp_deploy import cli; "
        f"cli.run = lambda words: warnings.warn('mind the gap', {category}) or 0; cli.main()"
    )

    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )

    assert done.stderr == said


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([]) == 0

    shown = capsys.readouterr().out
    assert [name for name in cli.VERBS if f"\n  vlp {name} " not in shown] == []


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"vlp-deploy {__version__}\n"


def test_an_unknown_verb_is_usage_and_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["clasify"]) == 2
    assert "Did you mean 'classify'?" in capsys.readouterr().err


def test_a_verbs_return_value_is_the_exit_code(verb: ModuleType) -> None:
    verb.action = lambda number: number

    assert cli.run(["try", "1"]) == 1
    assert cli.run(["try", "0"]) == 0


def test_a_user_error_is_one_line_on_stderr(
    verb: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    verb.action = lambda number: fail(BundleError("no bundle at x"))

    assert cli.run(["try", "1"]) == 1
    assert capsys.readouterr().err == "vlp: no bundle at x\n"


def test_a_bad_option_is_usage(verb: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["try", "--no-such-option"]) == 2
    assert "no-such-option" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "extra"),
    [("torch", "train"), ("open_clip", "train"), ("onnx_ir", "export"), ("onnxruntime", "cpu")],
)
def test_a_missing_extra_says_how_to_install_it(
    verb: ModuleType,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    module: str,
    extra: str,
) -> None:
    missing = ModuleNotFoundError(f"No module named {module!r}", name=module)
    monkeypatch.setattr(extras, "import_module", lambda name: fail(missing))

    assert cli.run(["try", "1"]) == 3
    assert f"pip install 'vlp-deploy[{extra}]'" in capsys.readouterr().err


def test_every_extra_module_is_installed_by_its_extra() -> None:
    root = Path(__file__).parents[2]
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]

    for package, extra in extras.EXTRA_MODULES.values():
        listed = project["optional-dependencies"][extra]
        assert any(re.match(rf"{package}\b(?!-)", line) for line in listed), package


def test_an_error_of_the_system_is_one_line(
    verb: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    verb.action = lambda number: fail(PermissionError(errno.EACCES, "Permission denied", "a/b"))
    assert cli.run(["try", "1"]) == 1
    assert capsys.readouterr().err == "vlp: a/b: Permission denied\n"

    verb.action = lambda number: fail(OSError("no number"))
    assert cli.run(["try", "1"]) == 1
    assert capsys.readouterr().err == "vlp: no number\n"


@pytest.mark.parametrize("arguments", [["--version"], ["methods"]])
def test_a_full_disk_behind_stdout_is_one_line(arguments: list[str]) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "vlp_deploy", *arguments]

    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=environment)

    assert done.returncode == 1
    assert done.stderr == b"vlp: No space left on device\n"


def test_an_unrelated_missing_module_is_not_swallowed(
    verb: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = ModuleNotFoundError("No module named 'ours'", name="ours")
    monkeypatch.setattr(extras, "import_module", lambda name: fail(missing))

    with pytest.raises(ModuleNotFoundError, match="ours"):
        cli.run(["try", "1"])


def test_an_interrupt_is_130(verb: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    verb.action = lambda number: fail(KeyboardInterrupt())

    assert cli.run(["try", "1"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_help_of_a_verb_teaches(verb: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["try", "--help"]) == 0
    assert "Any number." in capsys.readouterr().out
