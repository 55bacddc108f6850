"""Pre-train `vlp-tiny` from icon packages to shipped weights: `python -m vlp_train.pretrain`.

Every stage leaves a file in the output folder and is skipped or resumed if that file exists, so the
same command continues after an interruption. `--continue-from` starts from released weights instead
of from nothing.
"""

import argparse
import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.logging import RichHandler
from torch import Generator

from vlp_deploy import embedded
from vlp_deploy.classes.tokenizer import Tokenizer
from vlp_deploy.errors import VlpError
from vlp_deploy.formats.architecture import ClipConfig
from vlp_train.backbones import load_backbone
from vlp_train.clip import Clip
from vlp_train.pretrain.batches import Bank, Batches, frequencies, normalise
from vlp_train.pretrain.corpus import Drawing, allowed_sets, clip_art, icons_of_set
from vlp_train.pretrain.evaluate import EMOJI, read_pictures, table
from vlp_train.pretrain.fetch import ICONS, OPENCLIPART, WORDNET, fetch
from vlp_train.pretrain.image_tower import (
    PRECISIONS,
    ImageRecipe,
    ImageTraining,
    train_images,
)
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


def start_towers(clip: Clip, batches: Batches, targets: Targets, *, trained: bool) -> None:
    """Give both towers informed weights, or turn `trained` ones into the space of the targets."""
    tokenizer = Tokenizer.default()
    if trained:
        turn_joint_space(clip, targets.texts, targets.vectors, tokenizer)
    else:
        images, _ = batches(_SAMPLE, Generator().manual_seed(_SEED))
        start_image_tower(clip.visual, normalise(images))
        start_text_tower(clip, targets.texts, targets.vectors, tokenizer)


def run(
    inputs: Inputs,
    output: Path,
    *,
    image_recipe: ImageRecipe,
    text_recipe: TextRecipe,
    threads: int,
    earlier: Clip | None = None,
) -> None:
    """Go from packages to `output`/weights.safetensors and print the zero-shot table.

    `earlier` is a released CLIP to start from; the scale that its logits had in training starts
    anew. It is changed in place.

    Raises:
        TrainingError: `output` holds an unfinished run with other recipes.
    """
    lexicon = read_nouns(inputs.wordnet)
    corpus = prepare_corpus(inputs, lexicon, output / "corpus")
    width = CONFIGURATION["embed_dim"]
    targets = make_targets(corpus, lexicon, width=width, path=output / "targets.safetensors")
    captions = targets.texts[: targets.captions]
    probability = drawing_weights(corpus, lexicon)
    batches = Batches(corpus, probability, captions)
    torch.manual_seed(image_recipe.seed)
    clip = earlier or Clip(ClipConfig.from_open_clip(CONFIGURATION))
    clip.requires_grad_(True)
    start_towers(clip, batches, targets, trained=earlier is not None)

    bank = Bank(
        captions=captions,
        embeddings=targets.vectors[: targets.captions],
        log_frequency=frequencies(corpus, probability, captions).log().float(),
    )
    images = ImageTraining(clip.visual, image_recipe, batches=batches, bank=bank)
    _resume(images.state, output / "image.safetensors", image_recipe)
    train_images(
        images,
        output / "image.safetensors",
        _progress("image", image_recipe.steps),
        threads=threads,
    )
    texts = TextTraining(
        clip,
        text_recipe,
        texts=targets.texts,
        targets=targets.vectors,
        captions=targets.captions,
    )
    _resume(texts.state, output / "text.safetensors", text_recipe)
    train_text(texts, output / "text.safetensors", _progress("text", text_recipe.steps))

    scale = scale_of(clip, held_out_icons(inputs.icons, set(captions)))
    write_release(clip, scale, output)
    _LOG.info("logit scale %.1f", scale)
    pictures = read_pictures(EMOJI, clip.config.vision.image_size)
    sys.stdout.write(table(clip.eval(), pictures) + "\n")


def _resume(state: TrainingState, checkpoint: Path, recipe: ImageRecipe | TextRecipe) -> None:
    if checkpoint.exists():
        state.load(checkpoint, json.dumps(asdict(recipe)))


def _progress(what: str, steps: int) -> Callable[[int, float, float], None]:
    def report(step: int, loss: float, rate: float) -> None:
        _LOG.info("%s step %d/%d loss %.3f, %.0f samples/s", what, step, steps, loss, rate)

    return report


def fastest_precision() -> str:
    """Tell what training is fastest in: bfloat16, if torch knows an x86 that multiplies in it."""
    capabilities = getattr(torch.cpu, "get_capabilities", None)  # not in every version of torch
    known = capabilities() if capabilities else {}
    return "bfloat16" if known.get("avx512_bf16") or known.get("amx_bf16") else "float32"


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and pre-train."""
    parser = argparse.ArgumentParser(prog="python -m vlp_train.pretrain", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for all stages")
    own = "; fetched into OUTPUT/inputs if not given"
    parser.add_argument("--icons", type=Path, help="unpacked npm @iconify/json" + own)
    parser.add_argument("--openclipart", type=Path, help="unpacked openclipart-svg" + own)
    parser.add_argument("--wordnet", type=Path, help="folder with data.noun" + own)
    parser.add_argument("--continue-from", type=Path, help="weights.safetensors of an earlier run")
    parser.add_argument(
        "--rate", type=float, default=1.0, help="learning rates as a share of the recipes'"
    )
    parser.add_argument("--samples", type=int, default=1_000_000, help="drawings seen in training")
    parser.add_argument("--text-samples", type=int, default=500_000, help="texts seen in training")
    parser.add_argument(
        "--decay", type=float, default=0.4, help="share of the samples while the rate falls to zero"
    )
    parser.add_argument(
        "--precision",
        choices=tuple(PRECISIONS),
        default=fastest_precision(),
        help="what the image tower is computed in; default: the faster one here, %(default)s",
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args(arguments)
    logging.basicConfig(
        level=logging.INFO,
        format="%(message)s",
        handlers=[RichHandler(console=Console(stderr=True))],
    )
    torch.set_num_threads(options.threads)
    try:
        _pretrain(options)
    except VlpError as error:
        parser.exit(1, f"{error}\n")


def _pretrain(options: argparse.Namespace) -> None:
    earlier, start = None, ""
    if options.continue_from is not None:
        earlier, backbone = load_backbone(embedded.MODEL_NAME, str(options.continue_from))
        start = backbone.sha256
    kept = options.output / "inputs"
    inputs = Inputs(
        icons=options.icons or fetch(ICONS, kept),
        openclipart=options.openclipart or fetch(OPENCLIPART, kept),
        wordnet=options.wordnet or fetch(WORDNET, kept),
    )
    image_recipe = ImageRecipe(
        samples=options.samples,
        start=start,
        rate_share=options.rate,
        decay_share=options.decay,
        precision=options.precision,
    )
    text_recipe = TextRecipe(samples=options.text_samples, start=start, rate_share=options.rate)
    _LOG.info("%s; %s", image_recipe, text_recipe)
    run(
        inputs,
        options.output,
        image_recipe=image_recipe,
        text_recipe=text_recipe,
        threads=options.threads,
        earlier=earlier,
    )


if __name__ == "__main__":
    main()
