"""The weights of the tiny CLIP to make official files of, and places for large files."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.train.conftest import random_weights
from vlp_deploy.formats.architecture import ClipConfig


@pytest.fixture(scope="session")
def weights(tiny_config: ClipConfig) -> dict[str, np.ndarray]:
    return random_weights(tiny_config)


@pytest.fixture
def workplace(tmp_path: Path) -> Iterator[Path]:
    """A folder that is emptied after the test: pytest would keep hundreds of MB a case."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where golden models are written, emptied in the end."""
    folder = tmp_path_factory.mktemp("models")
    yield folder
    shutil.rmtree(folder)
