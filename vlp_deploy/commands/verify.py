"""`vlp verify`: a bundle's files against the checksums written at export."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from vlp_deploy.embedded import default_bundle
from vlp_deploy.formats.bundle import Bundle
from vlp_deploy.formats.sealed import SealedFolder


def verify(
    bundle: Annotated[
        Path | None, typer.Argument(help="Folder made by `vlp export`. Default: the embedded one.")
    ] = None,
) -> int:
    """Hash every file of a bundle and name each one that is missing, changed or foreign.

    Exit code 0: the bundle is exactly what was exported. 1: it is not; do not use it.
    """
    folder = bundle or default_bundle()
    complaints = 0
    for name, complaint in SealedFolder(folder).verify():
        complaints += complaint is not None
        print(f"{'ok' if complaint is None else 'BAD':<4}{name}")
        if complaint is not None:
            print(f"vlp: {complaint}", file=sys.stderr)
    if not complaints:
        Bundle(folder)  # also readable by this version
    elif bundle is None:
        print(f"vlp: delete {folder}; it is unpacked again when it is used", file=sys.stderr)
    return min(complaints, 1)
