"""How far a logit computed in float32 may be off, at export and before an engine serves."""

TOLERANCE_AT_100 = 2e-3  # float32 sums of some hundred terms up to 100, in another order


def logit_tolerance(logit_scale: float) -> float:
    """The allowed absolute difference: logits, and with them rounding, grow with their scale."""
    return TOLERANCE_AT_100 * logit_scale / 100
