"""The shipped files are a plain CLIP, the table counts, and copies of emoji are found."""

import csv
import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

from vlp_deploy import embedded
from vlp_deploy.formats.architecture import ClipConfig
from vlp_train.clip import Clip
from vlp_train.pretrain import corpus
from vlp_train.pretrain.evaluate import Pictures, by_caption, by_group, hits, read_pictures, table
from vlp_train.pretrain.leaks import excluded_sources, find_copies, is_drawing
from vlp_train.pretrain.release import (
    CONFIGURATION,
    fit_scale,
    set_image_tower,
    set_text_tower,
    write_release,
)
from vlp_train.pretrain.state import TrainingState, read_state
from vlp_train.pretrain.text_tower import text_parameters


def test_release_is_an_open_clip_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    clip = Clip(ClipConfig.from_open_clip(CONFIGURATION)).eval()
    write_release(clip, 50.0, tmp_path)
    theirs = open_clip.model.CLIP(**json.loads((tmp_path / "vlp-tiny.json").read_text())).eval()
    weights = load_file(tmp_path / "weights.safetensors")
    theirs.load_state_dict({name: value.float() for name, value in weights.items()}, strict=True)
    assert theirs.logit_scale.exp().item() == pytest.approx(50.0, rel=2e-3)  # float16
    ids = open_clip.get_tokenizer("ViT-B-32")(["a photo of a dog."])
    with torch.no_grad():
        own, other = clip.encode_text(ids), theirs.encode_text(ids)
    assert F.cosine_similarity(own, other).item() > 0.9999  # float16 weights


def test_fit_scale_finds_the_scale_that_explains_the_targets() -> None:
    torch.manual_seed(0)
    embeddings = F.normalize(torch.randn(50, 16), dim=-1)
    features = F.normalize(torch.randn(20_000, 16), dim=-1)
    probabilities = F.softmax(12.0 * features @ embeddings.T, dim=-1)
    targets = torch.multinomial(probabilities, 1).squeeze(1)
    assert fit_scale(features, targets, embeddings) == pytest.approx(12.0, abs=0.5)


def test_hits_counts_best_and_best_five() -> None:
    texts = torch.eye(8)
    images = torch.tensor([[9.0, 8, 7, 6, 5, 4, 3, 2]]).repeat(3, 1)
    found = hits(images, texts, torch.tensor([0, 4, 5]))
    assert found.tolist() == [[True, True], [False, True], [False, False]]


def test_table_has_a_column_for_every_style(tmp_path: Path) -> None:
    for name, colour in (
        ("red_box", "red"),
        ("dog", "blue"),
        *((f"n{i}", "green") for i in range(4)),
    ):
        (tmp_path / name).mkdir()
        for style in ("first", "second"):
            Image.new("RGB", (64, 60), colour).save(tmp_path / name / f"{style}.png")
    pictures = read_pictures(tmp_path, 64)
    assert isinstance(pictures, Pictures)
    assert pictures.classes == ["dog", "n0", "n1", "n2", "n3", "red box"]
    clip = Clip(ClipConfig.from_open_clip(CONFIGURATION)).eval()
    text = table(clip, pictures)
    assert "| template | first | second | all |" in text
    assert "12 images, 6 classes, chance 16.67" in text
    apart = by_group(clip, pictures, by_caption(pictures, {"dog", "red box", "no class"}))
    assert apart.startswith("2 classes, captions in pre-training:")
    assert "\n4 classes, others:" in apart


def test_copies_of_an_emoji_are_found_at_another_scale() -> None:
    generator = np.random.default_rng(0)
    blocks = Image.fromarray(generator.integers(0, 200, (6, 6, 3), dtype=np.uint8))
    other = Image.fromarray(generator.integers(0, 200, (6, 6, 3), dtype=np.uint8))
    emoji = Image.new("RGB", (64, 64), "white")
    emoji.paste(blocks.resize((48, 48), Image.Resampling.NEAREST), (8, 8))
    copy = blocks.resize((60, 60), Image.Resampling.NEAREST)
    stranger = other.resize((60, 60), Image.Resampling.NEAREST)
    found = find_copies([copy, stranger], ["copy", "stranger"], {"dog/noto.png": emoji})
    assert [(match.drawing, match.emoji) for match in found] == [("copy", "dog/noto.png")]


def test_squares_and_discs_are_no_drawings() -> None:
    assert not any(map(is_drawing, ("blackcircle", "whitemediumsquare", "whitesquarebutton")))
    assert all(map(is_drawing, ("circledm", "circustent", "button")))


def test_listed_sources_are_permissive_and_not_about_emoji() -> None:
    listed = Path(corpus.__file__).with_name("corpus_licences.csv")
    with listed.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    notice = Path(embedded.__file__).with_name("NOTICE").read_text(encoding="utf-8")
    assert len(rows) > 100
    for row in rows:
        assert row["licence"] in corpus.LICENCES | {"public domain"}, row
        assert row["licence"] in notice, row
        if row["licence"].startswith("CC-BY"):
            assert all(row.values()), row  # each of them is asked for
        assert not corpus.is_excluded(row["source"], {"name": row["title"]}), row


def test_released_towers_are_parameters_or_their_average(tmp_path: Path) -> None:
    clip = Clip(ClipConfig.from_open_clip(CONFIGURATION))
    for names, set_tower in (
        (dict(clip.visual.named_parameters()), set_image_tower),
        (dict(text_parameters(clip)), set_text_tower),
    ):
        state = TrainingState(parameters=names, optimisers={})
        with torch.no_grad():
            for name, average in state.average.items():
                average.fill_(2.0)
                names[name].fill_(1.0)
        state.save(tmp_path / "state", "{}")
        stored = read_state(tmp_path / "state")
        set_tower(clip, stored, "average")
        assert all((value == 2.0).all() for value in names.values())
        set_tower(clip, stored, "parameter")
        assert all((value == 1.0).all() for value in names.values())


def test_excluded_sources_names_sets_that_must_not_be_there(icons: Path) -> None:
    sources = {"plain", "noto", "faces", "paid", "openclipart"}
    assert excluded_sources(sources, icons) == ["faces", "noto", "paid"]
