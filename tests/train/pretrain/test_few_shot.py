"""Few-shot curves are drawn from nested shots, trained as they say, and can fail."""

import csv
from pathlib import Path

import pytest

from vlp_deploy.data.dataset import load_dataset
from vlp_deploy.embedded import emoji_path
from vlp_deploy.formats.checkpoint import PromptCheckpoint
from vlp_train.pretrain.few_shot import (
    CONTEXTS,
    Setting,
    curve,
    curve_table,
    nested_shots,
    rises,
    split_file,
)


@pytest.fixture
def three_classes(tmp_path: Path) -> Path:
    """Three classes of two training styles and three test styles, as a list."""
    data = load_dataset(emoji_path() / "split_zhou_base.json")
    path = tmp_path / "three.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        for split in ("train", "test"):
            samples = [each for each in data.split(split) if each.label < 3]
            writer.writerows((each.path, data.class_names[each.label], split) for each in samples)
    return path


@pytest.mark.parametrize("context", CONTEXTS)
def test_a_curve_trains_the_context_it_is_asked_for(
    three_classes: Path, tmp_path: Path, context: str
) -> None:
    contexts, tokens = {"class-specific": (3, 1), "unified": (1, 6)}[context]
    setting = Setting(data=three_classes, output=tmp_path, context=context, pretrained=None)
    found = curve(setting, shots=(1,), seeds=(1,), epochs=2)
    assert {shots: len(each) for shots, each in found.items()} == {0: 1, 1: 1}
    checkpoint = PromptCheckpoint.load(tmp_path / f"three-1-1-{context}")
    (prompts,) = (value for name, value in checkpoint.tensors.items() if name.startswith("text."))
    assert prompts.size == contexts * tokens * 192
    assert checkpoint.header.class_names == load_dataset(three_classes).class_names


def test_more_shots_contain_fewer_of_the_same_seed() -> None:
    samples = load_dataset(emoji_path() / "split_zhou_base.json").split("train")
    one, two, other = (
        nested_shots(samples, shots=shots, seed=seed) for shots, seed in ((1, 1), (2, 1), (1, 2))
    )
    assert [sample.label for sample in one] == list(range(122))
    assert set(one) < set(two)
    assert len(two) == 244
    assert one != other


def test_a_few_shot_split_keeps_classes_and_all_test_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(emoji_path())  # the list is made of, and the shots are elsewhere
    data = load_dataset(Path("split_zhou_base.json"))
    path = tmp_path / "shots.csv"
    path.write_bytes(split_file(data, shots=2, seed=1))
    drawn = load_dataset(path)
    assert drawn.class_names == data.class_names
    expected = {(each.path.absolute(), each.label) for each in data.split("test")}
    assert {(each.path, each.label) for each in drawn.split("test")} == expected
    assert len(drawn.split("train")) == 244


def test_curve_rises_only_if_every_mean_does() -> None:
    assert rises({0: [0.125], 2: [0.25, 0.5], 1: [0.125, 0.25]})
    assert not rises({0: [0.125], 1: [0.25, 0.25], 2: [0.125, 0.375]})
    assert "| 2 | 25.0, 50.0 | 37.5 |" in curve_table({0: [0.125], 2: [0.25, 0.5]})
