"""Pre-train in stages, from packages to weights; what a stage left in its files is not redone."""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Generator

from vlp_deploy.classes.tokenizer import Tokenizer
from vlp_deploy.files import sha256_of
from vlp_deploy.formats.architecture import ClipConfig
from vlp_train.clip import Clip
from vlp_train.pretrain.batches import Bank, Batches, frequencies, normalise
from vlp_train.pretrain.corpus import Drawing, allowed_sets, clip_art, icons_of_set
from vlp_train.pretrain.fetch import Inputs
from vlp_train.pretrain.image_tower import ImageRecipe, ImageTraining, train_images
from vlp_train.pretrain.pack import Corpus, load_corpus, pack
from vlp_train.pretrain.release import CONFIGURATION, scale_of, write_release
from vlp_train.pretrain.sampling import drawing_weights
from vlp_train.pretrain.start import start_image_tower, start_text_tower, turn_joint_space
from vlp_train.pretrain.state import TrainingState
from vlp_train.pretrain.targets import Targets, make_targets
from vlp_train.pretrain.text_tower import TextRecipe, TextTraining, train_text
from vlp_train.pretrain.unseen import held_out_icons
from vlp_train.pretrain.wordnet import NounLexicon, read_nouns

_LOG = logging.getLogger("vlp_train.pretrain")
# Images, never trained on, for patch statistics.
_SAMPLE, _SEED = 1024, -1


def pretrain(
    inputs: Inputs,
    output: Path,
    *,
    image_recipe: ImageRecipe,
    text_recipe: TextRecipe,
    threads: int,
    earlier: Clip | None = None,
) -> Clip:
    """Go from packages to `output`/weights.safetensors, and return what is in it, in float32.

    `earlier` is a released CLIP to start from; the scale that its logits had in training starts
    anew. It is changed in place.

    Raises:
        DataError: the packages lack what they should hold.
        TrainingError: `output` holds an unfinished run with other recipes or of other inputs.
    """
    lexicon = read_nouns(inputs.wordnet)
    corpus = prepare_corpus(inputs, lexicon, output / "corpus")
    width = CONFIGURATION["embed_dim"]
    targets = make_targets(corpus, lexicon, width=width, path=output / "targets.safetensors")
    data = fingerprint(output)
    probability = drawing_weights(corpus, lexicon)
    names = targets.texts[: targets.captions]
    held_out = held_out_icons(inputs.icons, set(names))  # now, not after hours: it may be missing
    batches = Batches(corpus, probability, names)
    torch.manual_seed(image_recipe.seed)
    clip = earlier or Clip(ClipConfig.from_open_clip(CONFIGURATION))
    clip.requires_grad_(True)
    start_towers(clip, batches, targets, trained=earlier is not None)

    bank = Bank(
        captions=names,
        embeddings=targets.vectors[: len(names)],
        log_frequency=frequencies(corpus, probability, names).log().float(),
    )
    image_recipe = replace(image_recipe, data=data)
    images = ImageTraining(clip.visual, image_recipe, batches=batches, bank=bank)
    _resume(images.state, output / "image.safetensors", image_recipe)
    train_images(
        images,
        output / "image.safetensors",
        _progress("image", image_recipe.steps),
        threads=threads,
    )
    text_recipe = replace(text_recipe, data=data)
    texts = TextTraining(
        clip,
        text_recipe,
        texts=targets.texts,
        targets=targets.vectors,
        captions=targets.captions,
    )
    _resume(texts.state, output / "text.safetensors", text_recipe)
    train_text(texts, output / "text.safetensors", _progress("text", text_recipe.steps))

    scale = scale_of(clip, held_out)
    write_release(clip, scale, output)
    _LOG.info("logit scale %.1f", scale)
    return clip.eval()


def prepare_corpus(inputs: Inputs, lexicon: NounLexicon, folder: Path) -> Corpus:
    """Pack the corpus into `folder` unless it is there, and load it."""
    if not (folder / "corpus.json").exists():
        _LOG.info("rendering drawings")
        sets = allowed_sets(inputs.icons)
        drawings: list[Drawing] = list(clip_art(inputs.openclipart, lexicon))
        for each in sets:
            drawings += icons_of_set(inputs.icons, each, lexicon)
        pack(drawings, sets, folder)
    return load_corpus(folder)


def fingerprint(output: Path) -> str:
    """SHA-256 over what a run learns from: the list of drawings, and targets with their texts."""
    files = ("corpus/corpus.json", "targets.json", "targets.safetensors")
    digests = "".join(sha256_of(output / name) for name in files)
    return hashlib.sha256(digests.encode()).hexdigest()


def start_towers(clip: Clip, batches: Batches, targets: Targets, *, trained: bool) -> None:
    """Give both towers informed weights, or turn `trained` ones into the space of the targets."""
    tokenizer = Tokenizer.default()
    if trained:
        turn_joint_space(clip, targets.texts, targets.vectors, tokenizer)
    else:
        images, _ = batches(_SAMPLE, Generator().manual_seed(_SEED))
        start_image_tower(clip.visual, normalise(images))
        start_text_tower(clip, targets.texts, targets.vectors, tokenizer)


def _resume(state: TrainingState, checkpoint: Path, recipe: ImageRecipe | TextRecipe) -> None:
    if checkpoint.exists():
        state.load(checkpoint, json.dumps(asdict(recipe)))


def _progress(what: str, steps: int) -> Callable[[int, float, float], None]:
    def report(step: int, loss: float, rate: float) -> None:
        _LOG.info("%s step %d/%d loss %.3f, %.0f samples/s", what, step, steps, loss, rate)

    return report
