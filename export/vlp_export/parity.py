"""The gate of every export: an engine's answers against those of the un-folded model.

The reference images and logits come from the checkpoint, written by the code that trained or
imported it, so that an export cannot agree with itself by accident.

Legend: n reference images, B images of a batch, K classes, D joint width.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlp_deploy.errors import ParityError
from vlp_deploy.formats.bundle import CLASS_MATRIX, ClassBank, ParityRow, Precision
from vlp_deploy.tolerance import LEAST_BATCH_COSINES, LEAST_COSINES, logit_tolerance

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]
RunImages = Callable[[Pixels], tuple[Floats, Floats]]  # (B, 3, S, S) → (B, D), (B, K)

BATCHES = (1, 2, 5, 8)
LENGTH_TOLERANCE = 1e-5  # of an embedding of length 1, in float32
REPORT_IT = "this is a bug of the exporter: please report it. Nothing was written"


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What has to come out."""

    pixels: Pixels  # (n, 3, S, S)
    logits: Floats  # (n, K)
    logit_scale: float
    bank: ClassBank  # the class inputs that the answers were given for
    embeddings: Floats | None = None  # (n, D), what the graph gives in float32

    @property
    def tolerance(self) -> float:
        """How far a logit may be off in float32."""
        return logit_tolerance(self.logit_scale)


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """A table that passed, and the engine's answers one image at a time."""

    rows: tuple[ParityRow, ...]
    embeddings: Floats  # (n, D)
    logits: Floats  # (n, K)


def check_parity(
    run: RunImages,
    reference: Reference,
    *,
    engine: str,
    precision: Precision = "fp32",
    batches: Sequence[int] = BATCHES,
) -> ParityReport:
    """Compare every reference image's answer at every batch size.

    Raises ParityError with the table if a row of it does not pass; and without it if embeddings are
    not of length 1, or the logits are not those of the embeddings.
    """
    answers = {batch: _answers(run, reference.pixels, batch=batch) for batch in {1, *batches}}
    embeddings, logits = answers[1]
    expected_embeddings = embeddings if reference.embeddings is None else reference.embeddings
    rows = []
    for batch in batches:
        batch_embeddings, batch_logits = answers[batch]
        _check_shape(batch_logits, reference.logits)
        rows.append(
            ParityRow(
                engine=engine,
                precision=precision,
                batch=batch,
                images=len(reference.pixels),
                max_logit_difference=float(np.abs(batch_logits - reference.logits).max()),
                min_cosine=float(_cosines(batch_embeddings, expected_embeddings).min()),
                batch_cosine=float(_cosines(batch_embeddings, embeddings).min()),
                top1_agreement=_agreement(batch_logits, reference),
                tolerance=logit_tolerance(reference.logit_scale, precision),
            )
        )
    if not all(passes(row) for row in rows):
        raise ParityError(_complaint(rows, precision))
    for batch in batches:
        embeddings_of_batch, logits_of_batch = answers[batch]
        _check_length(embeddings_of_batch, batch=batch)
        if CLASS_MATRIX in reference.bank.inputs:
            expected = reference.bank.host_logits(embeddings_of_batch)
            _check_head(logits_of_batch, expected, batch=batch, tolerance=reference.tolerance)
    return ParityReport(rows=tuple(rows), embeddings=embeddings, logits=logits)


def _complaint(rows: Sequence[ParityRow], precision: Precision) -> str:
    """The table, with what is wrong and what to do about it."""
    if precision == "fp32":
        return (
            "the exported graph does not compute what its checkpoint computed:\n"
            f"{format_table(rows)}\n"
            f"If --pretrained names the weights that the prompt was tuned on, {REPORT_IT}"
        )
    return (
        f"in {precision} the graph answers too unlike its checkpoint, or by its neighbours:\n"
        f"{format_table(rows)}\n"
        "int8 and fp8 take their ranges from --calibration: pass more images, like those to be "
        "classified. Or choose another precision. Nothing was written"
    )


def passes(row: ParityRow) -> bool:
    """Whether an engine is as good as the reference; NaN never is.

    In float32 a logit may be off by rounding, and the top-1 class has to be the same where the
    reference prefers it by more than twice that. In other precisions the embedding has to point
    where it does in float32. In all of them it must not depend on the batch.
    """
    least = LEAST_COSINES.get(row.precision, LEAST_BATCH_COSINES["fp32"])
    independence = row.min_cosine if row.batch_cosine is None else row.batch_cosine
    return (
        row.max_logit_difference <= row.tolerance
        and row.min_cosine >= least
        and independence >= LEAST_BATCH_COSINES[row.precision]
        and (row.top1_agreement == 1.0 or row.precision != "fp32")
    )


def format_table(rows: Sequence[ParityRow]) -> str:
    """The parity table in plain text."""
    lines = [
        "engine  precision  batch  max |Δlogit|  allowed  min cosine  batch cosine  top-1  verdict"
    ]
    lines += [
        f"{row.engine:<7} {row.precision:<10} {row.batch:>5}  {row.max_logit_difference:>12.2e}  "
        f"{row.tolerance:>7.0e}  {row.min_cosine:>10.7f}  "
        f"{row.batch_cosine:>12.7f}  {row.top1_agreement:>5.0%}  "
        f"{'ok' if passes(row) else 'FAILS'}"
        for row in rows
    ]
    return "\n".join(lines)


def _answers(run: RunImages, pixels: Pixels, *, batch: int) -> tuple[Floats, Floats]:
    """Embeddings and logits of all images, run in batches of exactly this size."""
    embeddings, logits = zip(*_batches(run, pixels, batch), strict=True)
    count = len(pixels)
    return np.concatenate(embeddings)[:count], np.concatenate(logits)[:count]


def _batches(run: RunImages, pixels: Pixels, batch: int) -> Iterator[tuple[Floats, Floats]]:
    """Answers for the images in order; but for one alone, each batch ends in an outlier."""
    images = max(1, batch - 1)
    for start in range(0, len(pixels), images):
        rows = np.arange(start, start + images) % len(pixels)  # the first fill the last batch
        together = [pixels[rows]] if batch == 1 else [pixels[rows], _outlier(pixels)]
        embeddings, logits = run(np.concatenate(together))
        yield embeddings[:images], logits[:images]


def _outlier(pixels: Pixels) -> Pixels:
    """A chequerboard of black and white pixels, unlike any picture, (1, 3, S, S)."""
    rows, columns = np.indices(pixels.shape[2:])
    board = ((rows + columns) % 2 * 255).astype(np.uint8)
    return np.broadcast_to(board, (1, *pixels.shape[1:]))


def _check_shape(found: Floats, expected: Floats) -> None:
    # before any subtraction: shapes that broadcast would give differences that mean nothing
    if found.shape != expected.shape:
        raise ParityError(
            f"the exported graph gives logits of shape {found.shape}; the checkpoint's reference "
            f"has {expected.shape}"
        )


def _check_length(embeddings: Floats, *, batch: int) -> None:
    """Comparisons here and below are written so that NaN fails them."""
    lengths = np.linalg.norm(embeddings.astype(np.float64), axis=1)
    length_error = float(np.abs(lengths - 1).max())
    if not length_error <= LENGTH_TOLERANCE:
        raise ParityError(
            f"the exported graph's embeddings are not of length 1: off by {length_error:.1e} at "
            f"batch {batch}, allowed are {LENGTH_TOLERANCE:.0e}; {REPORT_IT}"
        )


def _check_head(logits: Floats, expected: Floats, *, batch: int, tolerance: float) -> None:
    """A host may compute logits of its own classes from embeddings: they must be as good."""
    difference = float(np.abs(expected - logits).max())
    if not difference <= tolerance:
        raise ParityError(
            "the exported graph's logits are not embedding · class_matrix + class_bias: they "
            f"differ by {difference:.1e} at batch {batch}, allowed are {tolerance:.0e}; {REPORT_IT}"
        )


def _agreement(logits: Floats, reference: Reference) -> float:
    """Share of equal top-1 classes among the images whose reference margin is clear."""
    clear = _margins(reference.logits) > 2 * reference.tolerance
    if not clear.any():
        return 1.0
    same = logits.argmax(axis=1) == reference.logits.argmax(axis=1)
    return float(same[clear].mean())


def _margins(logits: Floats) -> Floats:
    """Best minus second-best logit of every image; infinite if there is one class."""
    if logits.shape[1] == 1:
        return np.full(len(logits), np.inf, np.float32)
    second, best = np.partition(logits, -2, axis=1)[:, -2:].T
    margins: Floats = best - second
    return margins


def _cosines(first: Floats, second: Floats) -> Floats:
    first, second = first.astype(np.float64), second.astype(np.float64)
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    with np.errstate(invalid="ignore"):  # an embedding of zeros gives NaN, which fails
        cosines: Floats = (first * second).sum(axis=1) / lengths
    return cosines
