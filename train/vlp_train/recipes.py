"""For every method the options of `vlp train` that suit the embedded CLIP and its emoji.

    python -m vlp_train.recipes            # the commands
    python -m vlp_train.recipes coop       # run one; with --smoke in seconds, to see that it works

The official settings are for CLIPs whose logit scale is 100; at vlp-tiny's 24 gradients are
smaller, and most rates here are higher. Crops are left out: of 64-pixel drawings they cut off what
is drawn. `benchmarks/bench_methods.py` measures all recipes; its table is in train/README.md.
"""

import argparse
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vlp_deploy import embedded
from vlp_deploy.cli import run

DATA = "vlp_deploy/embedded/emoji/split_zhou_styles.json"  # in a checkout
WORDS = ("-O", "context_tokens=4", "-O", "words=a photo of a")
SMOKE = {"--shots": "1", "--epochs": "1", "--warmup-epochs": "0"}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Options of `vlp train`. `stage1` is the recipe whose run a second stage goes on from."""

    method: str
    options: tuple[str, ...]
    stage1: str = ""
    smoke: Mapping[str, str] = field(default_factory=lambda: SMOKE)  # cheaper values of options

    def arguments(
        self, data: Path | str, output: Path, *, seed: int = 1, shots: int = 4, smoke: bool = False
    ) -> list[str]:
        """The words of the command; the run goes to a folder of its own below `output`."""
        words = ["train", str(data), "--method", self.method, "--seed", str(seed)]
        if self.method != "zeroshot":
            words += ["--shots", str(shots), "--no-augment"]
        words += self.options
        if self.stage1:
            words += ["--stage1", str(output / self.stage1)]
        for name, value in self.smoke.items() if smoke else ():
            if name in words:
                words[words.index(name) + 1] = value
        return words


def _recipe(method: str, options: str, *more: str, stage1: str = "") -> Recipe:
    return Recipe(method=method, options=(*options.split(), *more), stage1=stage1)


RECIPES = {
    "zeroshot": Recipe(
        method="zeroshot",
        options=(
            *("--template", "a photo of a {}."),
            *("--template", "a drawing of a {}."),
            *("--template", "an icon of a {}."),
            *("--template", "art of the {}."),
        ),
    ),
    "coop": _recipe("coop", "--epochs 100 --learning-rate 0.05 --batch-size 64", *WORDS),
    "cocoop": _recipe("cocoop", "--epochs 5 --learning-rate 0.01 --batch-size 8"),
    "kgcoop": _recipe("kgcoop", "--epochs 100 --learning-rate 0.2 --batch-size 64"),
    "vpt": _recipe(
        "vpt",
        "--epochs 20 --learning-rate 0.01 --batch-size 32",
        *("--template", "an icon of a {}."),
    ),
    "deep_language": _recipe("deep_language", "--epochs 100 --learning-rate 0.01 --batch-size 64"),
    "ivlp": _recipe("ivlp", "--epochs 20 --learning-rate 0.01 --batch-size 32"),
    "maple": _recipe("maple", "--epochs 8 --learning-rate 0.01 --batch-size 16"),
    "promptsrc": _recipe("promptsrc", "--epochs 8 --learning-rate 0.01 --batch-size 16"),
    "dpt": _recipe(
        "dpt",
        "--epochs 15 --warmup-epochs 1 --learning-rate 0.1 --batch-size 32",
        *("-O", "text_tokens=4", "-O", "words=a photo of a"),
    ),
    "dcp": _recipe("dcp", "--epochs 10 --learning-rate 0.0035 --batch-size 4"),
    "dpl": _recipe("dpl", "--epochs 10 --learning-rate 0.1 --batch-size 4"),
    "dpc-coop": _recipe("dpc", "--epochs 10 --learning-rate 0.05 --batch-size 8", stage1="coop"),
    "dpc-ivlp": _recipe(
        "dpc", "--epochs 4 --learning-rate 0.01 --batch-size 4 -O hard_negatives=4", stage1="ivlp"
    ),
    "dpc-maple": _recipe(
        "dpc", "--epochs 4 --learning-rate 0.01 --batch-size 4 -O hard_negatives=4", stage1="maple"
    ),
    "dpc-promptsrc": _recipe(
        "dpc",
        "--epochs 4 --learning-rate 0.01 --batch-size 4 -O hard_negatives=4",
        stage1="promptsrc",
    ),
}


def command(name: str) -> str:
    """What to type in a checkout."""
    words = RECIPES[name].arguments(DATA, Path("runs"))
    return shlex.join(["vlp", *words, "--output", f"runs/{name}"])


def train(name: str, output: Path, *, smoke: bool = False) -> int:
    """Run a recipe, its first stage before it, into folders below `output`; the exit code."""
    stage1 = RECIPES[name].stage1
    if stage1 and (code := train(stage1, output, smoke=smoke)):
        return code
    data = embedded.emoji_path() / Path(DATA).name
    words = RECIPES[name].arguments(data, output, smoke=smoke)
    return run([*words, "--output", str(output / name), "--force"])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", nargs="?", choices=RECIPES)
    parser.add_argument("--smoke", action="store_true", help="one shot, one epoch")
    options = parser.parse_args()
    if options.name is None:
        print("\n".join(map(command, RECIPES)))
        return 0
    return train(options.name, Path("runs-smoke" if options.smoke else "runs"), smoke=options.smoke)


if __name__ == "__main__":
    sys.exit(main())
