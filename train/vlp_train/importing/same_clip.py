"""Whether prompts belong to the CLIP they are imported for, by what their files hold of it.

Prompts of RN50, RN101, ViT-B/32 and ViT-B/16 have the same shapes and load into each other without
an error; only the copies of token embeddings and frozen weights tell them apart.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlp_deploy.classes.tokenizer import START_OF_TEXT
from vlp_deploy.errors import CheckpointError
from vlp_deploy.formats.architecture import Backbone
from vlp_deploy.formats.weights import Floats
from vlp_train.importing.detect import Source, frozen_tensors
from vlp_train.importing.reader import OfficialFile

PREFIXES = ("token_prefix", "prompt_learner.token_prefix")
COMPARED = (
    "visual.conv1.weight",
    "visual.class_embedding",
    "visual.positional_embedding",
    "visual.proj",
    "positional_embedding",
    "text_projection",
)
# of the largest weight: half precision, and PromptSRC's average of the weights in it
RELATIVE_TOLERANCE = 5e-3


def check_same_clip(source: Source, weights: Mapping[str, Floats], backbone: Backbone) -> bool:
    """Raise CheckpointError for prompts of another CLIP; False if the files cannot tell."""
    told = [
        found
        for file in source.parts.values()
        for found in (
            _check_start_of_text(file, weights["token_embedding.weight"], backbone),
            _check_frozen(file, frozen_tensors(source.kind, backbone.config), weights, backbone),
        )
    ]
    return any(told)


def _check_start_of_text(file: OfficialFile, embedding: Floats, backbone: Backbone) -> bool:
    """`token_prefix` is the embedding of start-of-text, in half precision, for every class."""
    for name in PREFIXES:
        if name in file.state:
            expected = embedding[START_OF_TEXT]
            stored = file.state[name]
            if len(stored.shape) != 3 or stored.shape[2] != len(expected):
                raise CheckpointError(
                    _another(
                        file, name, f"{stored.shape}, width {len(expected)} expected", backbone
                    )
                )
            if not _close(stored.read()[0, 0], expected):
                raise CheckpointError(_another(file, name, "another start of text", backbone))
            return True
    return False


def _check_frozen(
    file: OfficialFile, names: Mapping[str, str], weights: Mapping[str, Floats], backbone: Backbone
) -> bool:
    compared = [official for official, name in names.items() if name in COMPARED]
    present = [official for official in compared if official in file.state]
    for official in present:
        expected, stored = weights[names[official]], file.state[official]
        if stored.shape != expected.shape:
            shapes = f"{stored.shape}, {expected.shape} expected"
            raise CheckpointError(_another(file, official, shapes, backbone))
        if not _close(stored.read(), expected):
            raise CheckpointError(_another(file, official, "other weights", backbone))
    return bool(present)


def _close(stored: NDArray[Any], expected: Floats) -> bool:
    difference = np.abs(stored.astype(np.float32) - expected).max()
    return bool(difference <= RELATIVE_TOLERANCE * np.abs(expected).max())


def _another(file: OfficialFile, name: str, found: str, backbone: Backbone) -> str:
    return (
        f"{file.path} was trained with another CLIP than {backbone.name} ({backbone.pretrained}): "
        f"{name} has {found}. Pass the --model and --pretrained it was trained with, for official "
        "checkpoints such as ViT-B-16-quickgelu with openai"
    )
