"""The default bundle: unpacked into the cache, and again where the cache was damaged."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from vlp_deploy import Classifier, cli, embedded
from vlp_deploy.errors import BundleError, IntegrityError
from vlp_deploy.formats.sealed import CHECKSUMS


@pytest.fixture
def installed(fake_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation whose stripped bundle is the fake one, with nothing to graft."""
    (fake_bundle / embedded.GRAFTS).write_text("{}")
    save_file({"w": np.zeros(1, np.float32)}, weights := tmp_path / "weights.safetensors")
    monkeypatch.setattr(embedded, "stripped_bundle_path", lambda: fake_bundle)
    monkeypatch.setattr(embedded, "weights_path", lambda: weights)
    return fake_bundle


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", [CHECKSUMS, embedded.GRAFTS, "../weights.safetensors"])
def test_installation_without_the_bundle_is_explained(
    installed: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (installed / name).unlink()

    with pytest.raises(BundleError, match=r"no default bundle: .* is missing.*--bundle"):
        embedded.default_bundle()
    assert cli.run(["inspect"]) == 1
    assert "no default bundle" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["image.fake", "classes.safetensors", "golden.npz"])
def test_damaged_copy_is_unpacked_again_on_load(installed: Path, name: str) -> None:
    damage(embedded.default_bundle() / name)

    assert Classifier.load().classes == ("red", "green", "blue", "grey")
    assert (embedded.default_bundle() / name).read_bytes() == (installed / name).read_bytes()


@pytest.mark.parametrize("name", ["text.fake", "bpe_simple_vocab_16e6.txt.gz"])
def test_damaged_copy_is_unpacked_again_for_new_classes(installed: Path, name: str) -> None:
    classifier = Classifier.load()
    damage(embedded.default_bundle() / name)

    assert classifier.with_classes(["cat", "dog"]).classes == ("cat", "dog")
    assert (embedded.default_bundle() / name).read_bytes() == (installed / name).read_bytes()


@pytest.mark.parametrize("hurt", [damage, Path.unlink])
@pytest.mark.parametrize("name", [CHECKSUMS, "manifest.json"])
def test_copy_that_does_not_open_is_unpacked_again(installed: Path, name: str, hurt) -> None:
    hurt(embedded.default_bundle() / name)

    assert cli.run(["inspect"]) == 0
    assert cli.run(["verify"]) == 0


def test_damage_in_the_installation_itself_is_said_and_not_retried_for_ever(
    installed: Path,
) -> None:
    damage(embedded.default_bundle() / "image.fake")
    damage(installed / "image.fake")

    with pytest.raises(IntegrityError, match=r"embedded bundle's image\.fake.*Install"):
        Classifier.load()


def test_verify_reports_damage_to_the_copy(
    installed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = embedded.default_bundle()
    damage(folder / "image.fake")

    assert cli.run(["verify"]) == 1

    shown = capsys.readouterr()
    assert "BAD image.fake" in shown.out
    assert f"delete {folder}" in shown.err
