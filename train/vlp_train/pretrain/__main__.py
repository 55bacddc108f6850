"""Pre-train `vlp-tiny` from icon packages to shipped weights: `python -m vlp_train.pretrain`.

Every stage leaves a file in the output folder and is skipped or resumed if that file exists, so the
same command continues after an interruption.
"""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.logging import RichHandler
from torch import Generator

from vlp_deploy.architecture import ClipConfig
from vlp_deploy.tokenizer import Tokenizer
from vlp_train.clip import Clip
from vlp_train.pretrain.batches import Bank, Batches, frequencies, normalise
from vlp_train.pretrain.corpus import Drawing, allowed_sets, clip_art, icons_of_set
from vlp_train.pretrain.evaluate import EMOJI, image_features, read_pictures, table
from vlp_train.pretrain.image_tower import ImageRecipe, ImageTraining, train_images
from vlp_train.pretrain.pack import Corpus, load_corpus, pack
from vlp_train.pretrain.release import CONFIGURATION, fit_scale, write_release
from vlp_train.pretrain.sampling import drawing_weights
from vlp_train.pretrain.start import start_image_tower, start_text_tower
from vlp_train.pretrain.targets import Targets, make_targets
from vlp_train.pretrain.text_tower import TextRecipe, TextTraining, train_text
from vlp_train.pretrain.wordnet import NounLexicon, read_nouns

_LOG = logging.getLogger("vlp_train.pretrain")
# Images, never trained on, for patch statistics and for the logit scale; their seeds.
_SAMPLE = 1024
_STATISTICS_SEED, _SCALE_SEED = -1, -2


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Unpacked packages: npm `@iconify/json`, Debian `openclipart-svg` and `wordnet-base`."""

    icons: Path
    openclipart: Path
    wordnet: Path


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


def train_text_tower(clip: Clip, targets: Targets, recipe: TextRecipe, checkpoint: Path) -> None:
    """Train, or finish training, the text tower of `clip` in place."""
    tokenizer = Tokenizer.default()
    start_text_tower(clip, targets.texts, targets.vectors, tokenizer)
    training = TextTraining(
        clip, recipe, texts=targets.texts, targets=targets.vectors, captions=targets.captions
    )
    if checkpoint.exists():
        training.state.load(checkpoint)
    train_text(training, checkpoint, _progress("text", recipe.steps))


def train_image_tower(
    clip: Clip,
    batches: Batches,
    bank: Bank,
    recipe: ImageRecipe,
    *,
    checkpoint: Path,
    threads: int,
) -> None:
    """Train, or finish training, the image tower of `clip` in place."""
    images, _ = batches(_SAMPLE, Generator().manual_seed(_STATISTICS_SEED))
    start_image_tower(clip.visual, normalise(images))
    training = ImageTraining(clip.visual, recipe, batches=batches, bank=bank)
    if checkpoint.exists():
        training.state.load(checkpoint)
    report = _progress("image", recipe.steps)
    train_images(training, checkpoint, report, threads=threads)


def run(
    inputs: Inputs,
    output: Path,
    *,
    image_recipe: ImageRecipe,
    text_recipe: TextRecipe,
    threads: int,
) -> None:
    """Go from packages to `output`/weights.safetensors and print the zero-shot table."""
    lexicon = read_nouns(inputs.wordnet)
    corpus = prepare_corpus(inputs, lexicon, output / "corpus")
    width = CONFIGURATION["embed_dim"]
    targets = make_targets(corpus, lexicon, width=width, path=output / "targets.safetensors")
    captions = targets.texts[: targets.captions]
    probability = drawing_weights(corpus, lexicon)
    bank = Bank(
        captions=captions,
        embeddings=targets.vectors[: targets.captions],
        log_frequency=frequencies(corpus, probability, captions).log().float(),
    )
    batches = Batches(corpus, probability, captions)
    torch.manual_seed(image_recipe.seed)
    clip = Clip(ClipConfig.from_open_clip(CONFIGURATION))
    train_text_tower(clip, targets, text_recipe, output / "text.safetensors")
    checkpoint = output / "image.safetensors"
    train_image_tower(clip, batches, bank, image_recipe, checkpoint=checkpoint, threads=threads)
    images, chosen = batches(_SAMPLE, Generator().manual_seed(_SCALE_SEED))
    scale = fit_scale(image_features(clip, normalise(images)), chosen, bank.embeddings)
    write_release(clip, scale, output)
    _LOG.info("logit scale %.1f", scale)
    pictures = read_pictures(EMOJI, clip.config.vision.image_size)
    sys.stdout.write(table(clip.eval(), pictures) + "\n")


def _progress(what: str, steps: int) -> Callable[[int, float, float], None]:
    def report(step: int, loss: float, rate: float) -> None:
        _LOG.info("%s step %d/%d loss %.3f, %.0f samples/s", what, step, steps, loss, rate)

    return report


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and pre-train."""
    parser = argparse.ArgumentParser(prog="python -m vlp_train.pretrain", description=__doc__)
    parser.add_argument("--icons", type=Path, required=True, help="unpacked npm @iconify/json")
    parser.add_argument("--openclipart", type=Path, required=True, help="unpacked openclipart-svg")
    parser.add_argument("--wordnet", type=Path, required=True, help="folder with data.noun")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=1_000_000, help="drawings seen in training")
    parser.add_argument("--text-samples", type=int, default=500_000, help="texts seen in training")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args(arguments)
    logging.basicConfig(
        level=logging.INFO,
        format="%(message)s",
        handlers=[RichHandler(console=Console(stderr=True))],
    )
    torch.set_num_threads(options.threads)
    inputs = Inputs(icons=options.icons, openclipart=options.openclipart, wordnet=options.wordnet)
    image_recipe = ImageRecipe(samples=options.samples)
    text_recipe = TextRecipe(samples=options.text_samples)
    _LOG.info("%s; %s", image_recipe, text_recipe)
    run(
        inputs,
        options.output,
        image_recipe=image_recipe,
        text_recipe=text_recipe,
        threads=options.threads,
    )


if __name__ == "__main__":
    main()
