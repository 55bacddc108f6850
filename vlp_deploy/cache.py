"""Where things that can be made again are kept: engines, class embeddings, the default bundle."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$VLP_CACHE`, else `vlp-deploy` in the user's cache folder. It may not exist yet."""
    if chosen := os.environ.get("VLP_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vlp-deploy"
