"""The classifier: a bundle in an engine, from pictures to labels with probabilities.

B images, S image size, K classes, D joint width.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from vlp_deploy.answers import Answer, Candidate, Failure, Prediction
from vlp_deploy.bulk.items import Input
from vlp_deploy.bulk.pipeline import batched
from vlp_deploy.bulk.reading import READ_THREADS, Picture, read_pictures
from vlp_deploy.classes.class_list import refuse_duplicates
from vlp_deploy.classes.coupled import filled, fixed_batch
from vlp_deploy.classes.towers import Towers
from vlp_deploy.engine_choice import load_towers
from vlp_deploy.engines.base import EngineOptions
from vlp_deploy.errors import BundleError, ClassListError, IntegrityError
from vlp_deploy.formats.bundle import Bundle, ClassBank
from vlp_deploy.images.loading import ImageSource
from vlp_deploy.question import BATCH_SIZE, DEFAULT_QUESTION, Question

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]
Result = TypeVar("Result")

BUNDLE_VARIABLE = "VLP_BUNDLE"


class Classifier:
    """Classifies images into the classes of a bundle, or into new ones. Safe to share by threads.

    >>> classifier = Classifier.load("bundle/")
    >>> [answer.label for answer in classifier.classify(["cat.jpg", "dog.jpg"])]
    """

    def __init__(
        self, towers: Towers, classes: Sequence[str], bank: ClassBank, *, own: bool = True
    ) -> None:
        """Use `Classifier.load`. `own`: the classes are those of the bundle."""
        self._towers = towers
        self._bank = bank
        self._own = own
        self.classes = tuple(classes)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str] | None = None,
        engine: str = "auto",
        threads: int | None = None,
        *,
        device: str = "cpu",
        cuda_graphs: bool = False,
    ) -> Self:
        """Load a bundle; without a path `$VLP_BUNDLE`, and without that the embedded one.

        `threads` bounds what the engine uses, None leaves it to the engine; `cuda_graphs` lets
        onnxruntime on CUDA replay its launches. The first load on a
        machine proves the engine by the bundle's golden images; `engine="auto"` then also times
        those that are installed and keeps to the fastest. The embedded bundle's copy in the cache
        is made anew if it is damaged. Raises BundleError, EngineError or MissingExtraError.
        """
        options = EngineOptions(threads=threads, device=device, cuda_graphs=cuda_graphs)
        chosen = Path(path) if path is not None else _default_path()
        return _restoring(chosen, lambda: cls._load(Bundle(chosen), engine, options))

    @classmethod
    def _load(cls, bundle: Bundle, engine: str, options: EngineOptions) -> Self:
        bank = bundle.class_bank()
        return cls(load_towers(bundle, bank, engine, options), bundle.manifest.classes, bank)

    @property
    def bundle(self) -> Bundle:
        """The bundle that was loaded."""
        return self._towers.bundle

    @property
    def engine(self) -> str:
        """The engine's name."""
        return self._towers.image.name

    @property
    def engine_version(self) -> str:
        """What runs the graph and where, for example `onnxruntime 1.32.0 CPU`."""
        return self._towers.image.version

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
        ClassListError, BundleError if the bundle's method cannot serve new classes, or EngineError
        if they need another image graph and the engine gives wrong answers with it.
        """
        for what, value in (("class_names", class_names), ("templates", templates)):
            if isinstance(value, str):  # its characters would be taken one by one
                raise ClassListError(f"{what} is the text {value!r}; expected a list: [{value!r}]")
        names = tuple((name,) if isinstance(name, str) else tuple(name) for name in class_names)
        refuse_duplicates(names, [f"position {index}" for index in range(len(names))])
        bank = _restoring(
            self.bundle.path, lambda: self._towers.class_bank(names, templates, progress)
        )
        return type(self)(self._towers, [synonyms[0] for synonyms in names], bank, own=False)

    @property
    def reject_threshold(self) -> float:
        """The least probability that is an answer, as `vlp calibrate` fitted it.

        Raises BundleError if it did not, or for other classes than it was fitted to.
        """
        self._refuse_other_classes("reject threshold")
        if (threshold := self.bundle.manifest.reject_threshold) is None:
            raise BundleError(
                f"bundle {self.bundle.path} has no reject threshold. Fit one with `vlp calibrate "
                f"{self.bundle.path} DATA --unknown DATA2 --output NEW`, or name a "
                "probability of your own: --reject-below 0.4, in Python reject=0.4"
            )
        return threshold

    def reject_below(self, reject: bool | float) -> float | None:
        """The least probability that is an answer: none, `reject_threshold`, or the one given."""
        if isinstance(reject, bool):
            return self.reject_threshold if reject else None
        return reject

    @cached_property
    def class_thresholds(self) -> Floats:
        """(K,), the least logit of each class that is a label, as `vlp calibrate` fitted it.

        Raises BundleError if it did not, or for other classes than it was fitted to.
        """
        self._refuse_other_classes("class thresholds")
        if not (thresholds := self.bundle.manifest.class_thresholds):
            raise BundleError(
                f"bundle {self.bundle.path} has no class thresholds. Fit them with `vlp calibrate "
                f"{self.bundle.path} DATA --multi-label --output NEW`"
            )
        return np.array(thresholds, np.float32)

    def _refuse_other_classes(self, what: str) -> None:
        if not self._own:
            raise BundleError(
                f"the {what} of {self.bundle.path} cannot be used with other classes: fitted to "
                "probabilities among its own, it says nothing of these. To reject by a "
                "probability of your own: --reject-below 0.4, in Python reject=0.4"
            )

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
        reject: bool | float = False,
        multi_label: bool = False,
    ) -> list[Answer]:
        """One answer for every input, in order; an unreadable image is a Failure, not an error.

        Inputs are paths, encoded bytes, Pillow images and uint8 arrays (height, width, 3). With
        `reject` answers below `reject_threshold`, or below the probability given, have no label;
        with `multi_label` they have all labels that reach their `class_thresholds`.
        """
        question = Question(
            top_k=top_k,
            batch_size=batch_size,
            exact_decode=exact_decode,
            reject_below=self.reject_below(reject),
            multi_label=multi_label,
        )
        return list(self.stream(items, question))

    def stream(
        self,
        items: Iterable[Input],
        question: Question = DEFAULT_QUESTION,
        *,
        read_threads: int = READ_THREADS,
    ) -> Iterator[Answer]:
        """`classify` for any number of inputs, in bounded memory: images are read ahead of use.

        An Item gives its image another name than its path. A Failure comes out in its place.
        """
        if read_threads < 1:
            raise ValueError(f"read_threads is {read_threads}; expected 1 or more")
        pictures = read_pictures(
            items,
            self.bundle.manifest.preprocessing,
            exact_decode=question.exact_decode,
            limits=question.limits,
            threads=read_threads,
            ahead=2 * question.batch_size,
        )
        with closing(pictures):
            for batch in batched(pictures, question.batch_size):
                yield from self._answers(batch, question)

    def _answers(self, batch: Sequence[Picture | Failure], question: Question) -> Iterator[Answer]:
        readable = [read.pixels for read in batch if isinstance(read, Picture)]
        rows = self._rows(np.stack(readable), question) if readable else iter(())
        for read in batch:
            if isinstance(read, Failure):
                yield read
            else:
                embedding, logits = next(rows)
                answer = self._prediction(read.name, logits, question)
                yield replace(answer, embedding=embedding) if question.with_embeddings else answer

    def _rows(self, pixels: Pixels, question: Question) -> Iterator[tuple[Floats, Floats]]:
        """Embedding (D,) and logits (K,) of each image, and perhaps more rows behind them."""
        fixed = fixed_batch(self.bundle.manifest.structure)
        if fixed == question.batch_size:  # else it is refused: whoever asks has to know
            pixels = filled(pixels, fixed)
        return zip(*self._towers.run_image(pixels, self._bank), strict=True)

    def answer(self, logits: Floats, question: Question = DEFAULT_QUESTION) -> Prediction:
        """What logits (K,) say of an image."""
        return self._prediction(None, logits, question)

    def _prediction(self, path: str | None, logits: Floats, question: Question) -> Prediction:
        probabilities = softmax(logits / self.bundle.manifest.temperature)
        order = np.argsort(-logits, kind="stable")  # of equals the first class wins
        chosen = self._chosen(order, logits, probabilities, question)
        labels = tuple(self.classes[k] for k in chosen)
        shown = chosen[0] if labels else order[0]
        return Prediction(
            path=path,
            label=labels[0] if labels else None,
            probability=float(probabilities[shown]),
            logit=float(logits[shown]),
            top=tuple(
                Candidate(self.classes[k], float(probabilities[k])) for k in order[: question.top_k]
            ),
            labels=labels if question.multi_label else None,
        )

    def _chosen(
        self,
        order: NDArray[np.intp],
        logits: Floats,
        probabilities: NDArray[np.float64],
        question: Question,
    ) -> NDArray[np.intp]:
        """Those of all classes (K,), ordered best first, that are labels."""
        if question.multi_label:
            return order[logits[order] >= self.class_thresholds[order]]
        rejected = (
            question.reject_below is not None and probabilities[order[0]] < question.reject_below
        )
        return order[:0] if rejected else order[:1]


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
