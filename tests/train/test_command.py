"""`vlp train` as it is typed: what it prints, where, and its exit codes."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlp_deploy.cli import run
from vlp_train import command
from vlp_train.fit import Step
from vlp_train.methods import METHODS


@pytest.fixture
def arguments(toy_data: Path, tiny_model: Any, tmp_path: Path) -> list[str]:
    return [
        *("train", str(toy_data), "--output", str(tmp_path / "run")),
        *("--model", tiny_model.model, "--pretrained", tiny_model.pretrained),
        *("--epochs", "2", "--batch-size", "6"),
    ]


def test_results_go_to_stdout_and_the_bar_to_stderr(
    arguments: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as if stderr were a terminal
    monkeypatch.setenv("COLUMNS", "120")

    code = run([*arguments, "--method", "coop", "-O", "context-tokens=2"])

    shown = capsys.readouterr()
    assert code == 0
    assert "coop on tiny: 3 classes" in shown.out
    assert "of 12 images right" in shown.out
    assert f"vlp export {tmp_path / 'run'} --engine onnx" in shown.out
    assert "\x1b" not in shown.out
    assert "2/2" in shown.err
    assert "accuracy" in shown.err
    assert len((tmp_path / "run/log.jsonl").read_text().splitlines()) == 2


def test_templates_are_averaged(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = arguments[: arguments.index("--epochs")]

    code = run([*kept, "--method", "zeroshot", "--template", "a {}.", "--template", "the {}."])

    assert code == 0
    assert "zeroshot on tiny" in capsys.readouterr().out
    header = (tmp_path / "run/prompt.safetensors").read_bytes()[8:]
    assert b"the {}." in header


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--method", "cop"], "Did you mean 'coop'"),
        (["-O", "context_tokens"], "is no NAME=VALUE"),
        (["-O", "contxt_tokens=3"], "Did you mean 'context_tokens'"),
        (["--shots", "0"], "shots must be at least 1"),
        (["--template", "a {}."], "no option of coop 'templates'"),
    ],
)
def test_a_users_error_is_one_line_on_stderr(
    arguments: list[str], extra: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run([*arguments, *extra])

    shown = capsys.readouterr()
    assert code == 1
    assert shown.out == ""
    assert message in shown.err
    assert len(shown.err.strip().splitlines()) == 1


def test_interrupting_says_how_to_go_on(
    arguments: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(request: Any, report: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "run_training", interrupted)
    monkeypatch.setattr("sys.argv", ["vlp", *arguments, "--force"])

    code = run([*arguments, "--force"])

    said = capsys.readouterr().err
    assert code == 130
    (hint,) = [line for line in said.splitlines() if "to go on" in line]
    assert hint.startswith(f"vlp: to go on: vlp train {arguments[1]}")
    assert hint.endswith(" --resume")
    assert "--force" not in hint


def test_the_bar_shows_loss_accuracy_rate_and_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")

    with command.progress_bar() as report:
        for step in (1, 2):
            report(
                Step(
                    epoch=3,
                    epochs=9,
                    step=step,
                    steps=2,
                    loss=1.234,
                    accuracy=0.5,
                    learning_rate=0.002,
                )
            )

    shown = capsys.readouterr()
    assert shown.out == ""
    for part in ("3/9", "1.234", "50.0%", "2.0e-03"):
        assert part in shown.err


def test_help_lists_every_option_with_its_default() -> None:
    shown = command.option_help()

    for part in ("position=end|middle|front", "class_specific=false", "visual_tokens=8", "pre_ln"):
        assert part in shown
    assert "templates=" not in shown  # has a flag of its own
    for name, entry in METHODS.items():
        for field in fields(entry.config):  # type: ignore[arg-type]
            assert field.name in shown or field.name == "templates", (name, field.name)


def test_every_line_of_the_log_is_json(arguments: list[str], tmp_path: Path) -> None:
    run([*arguments, "-O", "context_tokens=2"])

    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]

    assert [sorted(line) for line in lines] == [
        ["accuracy", "epoch", "learning_rate", "loss", "seconds"]
    ] * 2


def test_help_has_sections_and_ends_with_the_methods(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "--help"]) == 0

    shown = capsys.readouterr().out
    titles = ["Arguments:", "Options:", "Data:", "Model:", "Schedule:", "Images:", "Memory"]
    places = [shown.index(f"\n{title}") for title in titles]
    assert places == sorted(places)
    assert shown.index("--accumulate") > shown.index("\nSchedule:")
    methods = shown[shown.index("Methods, what they learn") :].splitlines()
    for name in METHODS:
        (row,) = [line for line in methods if line.startswith(f"  {name} ")]
        assert METHODS[name].summary.split()[0] in row
    assert max(map(len, shown.splitlines())) <= 80


def test_base_and_new_accuracy_and_their_mean_are_told(
    tiny_model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, colour in (("a", 10), ("b", 90), ("c", 160), ("d", 250)):
        for index in range(3):
            picture = tmp_path / f"data/{name}/{index}.png"
            picture.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (colour, 99 + index, 255 - colour)).save(picture)
    words = ["train", str(tmp_path / "data"), "--output", str(tmp_path / "run"), "--subset", "base"]
    words += ["--model", tiny_model.model, "--pretrained", tiny_model.pretrained]

    code = run([*words, "--epochs", "1", "--shots", "1", "--cache-features"])

    shown = capsys.readouterr().out
    assert code == 0
    assert "of 4 images right, 2 classes" in shown  # base: what was not drawn
    assert "of 6 images right, 2 classes" in shown  # new: all of them
    assert "harmonic mean of base and new: " in shown
    assert "cached: each image as served, never cropped" in shown
