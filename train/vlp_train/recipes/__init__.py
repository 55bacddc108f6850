"""One file a method: the command that trains it on the embedded emoji, and what came of it.

python -m vlp_train.recipes.coop            # the recipe
python -m vlp_train.recipes.coop --smoke    # the same road in seconds, to see that it works
"""

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlp_deploy import embedded
from vlp_deploy.cli import run

DATA = "vlp_deploy/embedded/emoji/split_zhou_styles.json"  # in a checkout


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Options of `vlp train`; `smoke` gives some of them cheaper values."""

    method: str
    options: Sequence[str]
    smoke: Mapping[str, str]

    def command(self) -> str:
        """What to type in a checkout."""
        words = ["vlp", "train", DATA, "--method", self.method, *self.options]
        return shlex.join([*words, "--output", f"runs/{self.method}"])

    def arguments(self, output: Path, *, smoke: bool = False) -> list[str]:
        """The command's arguments, with the data where this installation has it."""
        data = embedded.emoji_path() / Path(DATA).name
        options = list(self.options)
        for name, value in self.smoke.items() if smoke else ():
            options[options.index(name) + 1] = value
        return ["train", str(data), "--method", self.method, *options, "--output", str(output)]

    def main(self) -> None:
        """Run it, as a script does."""
        smoke = "--smoke" in sys.argv[1:]
        output = Path("runs") / (f"{self.method}-smoke" if smoke else self.method)
        sys.exit(run(self.arguments(output, smoke=smoke) + (["--force"] if smoke else [])))
