"""Pre-train `vlp-tiny` from icon packages to shipped weights: `python -m vlp_train.pretrain`.

Every stage leaves a file in the output folder and is skipped or resumed if that file exists, so the
same command continues after an interruption. `--continue-from` starts from the towers of an earlier
output folder instead of from nothing.
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

from vlp_deploy.classes.tokenizer import Tokenizer
from vlp_deploy.formats.architecture import ClipConfig
from vlp_train.clip import Clip
from vlp_train.pretrain.batches import Bank, Batches, frequencies, normalise
from vlp_train.pretrain.corpus import Drawing, allowed_sets, clip_art, icons_of_set
from vlp_train.pretrain.evaluate import EMOJI, read_pictures, table
from vlp_train.pretrain.image_tower import ImageRecipe, ImageTraining, train_images
from vlp_train.pretrain.pack import Corpus, load_corpus, pack
from vlp_train.pretrain.release import CONFIGURATION, scale_of, write_release
from vlp_train.pretrain.sampling import drawing_weights
from vlp_train.pretrain.start import start_image_tower, start_text_tower
from vlp_train.pretrain.state import TrainingState
from vlp_train.pretrain.targets import Targets, make_targets
from vlp_train.pretrain.text_tower import TextRecipe, TextTraining, train_text
from vlp_train.pretrain.unseen import held_out_icons
from vlp_train.pretrain.wordnet import NounLexicon, read_nouns

_LOG = logging.getLogger("vlp_train.pretrain")
# Images, never trained on, for patch statistics.
_SAMPLE, _SEED = 1024, -1


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


def train_text_tower(
    clip: Clip, targets: Targets, recipe: TextRecipe, *, checkpoint: Path, earlier: Path | None
) -> None:
    """Train, or finish training, the text tower of `clip` in place."""
    tokenizer = Tokenizer.default()
    start_text_tower(clip, targets.texts, targets.vectors, tokenizer)
    training = TextTraining(
        clip, recipe, texts=targets.texts, targets=targets.vectors, captions=targets.captions
    )
    _start(training.state, checkpoint, earlier)
    train_text(training, checkpoint, _progress("text", recipe.steps))


def train_image_tower(
    clip: Clip,
    batches: Batches,
    bank: Bank,
    recipe: ImageRecipe,
    *,
    checkpoint: Path,
    earlier: Path | None,
    threads: int,
) -> None:
    """Train, or finish training, the image tower of `clip` in place."""
    images, _ = batches(_SAMPLE, Generator().manual_seed(_SEED))
    start_image_tower(clip.visual, normalise(images))
    training = ImageTraining(clip.visual, recipe, batches=batches, bank=bank)
    _start(training.state, checkpoint, earlier)
    report = _progress("image", recipe.steps)
    train_images(training, checkpoint, report, threads=threads)


def _start(state: TrainingState, checkpoint: Path, earlier: Path | None) -> None:
    if checkpoint.exists():
        state.load(checkpoint)
    elif earlier is not None:
        state.start_from(earlier)


def run(
    inputs: Inputs,
    output: Path,
    *,
    image_recipe: ImageRecipe,
    text_recipe: TextRecipe,
    threads: int,
    earlier: Path | None = None,
) -> None:
    """Go from packages to `output`/weights.safetensors and print the zero-shot table.

    `earlier` is the output folder of a run to continue.
    """

    def of_earlier(name: str) -> Path | None:
        return earlier and earlier / name

    lexicon = read_nouns(inputs.wordnet)
    corpus = prepare_corpus(inputs, lexicon, output / "corpus")
    width = CONFIGURATION["embed_dim"]
    targets = make_targets(
        corpus,
        lexicon,
        width=width,
        path=output / "targets.safetensors",
        earlier=of_earlier("targets.safetensors"),
    )
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
    train_image_tower(
        clip,
        batches,
        bank,
        image_recipe,
        checkpoint=output / "image.safetensors",
        earlier=of_earlier("image.safetensors"),
        threads=threads,
    )
    torch.set_num_threads(threads)
    train_text_tower(
        clip,
        targets,
        text_recipe,
        checkpoint=output / "text.safetensors",
        earlier=of_earlier("text.safetensors"),
    )
    scale = scale_of(clip, held_out_icons(inputs.icons, set(captions)))
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
    parser.add_argument("--continue-from", type=Path, help="output folder of an earlier run")
    parser.add_argument(
        "--rate", type=float, default=1.0, help="learning rates as a share of the recipes'"
    )
    parser.add_argument("--samples", type=int, default=1_000_000, help="drawings seen in training")
    parser.add_argument("--text-samples", type=int, default=500_000, help="texts seen in training")
    parser.add_argument(
        "--decay", type=float, default=0.4, help="share of the samples while the rate falls to zero"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args(arguments)
    logging.basicConfig(
        level=logging.INFO,
        format="%(message)s",
        handlers=[RichHandler(console=Console(stderr=True))],
    )
    torch.set_num_threads(options.threads)
    inputs = Inputs(icons=options.icons, openclipart=options.openclipart, wordnet=options.wordnet)
    image_recipe = ImageRecipe(
        samples=options.samples, rate_share=options.rate, decay_share=options.decay
    )
    text_recipe = TextRecipe(samples=options.text_samples, rate_share=options.rate)
    _LOG.info("%s; %s", image_recipe, text_recipe)
    run(
        inputs,
        options.output,
        image_recipe=image_recipe,
        text_recipe=text_recipe,
        threads=options.threads,
        earlier=options.continue_from,
    )


if __name__ == "__main__":
    main()
