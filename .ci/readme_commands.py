"""Run README.md's shell blocks: `demo` and `tests` by their comment line, `tour` for all the others.

A block starts with ```sh; a first line `# demo` or `# tests` names it.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
NAMED = ("demo", "tests")


def blocks() -> list[tuple[str, str]]:
    """(name, commands) of every shell block; unnamed ones belong to the tour."""
    found = re.findall(r"^```sh\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.M)
    return [(next((n for n in NAMED if text.startswith(f"# {n}\n")), "tour"), text) for text in found]


def main() -> None:
    wanted = sys.argv[1]
    chosen = [text for name, text in blocks() if name == wanted]
    if not chosen:
        sys.exit(f"README.md has no {wanted!r} block")
    environment = {**os.environ, "PATH": f"{ROOT / '.venv/bin'}:{os.environ['PATH']}"}
    for text in chosen:
        print(text, flush=True)
        start = time.monotonic()
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", text], cwd=ROOT, env=environment)
        print(f"-- exit code {done.returncode} after {time.monotonic() - start:.0f} s", flush=True)
        if done.returncode:
            sys.exit(done.returncode)


main()
