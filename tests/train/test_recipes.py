"""Recipes: their text is their command, and their smoke form trains."""

import importlib
import re
from pathlib import Path

import pytest

from vlp_deploy.checkpoint import PromptCheckpoint
from vlp_deploy.cli import run
from vlp_train.methods import METHODS
from vlp_train.recipes import Recipe

README = Path(__file__).parents[2] / "train" / "README.md"


def recipe(method: str) -> Recipe:
    found: Recipe = importlib.import_module(f"vlp_train.recipes.{method}").RECIPE
    return found


def docstring(method: str) -> str:
    return " ".join((importlib.import_module(f"vlp_train.recipes.{method}").__doc__ or "").split())


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_recipe_that_quotes_its_command(method: str) -> None:
    text = docstring(method).replace(" \\ ", " ")

    assert recipe(method).command() in text


@pytest.mark.parametrize("method", METHODS)
def test_every_recipe_says_time_and_accuracy(method: str) -> None:
    assert re.search(r"\d+ (s|seconds|minutes)\b", docstring(method))
    assert re.search(r"\d+\.\d %", docstring(method))


@pytest.mark.parametrize("method", METHODS)
def test_the_smoke_form_ends_in_a_checkpoint(method: str, tmp_path: Path) -> None:
    assert run(recipe(method).arguments(tmp_path / "run", smoke=True)) == 0

    header = PromptCheckpoint.load(tmp_path / "run").header
    assert header.method == method
    assert header.backbone.name == "vlp-tiny"
    assert len(header.class_names) == header.provenance["metrics"]["test"]["classes"] > 200


@pytest.mark.parametrize("method", METHODS)
def test_the_readme_has_a_row_for_every_recipe(method: str) -> None:
    (row,) = [line for line in README.read_text().splitlines() if line.startswith(f"| `{method}`")]
    (accuracy,) = re.findall(r"(\d+\.\d %) of 697", docstring(method))

    assert accuracy in row
