"""The classifier: a bundle in an engine, from pictures to labels with probabilities.

B images, S image size, K classes, D joint width.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from vlp_deploy.bundle import Bundle, ClassBank
from vlp_deploy.class_list import refuse_duplicates
from vlp_deploy.engines.base import EngineOptions
from vlp_deploy.errors import BundleError, ClassListError, ImageError, IntegrityError
from vlp_deploy.images import MAX_PIXELS, ImageSource
from vlp_deploy.pipeline import batched, ordered_map
from vlp_deploy.preprocess import preprocess
from vlp_deploy.self_test import prove
from vlp_deploy.towers import Towers

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]
Result = TypeVar("Result")

BUNDLE_VARIABLE = "VLP_BUNDLE"
BATCH_SIZE = 32
READ_THREADS = min(8, len(os.sched_getaffinity(0)))


class Candidate(NamedTuple):
    """A class and its probability among the classes that were offered."""

    label: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The answer for one image. `logit` is that of the label, before temperature."""

    path: str | None  # as it was given; None for an image that came without one
    label: str
    probability: float
    logit: float
    top: tuple[Candidate, ...]  # best first


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An input that could not be classified, and why."""

    path: str | None
    error: str


_Read = tuple[str | None, Pixels] | Failure


class Classifier:
    """Classifies images into the classes of a bundle, or into new ones. Safe to share by threads.

    >>> classifier = Classifier.load("bundle/")
    >>> [answer.label for answer in classifier.classify(["cat.jpg", "dog.jpg"])]
    """

    def __init__(self, towers: Towers, classes: Sequence[str], bank: ClassBank) -> None:
        """Use `Classifier.load`."""
        self._towers = towers
        self._bank = bank
        self.classes = tuple(classes)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str] | None = None,
        engine: str = "auto",
        threads: int | None = None,
        *,
        device: str = "cpu",
    ) -> Self:
        """Load a bundle; without a path `$VLP_BUNDLE`, and without that the embedded one.

        `threads` bounds what the engine uses, None leaves it to the engine. The first load on a
        machine proves the engine by the bundle's golden images. The embedded bundle's copy in the
        cache is made anew if it is damaged. Raises BundleError, EngineError or MissingExtraError.
        """
        options = EngineOptions(threads=threads, device=device)
        chosen = Path(path) if path is not None else _default_path()
        return _restoring(chosen, lambda: cls._load(Bundle(chosen), engine, options))

    @classmethod
    def _load(cls, bundle: Bundle, engine: str, options: EngineOptions) -> Self:
        towers = Towers(bundle, engine, options)
        bank = bundle.class_bank()
        classifier = cls(towers, bundle.manifest.classes, bank)
        prove(
            bundle,
            lambda pixels: towers.run_image(pixels, bank),
            engine=classifier.engine,
            version=towers.image.version,
            device=options.device,
        )
        return classifier

    @property
    def bundle(self) -> Bundle:
        """The bundle that was loaded."""
        return self._towers.bundle

    @property
    def engine(self) -> str:
        """The engine's name."""
        return self._towers.image.name

    @property
    def class_embeddings(self) -> Floats:
        """(K, D), L2-normalised. Raises BundleError where a class has none of its own."""
        if self._bank.embeddings is None:
            raise BundleError(
                f"{self.bundle.manifest.method} has no class embeddings: its text features depend "
                "on the image. Use logits or classify"
            )
        return self._bank.embeddings

    def with_classes(
        self,
        class_names: Sequence[str | Sequence[str]],
        templates: Sequence[str] | None = None,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> Self:
        """This classifier for other classes: a name each, or a list of synonyms, label first.

        `templates` hold `{}` once each and are averaged; None takes the bundle's. Embeddings are
        kept in the cache; `progress(done, total)` is called while they are computed. Raises
        ClassListError, or BundleError if the bundle's method cannot serve new classes.
        """
        for what, value in (("class_names", class_names), ("templates", templates)):
            if isinstance(value, str):  # its characters would be taken one by one
                raise ClassListError(f"{what} is the text {value!r}; expected a list: [{value!r}]")
        names = tuple((name,) if isinstance(name, str) else tuple(name) for name in class_names)
        refuse_duplicates(names, [f"position {index}" for index in range(len(names))])
        bank = _restoring(
            self.bundle.path, lambda: self._towers.class_bank(names, templates, progress)
        )
        return type(self)(self._towers, [synonyms[0] for synonyms in names], bank)

    def logits(self, pixels: Pixels) -> Floats:
        """uint8 (B, 3, S, S) to (B, K): scaled cosines and class biases, before temperature."""
        return self._towers.run_image(pixels, self._bank)[1]

    def embed(self, pixels: Pixels) -> Floats:
        """uint8 (B, 3, S, S) to (B, D), L2-normalised."""
        return self._towers.run_image(pixels, self._bank)[0]

    def classify(
        self,
        items: Iterable[ImageSource],
        top_k: int = 5,
        batch_size: int = BATCH_SIZE,
        *,
        exact_decode: bool = False,
    ) -> list[Prediction | Failure]:
        """One answer for every input, in order; an unreadable image is a Failure, not an error.

        Inputs are paths, encoded bytes, Pillow images and uint8 arrays (height, width, 3).
        """
        answers = self.stream(items, top_k, batch_size, exact_decode=exact_decode)
        return list(answers)

    def stream(
        self,
        items: Iterable[ImageSource | Failure],
        top_k: int = 5,
        batch_size: int = BATCH_SIZE,
        *,
        exact_decode: bool = False,
        max_pixels: int = MAX_PIXELS,
    ) -> Iterator[Prediction | Failure]:
        """`classify` for any number of inputs, in bounded memory: images are read ahead of use.

        A Failure among the inputs comes out in its place.
        """
        if top_k < 1 or batch_size < 1:
            raise ValueError(f"top_k is {top_k}, batch_size {batch_size}; expected 1 or more each")
        preprocessing = self.bundle.manifest.preprocessing

        def read(item: ImageSource | Failure) -> _Read:
            if isinstance(item, Failure):
                return item
            path = os.fspath(item) if isinstance(item, str | os.PathLike) else None
            try:
                return path, preprocess(
                    item, preprocessing, exact=exact_decode, max_pixels=max_pixels
                )
            except ImageError as error:
                return Failure(path=path, error=str(error))

        images = ordered_map(read, items, workers=READ_THREADS, ahead=2 * batch_size + READ_THREADS)
        for batch in batched(images, batch_size):
            yield from self._answers(batch, top_k)

    def _answers(self, batch: Sequence["_Read"], top_k: int) -> Iterator[Prediction | Failure]:
        readable = [read[1] for read in batch if not isinstance(read, Failure)]
        rows = iter(self.logits(np.stack(readable)) if readable else ())
        for read in batch:
            if isinstance(read, Failure):
                yield read
            else:
                yield self._prediction(read[0], next(rows), top_k)

    def _prediction(self, path: str | None, logits: Floats, top_k: int) -> Prediction:
        probabilities = softmax(logits / self.bundle.manifest.temperature)
        best = np.argsort(-logits, kind="stable")[:top_k]  # of equals the first class wins
        top = tuple(Candidate(self.classes[k], float(probabilities[k])) for k in best)
        return Prediction(
            path=path,
            label=top[0].label,
            probability=top[0].probability,
            logit=float(logits[best[0]]),
            top=top,
        )


def softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Probabilities over the last axis."""
    # The largest is taken off first: a logit of 100 would be 10^43.
    weights = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    probabilities: NDArray[np.float64] = weights / weights.sum(axis=-1, keepdims=True)
    return probabilities


def _restoring(bundle: Path, use: Callable[[], Result]) -> Result:
    """`use()`, a second time if it finds the embedded bundle's copy in the cache damaged."""
    try:
        return use()
    except IntegrityError:
        from vlp_deploy.embedded import restore  # as below

        if not restore(bundle):
            raise
    return use()


def _default_path() -> Path:
    if chosen := os.environ.get(BUNDLE_VARIABLE):
        return Path(chosen)
    from vlp_deploy.embedded import default_bundle  # only needed without a bundle of one's own

    return default_bundle()
