"""Engine `fake`: made-up but deterministic answers, and bundles for it that are made in an instant.

For tests of code that uses a classifier: no inference package, no weights. Like pictures get like
embeddings, like texts too. B images, N text rows, L tokens, D joint width.
"""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from vlp_deploy.engines.base import Arrays, Engine, EngineOptions
from vlp_deploy.errors import EngineError
from vlp_deploy.formats.architecture import Record

Floats = NDArray[np.float32]
GRID = 4  # an image is summed up by its colours on a grid of 4 x 4
INPUTS = {
    "image": frozenset({"image", "class_matrix", "class_bias"}),
    "text": frozenset({"input_ids", "eot_index", "slots", "prompts"}),
}
VOCABULARY_SIZE = 49_408


class FakeGraph(Record, frozen=True, kw_only=True):
    """All there is in a graph file of the fake engine."""

    role: str  # image or text
    embed_dim: int
    seed: int = 0


class FakeEngine(Engine):
    """A random projection of coarse colours, or of the tokens up to the end of text."""

    name = "fake"
    reads = ".fake"

    @classmethod
    def is_installed(cls) -> bool:
        return True

    def __init__(self, graph: Path, options: EngineOptions) -> None:
        super().__init__(graph, options)
        try:
            self._graph = msgspec.json.decode(graph.read_bytes(), type=FakeGraph)
            self._input_names = INPUTS[self._graph.role]
        except (msgspec.DecodeError, KeyError) as error:
            raise EngineError(f"{graph} is no graph of the fake engine: {error}") from error
        rows = {"image": 3 * GRID * GRID + 1, "text": VOCABULARY_SIZE}[self._graph.role]
        generator = np.random.default_rng(self._graph.seed)
        self._table = generator.standard_normal((rows, self._graph.embed_dim), np.float32)

    @property
    def version(self) -> str:
        return "fake 1"

    @property
    def inputs(self) -> frozenset[str]:
        return self._input_names

    def _run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        if self._graph.role == "text":
            features = self._text_features(inputs)
            return {"feature": features, "embedding": _unit(features)}
        embedding = _unit(self._image_features(inputs["image"]))
        logits = embedding @ inputs["class_matrix"] + inputs["class_bias"]
        return {"embedding": embedding, "logits": logits}

    def _image_features(self, image: NDArray[np.uint8]) -> Floats:
        batch, channels, size, _ = image.shape
        cell = size // GRID
        image = image[:, :, : GRID * cell, : GRID * cell]
        cells = image.reshape(batch, channels, GRID, cell, GRID, cell)
        colours = cells.mean(axis=(3, 5), dtype=np.float32).reshape(batch, -1) / 255  # (B, 48)
        table, constant = self._table[:-1], self._table[-1]  # a black image has a direction too
        # Image by image: the sum of a matrix product may depend on the number of its rows.
        rows = [row @ table + constant for row in colours]
        return np.array(rows, np.float32).reshape(batch, len(constant))  # (B, D)

    def _text_features(self, inputs: Arrays) -> Floats:
        tokens = self._table[inputs["input_ids"]]  # (N, L, D)
        if inputs["prompts"].size:
            width = min(self._graph.embed_dim, inputs["prompts"].shape[2])
            prompts = np.zeros((inputs["prompts"].shape[1], self._graph.embed_dim), np.float32)
            prompts[:, :width] = inputs["prompts"][0, :, :width]
            slots = inputs["slots"]
            tokens = np.where(slots[:, :, None] >= 0, prompts[np.maximum(slots, 0)], tokens)
        positions = np.arange(tokens.shape[1])
        read = positions[None, :] < inputs["eot_index"][:, None]  # (N, L)
        features: Floats = (tokens * read[:, :, None]).sum(axis=1)
        return features


def _unit(vectors: Floats) -> Floats:
    unit: Floats = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit
