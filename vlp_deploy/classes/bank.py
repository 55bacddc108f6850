"""From class names to one feature a class: the prompt ensemble of arXiv:2103.00020.

K classes, N rows of one run, L tokens, J prompted layers, m prompt tokens, D the joint width.
Exporter and runtime share this module, so that new classes are embedded as the baked ones were.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from vlp_deploy.classes.prompts import PLAIN, TextRows, text_rows
from vlp_deploy.classes.tokenizer import Tokenizer
from vlp_deploy.errors import ClassListError
from vlp_deploy.formats.architecture import TextLayout

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
Progress = Callable[[int, int], None]

ROWS_A_RUN = 256


class RunText(Protocol):
    """The text graph: token rows in, features out, raw and L2-normalised."""

    def __call__(
        self, ids: Integers, eot: Integers, slots: Integers, prompts: Floats
    ) -> tuple[Floats, Floats]:
        """(N, L), (N,), (N, L), (J, m, d) to (N, D) and (N, D)."""
        ...


class ClassFeatures(NamedTuple):
    """What a class is to the image side."""

    raw: Floats  # (K, D), the mean of the text tower's features as they are
    embeddings: Floats  # (K, D), L2-normalised


def build_class_features(
    run_text: RunText,
    class_names: Sequence[Sequence[str]],
    *,
    templates: Sequence[str],
    prompts: Floats,
    tokenizer: Tokenizer,
    layout: TextLayout = PLAIN,
    context_length: int = 77,
    progress: Progress | None = None,
) -> ClassFeatures:
    """Every class averaged over its synonyms and the templates.

    `class_names` gives every class its synonyms (at least one). For the embedding, every row's is
    normalised before the mean and the mean again. `progress(done, total)` counts rows. Raises
    ClassListError.
    """
    _check(class_names, templates)
    names = [synonym for synonyms in class_names for synonym in synonyms]
    synonyms = np.array([len(synonyms) for synonyms in class_names])
    owners = np.repeat(np.arange(len(class_names)), synonyms)
    total, done = len(names) * len(templates), 0
    sums: NDArray[np.float64] | None = None  # (K, 2, D): raw, normalised
    for template in templates:
        rows = text_rows(names, template, tokenizer, layout=layout, context_length=context_length)
        for chunk in _chunks_by_length(rows):
            features = _run(run_text, rows, chunk, prompts)  # (N, 2, D)
            if sums is None:
                sums = np.zeros((len(class_names), *features.shape[1:]))
            np.add.at(sums, owners[chunk], features)
            done += len(chunk)
            if progress is not None:
                progress(done, total)
    assert sums is not None  # _check has refused empty lists
    raw = sums[:, 0] / (synonyms * len(templates))[:, None]
    return ClassFeatures(raw.astype(np.float32), normalised(sums[:, 1]).astype(np.float32))


def normalised(vectors: NDArray[np.floating]) -> NDArray[np.float64]:
    """Rows divided by their Euclidean length."""
    exact = vectors.astype(np.float64)
    unit: NDArray[np.float64] = exact / np.linalg.norm(exact, axis=1, keepdims=True)
    return unit


def _check(class_names: Sequence[Sequence[str]], templates: Sequence[str]) -> None:
    if not class_names:
        raise ClassListError("there are no classes: give at least one name")
    if not templates:
        raise ClassListError(
            "there are no templates: give at least one, such as 'a photo of a {}.'"
        )
    for index, synonyms in enumerate(class_names):
        if isinstance(synonyms, str) or not synonyms:
            raise ClassListError(
                f"class {index} is {synonyms!r}; expected a list of at least one synonym"
            )


def _chunks_by_length(rows: TextRows) -> list[Integers]:
    """Row numbers, shortest rows first, so that a chunk holds little padding."""
    order = np.argsort(rows.eot, kind="stable")
    return [order[start : start + ROWS_A_RUN] for start in range(0, len(order), ROWS_A_RUN)]


def _run(
    run_text: RunText, rows: TextRows, chunk: Integers, prompts: Floats
) -> NDArray[np.float64]:
    """(N, 2, D): raw features, normalised features."""
    eot = rows.eot[chunk]
    length = int(eot.max()) + 1  # causal attention: what follows the end of text has no influence
    raw, embeddings = run_text(rows.ids[chunk, :length], eot, rows.slots[chunk, :length], prompts)
    return np.stack([raw.astype(np.float64), normalised(embeddings)], axis=1)
