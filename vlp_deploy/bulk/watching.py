"""From folders to the images in them as they arrive, each once, when it has come to rest.

A file is taken when two looks, POLL_S apart, find it of the same size and time: one that is still
being written, or copied, waits.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path

from vlp_deploy.answers import Failure
from vlp_deploy.bulk.inputs import Inputs
from vlp_deploy.bulk.items import Input, name_of

POLL_S = 1.0

Look = tuple[int, int]  # size in bytes, time of the last change


def arrivals(folders: list[Path], known: set[str]) -> Iterator[list[Input]]:
    """After every look, for ever, the images that are new and at rest; often none.

    `known` are names that do not count, and grows by those that are given.
    """
    before: dict[str, Look] = {}
    while True:
        now = {
            name: (given, _look(given))
            for given in Inputs(folders)
            if (name := name_of(given)) is not None and name not in known
        }
        new = {name: given for name, (given, look) in now.items() if before.get(name) == look}
        known.update(new)
        yield list(new.values())
        before = {name: look for name, (_, look) in now.items() if name not in new}
        time.sleep(POLL_S)


def _look(given: Input) -> Look:
    if isinstance(given, Failure):
        return (0, 0)
    try:
        found = os.stat(name_of(given) or "")
    except OSError:
        # a link to nothing is an answer, too; a file that has gone is not looked at again
        return (0, 0)
    return (found.st_size, found.st_mtime_ns)
