"""Rules of the house that no linter knows."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

import vlp_deploy

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    path for folder in ("vlp_deploy", "train", "export") for path in (ROOT / folder).rglob("*.py")
)
pytestmark = pytest.mark.skipif(
    not (ROOT / "pyproject.toml").exists(), reason="the sources are not here: an installed copy"
)


def test_modules_stay_under_500_lines() -> None:
    lengths = {path.name: len(path.read_text().splitlines()) for path in SOURCES}

    assert len(lengths) > 20
    assert {name: n for name, n in lengths.items() if n > 500} == {}


def test_function_bodies_stay_under_80_lines() -> None:
    long = [
        f"{path.name}:{node.name}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
        and (node.end_lineno or 0) - node.body[0].lineno >= 80  # a verb's options are its signature
    ]

    assert long == []


def test_every_module_says_what_it_is() -> None:
    silent = [path.name for path in SOURCES if not ast.get_docstring(ast.parse(path.read_text()))]

    assert silent == []


def test_only_the_restricted_reader_unpickles() -> None:
    loads = re.compile(r"\bpickle\b|allow_pickle=True|weights_only=False")
    found = [path.name for path in SOURCES if loads.search(path.read_text())]

    assert found == ["unpickler.py"]


def test_changelog_starts_with_this_version_or_unreleased() -> None:
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)

    assert headings[0] in ("Unreleased", vlp_deploy.__version__)
    assert len(headings) == len(set(headings))


def test_the_demo_extra_installs_everything_the_demo_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert project["optional-dependencies"]["demo"] == ["vlp-deploy[cpu,export,train]"]
