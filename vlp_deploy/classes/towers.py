"""A bundle's graphs in their engine: pixels to embeddings and logits, class names to class inputs.

B images, S image size, K classes, D joint width.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlp_deploy.classes.cached import cached_bank
from vlp_deploy.classes.class_list import ClassNames
from vlp_deploy.classes.conditioned import run_in_pieces
from vlp_deploy.classes.coupled import check_batch
from vlp_deploy.classes.dual import IMAGE_BASE, check_together
from vlp_deploy.classes.inputs import ClassSource, build_bank
from vlp_deploy.classes.tokenizer import Tokenizer
from vlp_deploy.engines import load_engine
from vlp_deploy.engines.base import Engine, EngineOptions
from vlp_deploy.errors import BundleError, ClassListError, ImageError
from vlp_deploy.formats.bundle import CLASS_MATRIX, Bundle, ClassBank
from vlp_deploy.self_test import prove

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]


class Towers:
    """Loads the graph that serves the bundle's classes at once, others when they are needed.

    Safe to share by threads.
    """

    def __init__(self, bundle: Bundle, engine: str, options: EngineOptions) -> None:
        """Raises BundleError, IntegrityError or EngineError."""
        self.bundle = bundle
        self._engine, self._options = engine, options
        self._loaded: dict[str, Engine] = {}
        self._lock = threading.Lock()
        self.image = self.graph(bundle.manifest.class_graph)

    def graph(self, role: str) -> Engine:
        """The engine that runs a role's graph."""
        with self._lock:
            if role not in self._loaded:
                path = self.bundle.graph_path(role)
                profiles = self.bundle.manifest.profiles.get(role, ())
                options = replace(self._options, profiles=profiles)
                self._loaded[role] = load_engine(self._engine, path, options)
            return self._loaded[role]

    def run_image(self, pixels: Pixels, bank: ClassBank) -> tuple[Floats, Floats]:
        """Embeddings (B, D) and logits (B, K)."""
        size = self.bundle.manifest.preprocessing.image_size
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != (3, size, size):
            raise ImageError(
                f"pixels are {pixels.dtype} {pixels.shape}; expected uint8 (B, 3, {size}, {size})"
            )
        check_batch(self.bundle.manifest.structure, len(pixels))
        engine = self.graph(bank.graph)
        if engine.inputs == {"image"}:  # the host does the rest
            embedding = engine.run({"image": pixels})["embedding"]
            return embedding, bank.host_logits(embedding)
        return run_in_pieces(partial(run_graph, engine), pixels, bank.inputs)

    def close(self) -> None:
        """Let go of the graphs."""
        with self._lock:
            for engine in self._loaded.values():
                engine.close()

    def prove(self, bank: ClassBank) -> None:
        """Run the golden images with a bank's graph, once on a machine. Raises EngineError."""
        prove(
            self.bundle,
            lambda pixels: self.run_image(pixels, bank),
            bank,
            engine=self.image.name,
            version=self.image.version,
            device=self._options.device,
        )

    def class_bank(
        self,
        names: ClassNames,
        templates: Sequence[str] | None,
        progress: Callable[[int, int], None] | None,
    ) -> ClassBank:
        """The inputs for new classes, from the cache where it has them; their graph is proven."""
        manifest = self.bundle.manifest
        if not manifest.new_classes.allowed:
            raise BundleError(
                f"this bundle serves only its own classes: {manifest.new_classes.reason}"
            )
        if templates is not None and manifest.text_layout.tokens:
            raise ClassListError(
                "this bundle's prompt was learned, so other templates cannot be used with it. "
                "Leave them out"
            )
        visual = IMAGE_BASE in manifest.graphs
        check_together(manifest.structure, names, manifest.base_classes, visual=visual)
        chosen = manifest.templates if templates is None else tuple(templates)
        bank = cached_bank(
            lambda chunks: build_bank(self._source(chosen, progress, chunks), names),
            names,
            templates=chosen,
            bundle_digest=self.bundle.digest,
            engine_version=self.image.version,
        )
        if bank.graph != manifest.class_graph:
            self.prove(bank)
        return bank

    def _source(
        self,
        templates: tuple[str, ...],
        progress: Callable[[int, int], None] | None,
        chunks: Path,
    ) -> ClassSource:
        manifest = self.bundle.manifest
        return ClassSource(
            structure=manifest.structure,
            config=manifest.backbone.config,
            layout=manifest.text_layout,
            templates=templates,
            prompts=self.bundle.prompts(),
            logit_scale=manifest.logit_scale,
            base_classes=manifest.base_classes,
            class_graph=manifest.class_graph,
            run=self._run,
            tokenizer=Tokenizer(self.bundle.vocabulary()),
            progress=progress,
            chunks=chunks,
        )

    def _run(self, role: str, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return self.graph(role).run(inputs)


def run_graph(engine: Engine, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """A graph's outputs by name, as they are served. Raises EngineError.

    An engine that would round the logits of a class matrix has them computed here, in float32: in
    bfloat16 close classes tie. Other logits stay the engine's.
    """
    outputs = engine.run(inputs)
    if engine.rounds_logits and CLASS_MATRIX in inputs:
        bank = ClassBank(inputs=inputs, embeddings=None)
        outputs["logits"] = bank.host_logits(outputs["embedding"])
    return outputs
