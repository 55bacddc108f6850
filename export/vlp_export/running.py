"""A checkpoint's graphs as they run: what proofs and class banks are made with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlp_deploy.classes.conditioned import run_in_pieces
from vlp_deploy.classes.coupled import one_by_one
from vlp_deploy.classes.dual import IMAGE_BASE, IMAGE_NEW
from vlp_deploy.classes.inputs import ClassSource
from vlp_deploy.formats.bundle import ClassBank
from vlp_deploy.formats.checkpoint import PromptCheckpoint
from vlp_export.class_texts import class_source
from vlp_export.dialects import PORTABLE, Dialect
from vlp_export.folding import Floats, Weights
from vlp_export.graphs import Graphs
from vlp_export.served import Run, run_in
from vlp_export.session import Session

Progress = Callable[[str], None]


def silent(_: str) -> None:
    """Progress that nobody asked for."""


class Sessions:
    """The graphs of a bundle by role, each loaded when it is first run."""

    def __init__(self, graphs: Graphs, load: Callable[[bytes], Run] = Session) -> None:
        self._graphs, self._load = graphs, load
        self._loaded: dict[str, Run] = {}

    def __call__(self, role: str, inputs: Mapping[str, NDArray[Any]]) -> dict[str, Floats]:
        """Outputs of the graph of a role."""
        if role not in self._loaded:
            self._loaded[role] = self._load(self._graphs.files[role].content)
        return self._loaded[role](inputs)

    def image(self, pixels: NDArray[np.uint8], bank: ClassBank) -> tuple[Floats, Floats]:
        """(B, 3, S, S) → embeddings (B, D) and logits (B, K)."""
        return run_in_pieces(partial(self, bank.graph), pixels, bank.inputs)


@dataclass(frozen=True, kw_only=True)
class Running:
    """A checkpoint's graphs, running, and the way from names to their class inputs."""

    graphs: Graphs
    sessions: Sessions
    source: ClassSource

    @classmethod
    def of(
        cls,
        checkpoint: PromptCheckpoint,
        weights: Weights,
        report: Progress,
        *,
        dialect: Dialect = PORTABLE,
    ) -> "Running":
        """Write and load the graphs of a checkpoint."""
        report("writing graphs")
        graphs = Graphs.of(checkpoint, weights, dialect)
        sessions = Sessions(graphs)
        source = class_source(
            checkpoint,
            sessions,
            logit_scale=float(np.exp(weights["logit_scale"])),
            progress=lambda done, total: report(
                f"embedding class names, {done} of {total} prompts"
            ),
        )
        return cls(graphs=graphs, sessions=sessions, source=source)

    def in_engine(self, name: str) -> "Running":
        """The same graphs, run by an engine of the runtime."""
        return replace(self, sessions=Sessions(self.graphs, partial(run_in, name)))

    def answer(self, pixels: NDArray[np.uint8], bank: ClassBank) -> tuple[Floats, Floats]:
        """(B, 3, S, S) → embeddings (B, D) and logits (B, K), where no image sees another."""
        run = one_by_one(lambda images: self.sessions.image(images, bank), self.source.structure)
        return run(pixels)

    def further_embeddings(self, pixels: NDArray[np.uint8], bank: ClassBank) -> dict[str, Floats]:
        """By role, what image graphs answer that take a bank's inputs but do not serve it."""
        others = {IMAGE_BASE, IMAGE_NEW} & set(self.graphs.files) - {bank.graph}
        return {role: self.answer(pixels, replace(bank, graph=role))[0] for role in sorted(others)}
