"""Run README.md's code blocks: `demo` and `tests` by their first line, `tour` for all the others.

A ```sh block runs in bash, a ```python block in the environment's Python, both in the checkout.
"""

import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
NAMED = ("demo", "tests")
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks() -> list[tuple[str, str, str]]:
    """(name, language, code) of every block; unnamed ones belong to the tour."""
    found = BLOCK.findall((ROOT / "README.md").read_text())
    return [
        (next((name for name in NAMED if code.startswith(f"# {name}\n")), "tour"), language, code)
        for language, code in found
    ]


def script(language: str, code: str, name: str) -> str:
    """What a reader's shell gets; the tour expects the environment that the first blocks made."""
    activate = ". .venv/bin/activate\n" if name == "tour" else ""
    return activate + (f"python -c {shlex.quote(code)}" if language == "python" else code)


def main() -> None:
    """Run the blocks of the name that is asked for; stop at the first that fails."""
    wanted = sys.argv[1]
    chosen = [(language, code) for name, language, code in blocks() if name == wanted]
    if not chosen:
        sys.exit(f"README.md has no {wanted!r} block")
    for language, code in chosen:
        print(code, flush=True)
        start = time.monotonic()
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script(language, code, wanted)],
            cwd=ROOT,
            check=False,
        )
        print(f"-- exit code {done.returncode} after {time.monotonic() - start:.0f} s", flush=True)
        if done.returncode:
            sys.exit(done.returncode)


main()
