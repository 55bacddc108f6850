"""The parity gate: what passes, what is refused, and what the refusal says."""

import numpy as np
import pytest
from numpy.typing import NDArray

from vlp_deploy.errors import ParityError
from vlp_export.parity import Floats, Reference, check_parity

PIXELS = np.arange(8, dtype=np.uint8).reshape(8, 1, 1, 1).repeat(3, axis=1)
# image i prefers class i % 5 by 1
LOGITS = np.eye(5, dtype=np.float32)[np.arange(8) % 5]
REFERENCE = Reference(pixels=PIXELS, logits=LOGITS, logit_scale=100.0)


class Engine:
    """Knows the reference answers by the images' first pixel, and adds `error` to the logits."""

    def __init__(self, error: float = 0.0, *, at_batch: int | None = None) -> None:
        self.error, self.at_batch, self.batches = error, at_batch, set[int]()

    def __call__(self, pixels: NDArray[np.uint8]) -> tuple[Floats, Floats]:
        self.batches.add(len(pixels))
        wrong = self.at_batch is None or self.at_batch == len(pixels)
        rows = pixels[:, 0, 0, 0]
        error = np.float32(self.error if wrong else 0)
        return np.ones((len(pixels), 4), np.float32), LOGITS[rows] + error


def test_equal_answers_pass_at_every_batch_size() -> None:
    engine = Engine()

    report = check_parity(engine, REFERENCE, engine="onnx")

    assert engine.batches == {1, 2, 5, 8}
    assert [row.batch for row in report.rows] == [1, 2, 5, 8]
    assert all(row.max_logit_difference == 0 for row in report.rows)
    assert all(row.min_cosine == pytest.approx(1) for row in report.rows)
    assert report.embeddings.shape == (8, 4)
    np.testing.assert_array_equal(report.logits, LOGITS)


@pytest.mark.parametrize("batch", [1, 2, 5, 8])
def test_wrong_answer_at_one_batch_size_is_refused_with_the_table(batch: int) -> None:
    with pytest.raises(ParityError) as refusal:
        check_parity(Engine(0.01, at_batch=batch), REFERENCE, engine="onnx")

    lines = str(refusal.value).splitlines()
    verdicts = {line.split()[2]: line.split()[-1] for line in lines if line.startswith("onnx")}
    assert verdicts == {str(b): "FAILS" if b == batch else "ok" for b in (1, 2, 5, 8)}
    assert "1.00e-02" in str(refusal.value)
    assert "Nothing was written" in str(refusal.value)


@pytest.mark.parametrize(("error", "passes"), [(1.9e-3, True), (2.1e-3, False)])
def test_tolerance_is_2e_3_at_a_logit_scale_of_100(error: float, passes: bool) -> None:
    if passes:
        check_parity(Engine(error), REFERENCE, engine="onnx")
    else:
        with pytest.raises(ParityError):
            check_parity(Engine(error), REFERENCE, engine="onnx")


def test_tolerance_follows_the_logit_scale() -> None:
    reference = Reference(pixels=PIXELS, logits=LOGITS, logit_scale=10.0)

    with pytest.raises(ParityError):
        check_parity(Engine(1e-3), reference, engine="onnx")


def test_nan_never_passes() -> None:
    with pytest.raises(ParityError, match="nan"):
        check_parity(Engine(float("nan")), REFERENCE, engine="onnx")


def test_top1_counts_only_where_the_reference_is_clear() -> None:
    close = LOGITS.copy()
    close[0] = [1.0, 0.9985, 0, 0, 0]  # closer than twice the tolerance: may flip

    def flips(pixels: NDArray[np.uint8]) -> tuple[Floats, Floats]:
        embeddings, logits = Engine()(pixels)
        logits[pixels[:, 0, 0, 0] == 0] = [0.9992, 0.9993, 0, 0, 0]
        return embeddings, logits

    reference = Reference(pixels=PIXELS, logits=close, logit_scale=100.0)
    report = check_parity(flips, reference, engine="onnx")

    assert {row.top1_agreement for row in report.rows} == {1.0}


def test_embeddings_that_change_with_the_batch_show_in_the_table() -> None:
    def drifts(pixels: NDArray[np.uint8]) -> tuple[Floats, Floats]:
        embeddings, logits = Engine()(pixels)
        embeddings[:, 0] += 0.1 * (len(pixels) == 5)
        return embeddings, logits

    report = check_parity(drifts, REFERENCE, engine="onnx")

    by_batch = {row.batch: row.min_cosine for row in report.rows}
    assert by_batch[8] == pytest.approx(1, abs=1e-6)
    assert by_batch[5] < 0.9995


def test_other_shape_is_refused_before_any_difference_is_taken() -> None:
    def one_class(pixels: NDArray[np.uint8]) -> tuple[Floats, Floats]:
        embeddings, logits = Engine()(pixels)
        return embeddings, logits[:, :1]

    with pytest.raises(ParityError, match=r"shape \(8, 1\).*has \(8, 5\)"):
        check_parity(one_class, REFERENCE, engine="onnx")


def test_single_class_is_always_the_best() -> None:
    reference = Reference(pixels=PIXELS, logits=LOGITS[:, :1], logit_scale=100.0)

    def one_class(pixels: NDArray[np.uint8]) -> tuple[Floats, Floats]:
        embeddings, logits = Engine()(pixels)
        return embeddings, logits[:, :1]

    assert check_parity(one_class, reference, engine="onnx").rows[0].top1_agreement == 1.0
