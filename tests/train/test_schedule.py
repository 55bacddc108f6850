"""The learning rate against numbers worked out by hand."""

import pytest

from vlp_train.schedule import learning_rate


def test_learning_rate_is_constant_in_warm_up() -> None:
    rates = [learning_rate(epoch, epochs=50, peak=0.002, warmup_epochs=10) for epoch in range(10)]

    assert rates == [1e-5] * 10


def test_learning_rate_of_five_epochs() -> None:
    rates = [learning_rate(epoch, epochs=5, peak=1.0) for epoch in range(5)]

    # ½(1 + cos(kπ/5)) for k = 0 … 3: cos 36° = 0.809017, cos 72° = 0.309017, cos 108° = -0.309017
    assert rates == pytest.approx([1e-5, 1.0, 0.9045085, 0.6545085, 0.3454915], abs=1e-7)


def test_learning_rate_of_two_epochs_is_one_of_warm_up_and_one_at_the_peak() -> None:
    assert [learning_rate(epoch, epochs=2, peak=0.0026) for epoch in range(2)] == [1e-5, 0.0026]


def test_learning_rate_without_warm_up_starts_at_the_peak() -> None:
    assert learning_rate(0, epochs=3, peak=0.5, warmup_epochs=0) == 0.5


def test_a_constant_rate_stays_at_the_peak_after_the_warm_up() -> None:
    rates = [
        learning_rate(epoch, epochs=4, peak=0.5, warmup_epochs=1, schedule="constant")
        for epoch in range(4)
    ]

    assert rates == [1e-5, 0.5, 0.5, 0.5]
