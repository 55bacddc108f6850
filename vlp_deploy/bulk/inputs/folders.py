"""From a folder to the image files in it, to any depth, in the byte order of their paths.

A file counts if its name ends like an image's, or its first bytes are an image's, or it cannot be
looked into (a link to nothing, a file without permission). Hidden files and folders, links to
folders (they may lead in circles) and whatever else is left out are counted. A folder is read when
its turn comes; of those on the way down only names are kept, some 60 bytes an entry.
"""

import os
from collections.abc import Iterator

from vlp_deploy.answers import Failure
from vlp_deploy.bulk.inputs.tally import SIGNATURE_BYTES, Tally, is_named_like_image
from vlp_deploy.images.loading import has_image_signature


def folder_items(folder: str, tally: Tally) -> Iterator[str | Failure]:
    """Paths as strings; a Failure for a folder that cannot be read."""
    pending: list[Iterator[str]] = [iter([os.path.join(folder, "")])]
    while pending:
        if (path := next(pending[-1], None)) is None:
            pending.pop()
        elif path.endswith("/"):
            try:
                pending.append(_entries(path, tally))
            except OSError as error:
                reason = f"the folder cannot be read: {error.strerror}"
                yield Failure(path=path if len(path) == 1 else path[:-1], error=reason)
        elif _may_be_image(path):
            yield path
        else:
            tally.left_out += 1


def _entries(folder: str, tally: Tally) -> Iterator[str]:
    """Paths of what is in a folder and not hidden, sorted; those of folders end in a slash."""
    names = []
    with os.scandir(os.fsencode(folder)) as scan:
        for entry in scan:
            if entry.name.startswith(b"."):
                tally.left_out += 1
            else:
                # With its slash a folder sorts to where its files belong among all paths.
                names.append(entry.name + b"/" * entry.is_dir(follow_symlinks=False))
    names.sort()
    return (folder + os.fsdecode(name) for name in names)


def _may_be_image(path: str) -> bool:
    if is_named_like_image(path):
        return True
    try:
        if not os.path.isfile(path):
            return not os.path.isdir(path)  # a pipe or a link to nothing counts, to a folder not
        with open(path, "rb") as file:
            return has_image_signature(file.read(SIGNATURE_BYTES))
    except OSError:
        return True
