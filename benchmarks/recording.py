"""From what a benchmark measured to a line of `results/*.jsonl`.

Every line says when it was begun, by which command, and on what machine.
"""

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from vlp_deploy.measuring.timing import describe_machine


class Recording:
    """One run of a benchmark, from before anything is measured: the load is that of others."""

    def __init__(self, packages: Sequence[str]) -> None:
        self._line: dict[str, object] = {
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": " ".join(["python", *sys.argv]),
            "machine": msgspec.to_builtins(describe_machine(packages)),
        }

    def append(self, results: Path, **figures: object) -> None:
        """Write a line with these figures at the end of a file."""
        results.parent.mkdir(exist_ok=True)
        with results.open("a") as file:
            file.write(json.dumps({**self._line, **figures}) + "\n")
