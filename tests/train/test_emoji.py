"""The emoji builder on made-up icon sets, and the data set that it built for the package."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

import vlp_deploy
from vlp_deploy.data.dataset import check_readable, load_dataset
from vlp_deploy.errors import DataError
from vlp_train.emoji import (
    MINIMUM_STYLES,
    SIZE,
    STYLES,
    EmojiClass,
    IconSet,
    build,
    main,
    read_classes,
)

EMBEDDED = Path(vlp_deploy.__file__).parent / "embedded" / "emoji"
VENDORS = {style.prefix: style.vendor for style in STYLES}
CLASSES = (
    EmojiClass(name="cat", icon="cat-face", fxemoji="cat"),
    EmojiClass(name="kiwi fruit", icon="kiwi-fruit", fxemoji=""),
    EmojiClass(name="umbrella", icon="umbrella", fxemoji="-"),
)


def icon_set(licence: str) -> dict[str, object]:
    square = '<path fill="#f00" d="M0 0h8v16H0z"/>'
    return {
        "info": {
            "name": "Made up",
            "author": {"url": "https://example.org"},
            "license": {"spdx": licence},
        },
        "lastModified": 0,
        "width": 16,
        "height": 16,
        "icons": {
            "cat-face": {"body": square},
            "cat": {"body": square.replace("#f00", "#00f")},
            "kiwifruit": {"body": square},
            "umbrella": {"body": square, "width": 8},
        },
        "aliases": {
            "tabby": {"parent": "cat"},
            "cat-mirrored": {"parent": "cat", "hFlip": True},
        },
    }


@pytest.fixture
def icons(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "icons"
    folder.mkdir()
    for style in STYLES:
        content = json.dumps(icon_set(style.declared_licence))
        (folder / f"{style.prefix}.json").write_text(content)
    return folder


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_build_draws_each_class_in_its_styles(icons: Path, tmp_path: Path) -> None:
    build(icons, tmp_path / "out", classes=CLASSES)
    drawn = Counter(name.split("/")[0] for name in files_in(tmp_path / "out") if ".png" in name)
    assert drawn == {"cat": 7, "kiwi_fruit": 7, "umbrella": 6}
    with Image.open(tmp_path / "out/cat/noto.png") as image:
        assert (image.mode, image.size) == ("RGB", (SIZE, SIZE))
        assert image.getpixel((0, SIZE // 2)) == (255, 0, 0)
        assert image.getpixel((SIZE - 1, SIZE // 2)) == (255, 255, 255)
    with Image.open(tmp_path / "out/cat/fxemoji.png") as image:
        assert image.getpixel((0, SIZE // 2)) == (0, 0, 255)


def test_narrow_icon_is_centred_in_the_square(icons: Path, tmp_path: Path) -> None:
    build(icons, tmp_path / "out", classes=CLASSES)
    with Image.open(tmp_path / "out/umbrella/noto.png") as image:
        assert image.size == (SIZE, SIZE)
        row = [image.getpixel((x, SIZE // 2)) for x in range(SIZE)]
    white, red = (255, 255, 255), (255, 0, 0)
    quarter = SIZE // 4
    assert row == [white] * quarter + [red] * 2 * quarter + [white] * quarter


def test_build_again_gives_equal_bytes_and_leaves_nothing_beside(
    icons: Path, tmp_path: Path
) -> None:
    build(icons, tmp_path / "first", classes=CLASSES)
    build(icons, tmp_path / "out", classes=CLASSES[:2])
    build(icons, tmp_path / "out", classes=CLASSES)
    assert files_in(tmp_path / "out") == files_in(tmp_path / "first")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "icons", "out"]


def test_build_writes_splits_that_load(icons: Path, tmp_path: Path) -> None:
    build(icons, tmp_path / "out", classes=CLASSES)
    styles = load_dataset(tmp_path / "out/split_zhou_styles.json")
    assert styles.class_names == ("cat", "kiwi fruit", "umbrella")
    assert (len(styles.split("train")), len(styles.split("test"))) == (12, 8)
    base = load_dataset(tmp_path / "out/split_zhou_base.json")
    assert base.class_names == ("cat", "kiwi fruit")


def test_build_does_not_replace_another_folder(icons: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no earlier build of this data set"):
        build(icons, icons, classes=CLASSES)
    assert (icons / "noto.json").exists()


def test_class_in_too_few_styles_is_an_error(icons: Path, tmp_path: Path) -> None:
    for prefix in ("noto", "twemoji"):
        content = icon_set("Apache-2.0" if prefix == "noto" else "CC-BY-4.0") | {"icons": {}}
        (icons / f"{prefix}.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"'cat' exists in 5 styles only: noto-v1, emojione, "):
        build(icons, tmp_path / "out", classes=CLASSES)
    assert not (tmp_path / "out").exists()


def test_icon_that_the_table_names_must_exist(icons: Path, tmp_path: Path) -> None:
    wrong = EmojiClass(name="cat", icon="cat", fxemoji="kat")
    with pytest.raises(DataError, match="'cat': fxemoji has no icon 'kat'"):
        build(icons, tmp_path / "out", classes=[wrong])


def test_changed_licence_stops_the_build(icons: Path, tmp_path: Path) -> None:
    (icons / "noto.json").write_text(json.dumps(icon_set("CC-BY-NC-4.0")))
    with pytest.raises(DataError, match=r"noto.json declares licence CC-BY-NC-4.0"):
        build(icons, tmp_path / "out", classes=CLASSES)


def test_aliases_are_followed_unless_they_turn_the_icon(icons: Path) -> None:
    icon = IconSet(icons / "noto.json")
    assert icon.svg("Tabby") == icon.svg("cat")
    assert icon.svg("cat-mirrored") is None


def test_command_names_the_absent_icon_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="1"):
        main(["--icons", str(tmp_path), "--output", str(tmp_path / "out")])
    assert "npm pack @iconify/json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "message"),
    [("cat\tcat\ncat\tcat-face\n", "'cat' is listed twice"), ("Cat_face\tcat\n", "not lower-case")],
)
def test_wrong_class_table_is_an_error(tmp_path: Path, rows: str, message: str) -> None:
    table = tmp_path / "classes.tsv"
    table.write_text("class\ticon\tfxemoji\n" + rows)
    with pytest.raises(DataError, match=message):
        read_classes(table)


def test_embedded_set_is_what_the_class_table_says() -> None:
    classes = read_classes()
    assert 150 <= len(classes) <= 250
    dataset = load_dataset(EMBEDDED)
    assert dataset.class_names == tuple(emoji.name for emoji in classes)
    drawn = Counter(sample.label for sample in dataset.split("all"))
    assert min(drawn.values()) >= MINIMUM_STYLES
    assert sum(map(len, files_in(EMBEDDED).values())) <= 6_000_000


def test_embedded_images_are_small_and_rgb() -> None:
    samples = load_dataset(EMBEDDED).split("all")
    check_readable(samples)
    for sample in samples:
        with Image.open(sample.path) as image:
            assert (image.mode, image.size) == ("RGB", (SIZE, SIZE)), sample.path


def test_embedded_splits_cover_all_and_test_other_vendors() -> None:
    parts = [load_dataset(EMBEDDED / f"split_zhou_{name}.json") for name in ("base", "new")]
    styles = load_dataset(EMBEDDED / "split_zhou_styles.json")
    assert parts[0].class_names + parts[1].class_names == styles.class_names
    for dataset in (styles, *parts):
        vendors = {
            split: {VENDORS[sample.path.stem] for sample in samples}
            for split, samples in dataset.splits.items()
        }
        assert vendors["train"] == {"Google", "Twitter", "EmojiOne"}
        assert vendors["test"] == {"Microsoft", "Mozilla"}
    listed = [sample.path for split in styles.splits.values() for sample in split]
    assert sorted(listed) == sorted(sample.path for sample in load_dataset(EMBEDDED).split("all"))


def test_embedded_notice_credits_each_style() -> None:
    notice = (EMBEDDED / "NOTICE").read_text(encoding="utf-8")
    for style in STYLES:
        assert f"\n{style.prefix}.png: " in notice
        assert style.copyright in notice
    assert "Permission is hereby granted, free of charge" in notice
