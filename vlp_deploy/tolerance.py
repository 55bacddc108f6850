"""How far an answer may be off, at export and before an engine serves, by precision."""

from collections.abc import Mapping

TOLERANCE_AT_100 = 2e-3  # float32 sums of some hundred terms up to 100, in another order

# Smallest cosine between an embedding and its float32 self, where a graph computes in less. Half
# precision rounds each of some fifty values in a row by 2^-11 (bf16: 2^-8) of their size, 8 bits by
# 2^-9 of the largest beside them.
LEAST_COSINES: Mapping[str, float] = {"fp16": 0.999, "bf16": 0.999, "int8": 0.99, "fp8": 0.99}

# Between an image alone and the same image among others. Sums in another order differ by 1e-7,
# which may turn a value over to the next number of a coarser format.
LEAST_BATCH_COSINES: Mapping[str, float] = {
    "fp32": 1 - 1e-5,
    "fp16": 1 - 1e-5,
    "bf16": 1 - 1e-4,
    "int8": 1 - 1e-4,
    "fp8": 1 - 1e-3,
}

# What `vlp export --precision auto` may give away for speed unless it is told otherwise.
MOST_ACCURACY_LOSS = 0.5  # percentage points, where labels are known
LEAST_AGREEMENT = 99.5  # per cent of images with the same top-1 class


def logit_tolerance(logit_scale: float, precision: str = "fp32") -> float:
    """The allowed absolute difference: logits, and with them rounding, grow with their scale.

    Below float32 it follows from the allowed cosine c of an embedding of length 1: its difference
    is at most sqrt(2 - 2c) long, so no product with a class embedding can differ by more.
    """
    if precision == "fp32":
        return TOLERANCE_AT_100 * logit_scale / 100
    return float((2 - 2 * LEAST_COSINES[precision]) ** 0.5) * logit_scale
