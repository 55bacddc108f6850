"""Bundles on disk: what is written comes back, and what was tampered with is refused by name."""

import json
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

from vlp_deploy.errors import BundleError, IntegrityError
from vlp_deploy.formats.bundle import (
    CLASSES,
    GOLDEN,
    MANIFEST,
    PROMPTS,
    VOCABULARY,
    Bundle,
    BundleContents,
    bundle_files,
    check_target,
    write_bundle,
)
from vlp_deploy.formats.fake_bundle import write_fake_bundle
from vlp_deploy.formats.sealed import CHECKSUMS, seal

FILES = (MANIFEST, CLASSES, PROMPTS, GOLDEN, VOCABULARY, "image.fake", "text.fake")


def contents_of(path: Path) -> BundleContents:
    """A written bundle, in memory again."""
    bundle = Bundle(path)
    return BundleContents(
        manifest=bundle.manifest,
        graphs={
            graph.file: bundle.files.read(graph.file) for graph in bundle.manifest.graphs.values()
        },
        prompts=bundle.prompts(),
        bank=bundle.class_bank(),
        golden=bundle.golden(),
        vocabulary=bundle.vocabulary(),
    )


def reseal(path: Path, **changed: bytes | None) -> None:
    """Change files and forge the list of hashes, as somebody with bad intentions would."""
    for name, content in changed.items():
        file = path / name.replace("__", ".")
        file.unlink() if content is None else file.write_bytes(content)
    names = (file.name for file in path.iterdir() if file.name != CHECKSUMS)
    (path / CHECKSUMS).write_bytes(seal({name: (path / name).read_bytes() for name in names}))


def forged_manifest(path: Path, **fields: object) -> None:
    manifest = json.loads((path / MANIFEST).read_bytes())
    reseal(path, manifest__json=json.dumps(manifest | fields).encode())


def use_everything(path: Path) -> None:
    bundle = Bundle(path)
    for role in bundle.manifest.graphs:
        bundle.graph_path(role)
    bundle.class_bank(), bundle.prompts(), bundle.golden(), bundle.vocabulary()


def test_what_was_written_is_read(fake_bundle: Path, tmp_path: Path) -> None:
    contents = contents_of(fake_bundle)

    write_bundle(contents, tmp_path / "copy", replace=False)

    copy = contents_of(tmp_path / "copy")
    assert copy.manifest == contents.manifest
    assert copy.graphs == contents.graphs
    np.testing.assert_array_equal(copy.bank.embeddings, contents.bank.embeddings)
    assert copy.bank.inputs.keys() == contents.bank.inputs.keys()
    for name, array in contents.bank.inputs.items():
        np.testing.assert_array_equal(copy.bank.inputs[name], array)
    np.testing.assert_array_equal(copy.golden.pixels, contents.golden.pixels)
    assert {file.name for file in (tmp_path / "copy").iterdir()} == {*FILES, CHECKSUMS}


def test_empty_prompts_keep_their_shape(fake_bundle: Path, tmp_path: Path) -> None:
    none = np.zeros((1, 0, 16), np.float32)
    contents = contents_of(fake_bundle)
    changed = BundleContents(**{**vars(contents), "prompts": {"text.prompts": none}})

    write_bundle(changed, tmp_path / "copy", replace=False)

    assert Bundle(tmp_path / "copy").prompts()["text.prompts"].shape == (1, 0, 16)


@pytest.mark.parametrize("position", [0, 0.5, 1])
@pytest.mark.parametrize("name", FILES)
def test_flipped_byte_names_its_file(fake_bundle: Path, name: str, position: float) -> None:
    content = bytearray((fake_bundle / name).read_bytes())
    content[int(position * (len(content) - 1))] ^= 0x01
    (fake_bundle / name).write_bytes(content)

    with pytest.raises(IntegrityError, match=f"{name} has changed since export"):
        use_everything(fake_bundle)


@pytest.mark.parametrize("name", FILES)
def test_truncated_file_names_itself(fake_bundle: Path, name: str) -> None:
    content = (fake_bundle / name).read_bytes()
    (fake_bundle / name).write_bytes(content[: len(content) // 2])

    with pytest.raises(IntegrityError, match=f"{name} has changed since export"):
        use_everything(fake_bundle)


@pytest.mark.parametrize("name", FILES)
def test_missing_file_names_itself(fake_bundle: Path, name: str) -> None:
    (fake_bundle / name).unlink()

    with pytest.raises(IntegrityError, match=f"{name} is missing"):
        use_everything(fake_bundle)


@pytest.mark.parametrize("name", FILES)
def test_symbolic_link_is_refused_even_to_the_same_bytes(
    fake_bundle: Path, tmp_path: Path, name: str
) -> None:
    (fake_bundle / name).rename(tmp_path / "elsewhere")
    (fake_bundle / name).symlink_to(tmp_path / "elsewhere")

    with pytest.raises(IntegrityError, match=f"{name} is missing or not a plain file"):
        use_everything(fake_bundle)


@pytest.mark.parametrize("outside", ["../image.fake", "/etc/passwd", "a\\..\\b"])
def test_graph_outside_the_folder_is_refused(fake_bundle: Path, outside: str) -> None:
    shutil.copyfile(fake_bundle / "image.fake", fake_bundle.parent / "image.fake")
    graphs = json.loads((fake_bundle / MANIFEST).read_bytes())["graphs"]
    graphs["image"]["file"] = outside
    forged_manifest(fake_bundle, graphs=graphs)

    with pytest.raises(IntegrityError, match="outside itself"):
        Bundle(fake_bundle).graph_path("image")


def test_graph_that_was_not_exported_is_refused(fake_bundle: Path) -> None:
    graphs = json.loads((fake_bundle / MANIFEST).read_bytes())["graphs"]
    graphs["image"]["file"] = "new.fake"
    forged_manifest(fake_bundle, graphs=graphs)
    (fake_bundle / "new.fake").write_bytes((fake_bundle / "image.fake").read_bytes())

    with pytest.raises(IntegrityError, match=r"new\.fake is not listed"):
        Bundle(fake_bundle).graph_path("image")


def test_unknown_schema_says_which_version_reads_it(fake_bundle: Path) -> None:
    forged_manifest(fake_bundle, schema_version=99)

    with pytest.raises(BundleError, match="schema version 99; this version reads 1"):
        Bundle(fake_bundle)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"surprise": 1}, "unknown field `surprise`"),
        ({"logit_scale": "big"}, "Expected `float`, got `str`"),
        ({"precision": "fp7"}, "Invalid enum value 'fp7'"),
    ],
)
def test_manifest_with_other_fields_is_refused(
    fake_bundle: Path, fields: dict[str, object], complaint: str
) -> None:
    forged_manifest(fake_bundle, **fields)

    with pytest.raises(BundleError, match=complaint):
        Bundle(fake_bundle)


@pytest.mark.parametrize("content", [b"", b"[1]", b"\x80\x04K\x01.", b'{"schema_version": 1}'])
def test_manifest_that_is_none_is_refused(fake_bundle: Path, content: bytes) -> None:
    reseal(fake_bundle, manifest__json=content)

    with pytest.raises(BundleError, match=r"manifest\.json is not a manifest|schema version"):
        Bundle(fake_bundle)


def test_stray_file_is_reported_and_never_read(fake_bundle: Path) -> None:
    (fake_bundle / "stray.onnx").write_bytes(b"x")

    complaints = {name: text for name, text in Bundle(fake_bundle).files.verify() if text}

    assert list(complaints) == ["stray.onnx"]
    with pytest.raises(IntegrityError, match="not listed"):
        Bundle(fake_bundle).files.read("stray.onnx")


def test_pickle_disguised_as_golden_inputs_is_refused(fake_bundle: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "evil.npz", pixels=np.array([print], dtype=object))
    reseal(fake_bundle, golden__npz=(tmp_path / "evil.npz").read_bytes())

    with pytest.raises(BundleError, match=r"golden\.npz cannot be read"):
        Bundle(fake_bundle).golden()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04rubbish", b"\x80\x04K\x01."])
def test_rubbish_for_golden_inputs_is_refused(fake_bundle: Path, content: bytes) -> None:
    reseal(fake_bundle, golden__npz=content)

    with pytest.raises(BundleError, match=r"golden\.npz cannot be read"):
        Bundle(fake_bundle).golden()


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x80\x04K\x01."])
def test_rubbish_for_tensors_is_refused(fake_bundle: Path, content: bytes) -> None:
    reseal(fake_bundle, classes__safetensors=content)

    with pytest.raises(BundleError, match=r"classes\.safetensors cannot be read"):
        Bundle(fake_bundle).class_bank()


def test_missing_tensor_is_named(fake_bundle: Path) -> None:
    reseal(fake_bundle, classes__safetensors=(fake_bundle / PROMPTS).read_bytes())

    with pytest.raises(BundleError, match="has no tensor 'class_matrix'"):
        Bundle(fake_bundle).class_bank()


def test_unknown_role_lists_those_there_are(fake_bundle: Path) -> None:
    with pytest.raises(BundleError, match="no 'image_new' graph; it has image, text"):
        Bundle(fake_bundle).graph_path("image_new")


def test_equal_contents_make_equal_files(fake_bundle: Path) -> None:
    contents = contents_of(fake_bundle)

    assert bundle_files(contents) == bundle_files(contents)
    digest = Bundle(fake_bundle).digest
    write_bundle(contents, fake_bundle, replace=True)
    assert Bundle(fake_bundle).digest == digest


def test_existing_target_is_kept_unless_replaced(fake_bundle: Path) -> None:
    contents = contents_of(fake_bundle)
    other = BundleContents(
        **{
            **vars(contents),
            "manifest": msgspec.structs.replace(contents.manifest, temperature=2.0),
        }
    )

    with pytest.raises(BundleError, match="pass --force"):
        write_bundle(other, fake_bundle, replace=False)
    assert Bundle(fake_bundle).manifest.temperature == 1.0

    write_bundle(other, fake_bundle, replace=True)
    assert Bundle(fake_bundle).manifest.temperature == 2.0
    assert [path.name for path in fake_bundle.parent.iterdir()] == ["bundle"]


def test_only_bundles_and_empty_folders_are_ever_replaced(tmp_path: Path) -> None:
    photos, file, link, empty = (tmp_path / name for name in ("photos", "file", "link", "empty"))
    photos.mkdir()
    (photos / "holiday.jpg").write_bytes(b"precious")
    file.write_bytes(b"precious")
    link.symlink_to(photos)
    empty.mkdir()

    for target in (photos, file, link):
        with pytest.raises(BundleError, match="is no bundle, so --force does not replace it"):
            write_fake_bundle(target, ("one",), replace=True)
    check_target(tmp_path / "new", replace=False)
    write_fake_bundle(empty, ("one",), replace=True)

    assert (photos / "holiday.jpg").read_bytes() == file.read_bytes() == b"precious"
    assert Bundle(empty).manifest.classes == ("one",)


def test_interrupted_write_leaves_nothing(
    fake_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = contents_of(fake_bundle)

    def full_disk(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(BundleError, match="cannot be written: No space left"):
        write_bundle(contents, tmp_path / "copy", replace=False)

    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
