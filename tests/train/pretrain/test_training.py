"""Both towers learn, and resumed training ends in the same weights."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from vlp_deploy.classes.tokenizer import Tokenizer
from vlp_deploy.cli import guarded
from vlp_deploy.errors import TrainingError
from vlp_deploy.formats.architecture import ClipConfig
from vlp_train.clip import Clip
from vlp_train.pretrain import command, start
from vlp_train.pretrain.batches import Bank, Batches, frequencies, normalise
from vlp_train.pretrain.command import main
from vlp_train.pretrain.image_tower import (
    PRECISIONS,
    ImageRecipe,
    ImageTraining,
    train_images,
)
from vlp_train.pretrain.optimise import orthogonalise
from vlp_train.pretrain.pack import Corpus
from vlp_train.pretrain.patches import chosen_patches, encode
from vlp_train.pretrain.sampling import drawing_weights
from vlp_train.pretrain.start import start_image_tower, start_text_tower, turn_joint_space
from vlp_train.pretrain.state import TrainingState
from vlp_train.pretrain.teacher import fit_projection
from vlp_train.pretrain.text_tower import TextRecipe, TextTraining, tokenise, train_text
from vlp_train.pretrain.wordnet import NounLexicon

CONFIGURATION = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "layers": 2, "width": 64, "head_width": 16, "patch_size": 4},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
RECIPE = ImageRecipe(
    samples=96, batch=16, part=8, keep_patches=9, negatives=4, warmup_steps=2, checkpoint_steps=2
)
TEXTS = ["dog", "bear", "cherry", "house", "polar bear", "animal"]


def silent(step: int, loss: float, rate: float) -> None:
    assert loss == loss
    assert rate > 0


def image_training(
    corpus: Corpus, lexicon: NounLexicon, recipe: ImageRecipe = RECIPE
) -> ImageTraining:
    captions = sorted({caption for own in corpus.captions for caption in own})
    probability = drawing_weights(corpus, lexicon)
    generator = Generator().manual_seed(0)
    embeddings = F.normalize(torch.randn(len(captions), 8, generator=generator), dim=-1)
    bank = Bank(
        captions=captions,
        embeddings=embeddings,
        log_frequency=frequencies(corpus, probability, captions).log().float(),
    )
    batches = Batches(corpus, probability, captions)
    torch.manual_seed(0)
    tower = Clip(ClipConfig.from_open_clip(CONFIGURATION)).visual
    start_image_tower(tower, normalise(batches(32, generator)[0]))
    return ImageTraining(tower, recipe, batches=batches, bank=bank)


def text_training(recipe: TextRecipe) -> TextTraining:
    torch.manual_seed(0)
    clip = Clip(ClipConfig.from_open_clip(CONFIGURATION))
    targets = F.normalize(torch.randn(len(TEXTS), 8), dim=-1)
    start_text_tower(clip, TEXTS, targets, Tokenizer.default())
    return TextTraining(clip, recipe, texts=TEXTS, targets=targets, captions=4)


def weights(parameters: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.detach().flatten() for value in parameters.values()])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_resumed_image_training_ends_in_the_same_weights(
    corpus: Corpus, lexicon: NounLexicon, tmp_path: Path, precision: str
) -> None:
    recipe = replace(RECIPE, precision=precision)
    whole = image_training(corpus, lexicon, recipe)
    train_images(whole, tmp_path / "whole", silent, threads=2)
    broken = image_training(corpus, lexicon, recipe)
    with ThreadPoolExecutor(1) as pool:
        for _ in range(3):
            broken.advance(pool)
    broken.state.save(tmp_path / "broken", "{}")
    resumed = image_training(corpus, lexicon, recipe)
    resumed.state.load(tmp_path / "broken", "{}")
    train_images(resumed, tmp_path / "broken", silent, threads=1)
    assert resumed.state.step == RECIPE.steps == 6
    assert torch.equal(weights(whole.state.parameters), weights(resumed.state.parameters))


def test_image_tower_learns_its_drawings(corpus: Corpus, lexicon: NounLexicon) -> None:
    training = image_training(corpus, lexicon)
    with ThreadPoolExecutor(1) as pool:
        losses = [training.advance(pool) for _ in range(RECIPE.steps)]
    assert losses[-1] < losses[0]


def random_clip() -> Clip:
    """Four heads, and no bias or scale that hides an error by being 0 or 1."""
    torch.manual_seed(0)
    clip = Clip(ClipConfig.from_open_clip(CONFIGURATION))
    for parameter in clip.visual.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return clip


def test_encode_with_all_patches_is_the_plain_tower() -> None:
    clip = random_clip()
    pixels = torch.randn(3, 3, 16, 16)
    plain, partial = clip.encode_image(pixels), encode(clip.visual, pixels, 16, Generator())
    assert torch.allclose(plain, partial, rtol=1e-4, atol=1e-4)  # sums in another order


def test_encode_of_some_patches_is_the_plain_tower_without_the_others() -> None:
    tower = random_clip().visual
    pixels = torch.randn(3, 3, 16, 16)
    patches = F.unfold(pixels, 4, stride=4).transpose(1, 2)
    kept = chosen_patches(patches, 5, Generator().manual_seed(7))
    start, x = tower.embed(pixels).split([1, 16], dim=1)
    x = torch.cat([start, torch.stack([row[own] for row, own in zip(x, kept, strict=True)])], dim=1)
    x = tower.ln_pre(x)
    for block in tower.transformer.blocks:
        x = block(x, causal=False)
    partial = encode(tower, pixels, 5, Generator().manual_seed(7))
    assert torch.allclose(tower.project(x), partial, rtol=1e-4, atol=1e-4)


def test_blank_patches_are_left_out_first() -> None:
    patches = torch.zeros(2, 16, 48)
    patches[0, [1, 4, 6], 0] = patches[1, [0, 2, 9], 5] = 2.0
    for seed in range(5):
        kept = chosen_patches(patches, 5, Generator().manual_seed(seed))
        assert {1, 4, 6} <= set(kept[0].tolist())
        assert {0, 2, 9} <= set(kept[1].tolist())
        assert all(len(set(row)) == 5 for row in kept.tolist())


def test_resumed_text_training_ends_in_the_same_weights(tmp_path: Path) -> None:
    recipe = TextRecipe(samples=48, batch=8, warmup_steps=2, checkpoint_steps=2)
    whole, broken, resumed = (text_training(recipe) for _ in range(3))
    train_text(whole, tmp_path / "whole", silent)
    for _ in range(2):
        broken.advance()
    broken.state.save(tmp_path / "broken", "{}")
    resumed.state.load(tmp_path / "broken", "{}")
    train_text(resumed, tmp_path / "broken", silent)
    assert torch.equal(weights(whole.state.parameters), weights(resumed.state.parameters))


def test_text_tower_learns_and_keeps_meaning_across_templates() -> None:
    training = text_training(TextRecipe(samples=8 * 60, batch=8, warmup_steps=5))
    before = training.advance()
    for _ in range(58):
        after = training.advance()
    assert after < 0.7 * before


def test_average_is_plain_at_first_and_is_saved(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    optimiser = torch.optim.SGD([weight], lr=1.0)

    def state() -> TrainingState:
        return TrainingState(parameters={"w": weight}, optimisers={"sgd": optimiser}, horizon=4)

    training = state()
    for _ in range(3):
        training.apply([-torch.ones(2)], {"sgd": 1.0})
    assert training.average["w"].tolist() == [2.0, 2.0]  # of 1, 2 and 3
    for _ in range(2):
        training.apply([-torch.ones(2)], {"sgd": 1.0})
    assert training.average["w"].tolist() == [3.125, 3.125]  # (3 * 2.5 + 5) / 4
    training.save(tmp_path / "state", "{}")
    loaded = state()
    loaded.load(tmp_path / "state", "{}")
    assert (loaded.step, loaded.average["w"].tolist()) == (5, [3.125, 3.125])


def test_training_with_another_recipe_is_not_gone_on_with(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    training = TrainingState(parameters={"w": weight}, optimisers={})
    training.save(tmp_path / "state", '{"samples": 8, "part": 2}')
    with pytest.raises(TrainingError, match=r"with samples 8, start None; this one has samples 9"):
        training.load(tmp_path / "state", '{"samples": 9, "part": 2, "start": "abc"}')


def test_continued_run_turns_trained_towers_into_the_new_joint_space(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(start, "_TEXTS", 7)  # embedded at once
    torch.manual_seed(0)
    tokenizer = Tokenizer.default()
    clip = Clip(ClipConfig.from_open_clip(CONFIGURATION))
    turn = torch.linalg.qr(torch.randn(8, 8)).Q
    names = [f"{text} {other}" for text in TEXTS for other in TEXTS]
    pixels = torch.randn(4, 3, 16, 16)

    def texts() -> Tensor:
        return F.normalize(clip.encode_text(*tokenise(names, tokenizer)), dim=-1)

    with torch.no_grad():
        targets, images = texts() @ turn, clip.encode_image(pixels) @ turn
        turn_joint_space(clip, names, targets, tokenizer)
        assert torch.allclose(texts(), targets, atol=1e-5)
        assert torch.allclose(clip.encode_image(pixels), images, atol=1e-4)


def test_bfloat16_gives_nearly_the_gradients_of_float32(
    corpus: Corpus, lexicon: NounLexicon
) -> None:
    whole, rounded = (
        image_training(corpus, lexicon, replace(RECIPE, precision=precision))._part(0)[1]
        for precision in ("float32", "bfloat16")
    )
    assert all(gradient.dtype == torch.float32 for gradient in rounded)
    pair = [torch.cat([each.flatten() for each in some]) for some in (whole, rounded)]
    error = (pair[0] - pair[1]).norm() / pair[0].norm()
    assert 1e-4 < error < 3e-2  # 8 bits of mantissa: a difference of 0.4 % in one number


def test_muon_in_bfloat16_turns_matrices_nearly_as_in_float32() -> None:
    matrices = torch.randn(3, 8, 24, generator=Generator().manual_seed(0))
    whole, rounded = (orthogonalise(matrices, precision) for precision in PRECISIONS.values())
    assert rounded.dtype == torch.float32
    assert 1e-4 < (whole - rounded).norm() / whole.norm() < 3e-2


def test_weights_that_cannot_be_continued_from_are_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: object())  # the teacher is not needed
    missing = tmp_path / "weights.safetensors"
    options = ["--output", str(tmp_path / "run"), "--continue-from", str(missing)]
    assert guarded(lambda: main(options)) == 1
    assert str(missing) in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_recipe_schedule_warms_up_and_decays_to_nothing() -> None:
    recipe = ImageRecipe(samples=1152 * 100, warmup_steps=10, decay_share=0.5, whole_share=0.2)
    assert recipe.rate(0) == pytest.approx(0.1)
    assert recipe.rate(20) == 1.0
    assert replace(recipe, rate_share=0.5).rate(20) == 0.5
    assert recipe.rate(99) == pytest.approx(1 / 50)
    assert (recipe.patches(0, 16), recipe.patches(79, 16), recipe.patches(80, 16)) == (8, 8, 16)


@pytest.mark.parametrize(
    "options",
    [
        {"samples": 5},
        {"samples": 2000, "batch": 100, "part": 96},
        {"samples": 2000, "precision": "fp16"},
    ],
)
def test_recipe_refuses_what_is_impossible(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        ImageRecipe(**{"samples": 2000, **options})


@pytest.mark.parametrize("shape", [(2, 16, 16), (1, 32, 8), (3, 8, 24)])
def test_orthogonalise_brings_singular_values_near_one(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
    # The quintic trades exactness for speed: values scatter around one.
    assert values.min() > 0.3
    assert values.max() < 1.4


def test_projection_centres_and_orders_axes() -> None:
    torch.manual_seed(0)
    embeddings = torch.randn(500, 12) * torch.linspace(3, 0.1, 12) + 5
    projected = fit_projection(embeddings, 6)(embeddings)
    assert torch.allclose(projected.norm(dim=-1), torch.ones(500), atol=1e-5)  # float32
    spread = projected.var(dim=0)
    assert spread[0] > spread[-1]
    assert projected.mean(dim=0).abs().max() < 0.1


def test_tokenise_ends_every_row_with_end_of_text() -> None:
    ids, ends = tokenise(["dog", "a photo of a polar bear."], Tokenizer.default())
    assert ids.shape[1] == int(ends.max()) + 1
    assert ids[torch.arange(2), ends].tolist() == [49407, 49407]
    assert (ids.argmax(dim=1) == ends).all()
