"""Recipes: every method has one that trains, and the table of what they reach has them all."""

from pathlib import Path

import pytest

from vlp_deploy.data.dataset import load_dataset
from vlp_deploy.formats.checkpoint import PromptCheckpoint
from vlp_train import recipes
from vlp_train.methods import METHODS
from vlp_train.recipes import RECIPES

README = Path(__file__).parents[2] / "train" / "README.md"


def test_every_method_has_a_recipe() -> None:
    assert {recipe.method for recipe in RECIPES.values()} == set(METHODS)


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in ("coop", "ivlp")])
def test_the_smoke_form_ends_in_a_checkpoint(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = Path(recipes.DATA).parents[0] / "smoke.csv"
    emoji = load_dataset(recipes.embedded.emoji_path() / "split_zhou_styles.json")
    (tmp_path / few.name).write_text(
        "path,label,split\n"
        + "".join(
            f"{sample.path},{emoji.class_names[sample.label]},{split}\n"
            for split in ("train", "test")
            for sample in emoji.split(split)
            if sample.label < 12
        )
    )
    monkeypatch.setattr(recipes, "DATA", str(few))
    monkeypatch.setattr(recipes.embedded, "emoji_path", lambda: tmp_path)

    assert recipes.train(name, tmp_path / "runs", smoke=True) == 0

    header = PromptCheckpoint.load(tmp_path / "runs" / name).header
    assert header.method == RECIPES[name].method
    assert header.backbone.name == "vlp-tiny"
    assert header.provenance["metrics"]["test"]["classes"] == 12


def test_commands_can_be_typed(capsys: pytest.CaptureFixture[str]) -> None:
    text = recipes.command("dpc-coop")

    assert text.startswith("vlp train vlp_deploy/embedded/emoji/split_zhou_styles.json ")
    assert text.endswith("--stage1 runs/coop --output runs/dpc-coop")


def test_the_table_of_results_has_every_recipe() -> None:
    rows = [line.split("|")[1].strip() for line in README.read_text().splitlines() if " ± " in line]

    assert rows == list(RECIPES)
