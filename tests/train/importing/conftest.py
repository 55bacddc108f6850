"""The weights of the tiny CLIP, to make official files of."""

import numpy as np
import pytest

from tests.train.conftest import random_weights
from vlp_deploy.architecture import ClipConfig


@pytest.fixture(scope="session")
def weights(tiny_config: ClipConfig) -> dict[str, np.ndarray]:
    return random_weights(tiny_config)
