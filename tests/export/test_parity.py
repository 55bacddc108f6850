"""The parity gate: what passes, what is refused, and what the refusal says."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from vlp_deploy.errors import ParityError
from vlp_deploy.formats.bundle import ClassBank, Precision
from vlp_export.parity import Floats, Reference, RunImages, check_parity

PIXELS = np.arange(8, dtype=np.uint8).reshape(8, 1, 1, 1).repeat(3, axis=1)
# image i prefers class i % 5 by 1
LOGITS = np.eye(5, dtype=np.float32)[np.arange(8) % 5]
# image i is embedded as the unit vector i, so that the class matrix holds the logits
EMBEDDINGS = np.eye(8, dtype=np.float32)


def reference_of(logits: Floats, logit_scale: float = 100.0) -> Reference:
    return Reference(
        pixels=PIXELS,
        logits=logits,
        logit_scale=logit_scale,
        bank=ClassBank(
            inputs={"class_matrix": logits, "class_bias": np.zeros(logits.shape[1], np.float32)},
            embeddings=None,
        ),
    )


REFERENCE = reference_of(LOGITS)


class Engine:
    """Knows the reference answers by the images' first pixel, and adds `error` to the logits."""

    def __init__(self, error: float = 0.0, *, at_batch: int | None = None) -> None:
        self.error, self.at_batch, self.batches = error, at_batch, set[int]()

    def __call__(self, pixels: NDArray[np.uint8]) -> tuple[Floats, Floats]:
        self.batches.add(len(pixels))
        wrong = self.at_batch is None or self.at_batch == len(pixels)
        rows = pixels[:, 0, 0, 0]
        error = np.float32(self.error if wrong else 0)
        return EMBEDDINGS[rows], LOGITS[rows] + error


def test_equal_answers_pass_at_every_batch_size() -> None:
    engine = Engine()

    report = check_parity(engine, REFERENCE, engine="onnx")

    assert engine.batches == {1, 2, 5, 8}
    assert [row.batch for row in report.rows] == [1, 2, 5, 8]
    assert all(row.max_logit_difference == 0 for row in report.rows)
    assert all(row.min_cosine == pytest.approx(1) for row in report.rows)
    assert report.embeddings.shape == (8, 8)
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
    reference = reference_of(LOGITS, logit_scale=10.0)

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

    reference = reference_of(close)
    report = check_parity(flips, reference, engine="onnx")

    assert {row.top1_agreement for row in report.rows} == {1.0}


def with_embeddings(
    change: Callable[[Floats], Floats], *, at_batch: int | None = None
) -> RunImages:
    """An engine of right logits whose embeddings are changed."""

    def run(pixels: NDArray[np.uint8]) -> tuple[Floats, Floats]:
        embeddings, logits = Engine()(pixels)
        changed = at_batch is None or at_batch == len(pixels)
        return (change(embeddings) if changed else embeddings), logits

    return run


def turned(embeddings: Floats) -> Floats:
    """Unit vectors at a cosine of 0.99995."""
    mixed = embeddings + 0.01 * np.roll(embeddings, 1, axis=1)
    return mixed / np.linalg.norm(mixed, axis=1, keepdims=True)


def test_a_precision_that_is_too_far_off_blames_no_bug() -> None:
    with pytest.raises(ParityError, match=r"int8 .*FAILS(.|\n)*pass more images") as refusal:
        run = with_embeddings(np.negative, at_batch=5)
        check_parity(run, REFERENCE, engine="onnx", precision="int8")

    assert "bug" not in str(refusal.value)


def test_embeddings_that_change_with_the_batch_are_refused_with_the_table() -> None:
    with pytest.raises(ParityError) as refusal:
        check_parity(with_embeddings(turned, at_batch=5), REFERENCE, engine="onnx")

    lines = str(refusal.value).splitlines()
    verdicts = {line.split()[2]: line.split()[-1] for line in lines if line.startswith("onnx")}
    assert verdicts == {"1": "ok", "2": "ok", "5": "FAILS", "8": "ok"}
    assert "0.9999500" in str(refusal.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (turned, r"not embedding · class_matrix \+ class_bias: they differ by 1\.0e-02"),
        (lambda e: e * np.float32(1.001), r"not of length 1: off by 1\.0e-03"),
        (lambda e: e * np.float32("nan"), r"does not compute[\s\S]*nan"),
        (lambda e: e * np.float32("inf"), r"does not compute[\s\S]*nan"),
        (lambda e: e * np.float32(0), r"does not compute[\s\S]*nan"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_wrong_embeddings_are_refused_although_the_logits_are_right(
    change: Callable[[Floats], Floats], message: str
) -> None:
    with pytest.raises(ParityError, match=message):
        check_parity(with_embeddings(change), REFERENCE, engine="onnx")


def test_other_shape_is_refused_before_any_difference_is_taken() -> None:
    def one_class(pixels: NDArray[np.uint8]) -> tuple[Floats, Floats]:
        embeddings, logits = Engine()(pixels)
        return embeddings, logits[:, :1]

    with pytest.raises(ParityError, match=r"shape \(8, 1\).*has \(8, 5\)"):
        check_parity(one_class, REFERENCE, engine="onnx")


def test_single_class_is_always_the_best() -> None:
    reference = reference_of(LOGITS[:, :1])

    def one_class(pixels: NDArray[np.uint8]) -> tuple[Floats, Floats]:
        embeddings, logits = Engine()(pixels)
        return embeddings, logits[:, :1]

    assert check_parity(one_class, reference, engine="onnx").rows[0].top1_agreement == 1.0


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8", "fp8"])
def test_no_precision_may_round_its_head(precision: Precision) -> None:
    check_parity(Engine(1.9e-3), REFERENCE, engine="openvino", precision=precision)

    with pytest.raises(ParityError, match=r"class_matrix.*2\.1e-03 at batch 5, allowed are 2e-03"):
        wrong = Engine(2.1e-3, at_batch=5)
        check_parity(wrong, REFERENCE, engine="openvino", precision=precision)
