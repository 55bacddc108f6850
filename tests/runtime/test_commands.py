"""`vlp verify`, `vlp inspect` and `vlp methods` on a bundle."""

from pathlib import Path

import msgspec
import pytest

from vlp_deploy import cli
from vlp_deploy.formats.bundle import Bundle, Manifest
from vlp_deploy.formats.methods import METHODS
from vlp_deploy.formats.structures import Coupled


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_verify_accepts_an_intact_bundle(
    fake_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["verify", str(fake_bundle)]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(list(fake_bundle.iterdir())) - 1  # the list does not list itself
    assert all(line.startswith("ok ") for line in lines)


def test_verify_finds_a_flipped_byte_in_any_file(
    fake_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in sorted(fake_bundle.iterdir()):
        whole = path.read_bytes()
        flip_a_byte(path)

        assert cli.run(["verify", str(fake_bundle)]) == 1
        assert path.name in capsys.readouterr().err

        path.write_bytes(whole)
    assert cli.run(["verify", str(fake_bundle)]) == 0


def test_inspect_shows_classes_and_graphs(
    fake_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["inspect", str(fake_bundle)]) == 0

    shown = capsys.readouterr().out
    assert "4: red, green, blue, grey" in shown
    assert "image.fake" in shown


def test_inspect_prints_names_as_they_are(
    changed_bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    odd = tmp_path / "[bold]:cat:"
    changed_bundle(classes=("[red]a[/red]", ":dog:", "[/]", "d")).rename(odd)

    assert cli.run(["inspect", str(odd)]) == 0

    shown = capsys.readouterr().out
    assert str(odd) in shown
    assert "[red]a[/red], :dog:, [/], d" in shown


def test_inspect_says_that_answers_depend_on_the_batch(
    changed_bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = changed_bundle(structure=Coupled(depth=9, context="batch", batch_size=16))

    assert cli.run(["inspect", str(bundle)]) == 0

    said = capsys.readouterr().out
    assert "coupled, depth=9, context=batch, fusing=mean, batch_size=16" in said


def test_inspect_shows_what_was_calibrated(
    changed_bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    fitted = changed_bundle(reject_threshold=0.25, class_thresholds=(1.0, 2.5, -3.0, 0.0))
    plain = changed_bundle()

    assert cli.run(["inspect", str(fitted)]) == cli.run(["inspect", str(plain)]) == 0

    shown = capsys.readouterr().out
    assert shown.count("below a probability of 0.25") == 1
    assert shown.count("from logits of -3 to 2.5 on, by class") == 1


def test_inspect_has_no_row_for_plain_prompts(
    fake_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["inspect", str(fake_bundle)]) == 0
    assert "structure" not in capsys.readouterr().out


def test_inspect_json_is_the_manifest(
    fake_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["inspect", str(fake_bundle), "--json"]) == 0

    manifest = msgspec.json.decode(capsys.readouterr().out, type=Manifest)
    assert manifest == Bundle(fake_bundle).manifest


def test_inspect_says_what_it_expected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["inspect", str(tmp_path / "nothing")]) == 1
    assert "no prompt checkpoint" in capsys.readouterr().err


def test_methods_tells_all_of_every_method(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")

    assert cli.run(["methods"]) == 0

    shown = capsys.readouterr().out
    words = " ".join(shown.split())
    for name, method in METHODS.items():
        assert f"{name} {method.paper}" in words
        for text in (method.learns, method.export, method.cost, method.new_classes):
            assert text in words
    assert max(map(len, shown.splitlines())) <= 60
