"""What is asked of every image: how it is read, and which classes count as its labels."""

from dataclasses import dataclass

from vlp_deploy.images.limits import DEFAULT_LIMITS, Limits

BATCH_SIZE = 32


@dataclass(frozen=True, kw_only=True)
class Question:
    """By default: the most probable class.

    `reject_below`: below this probability it is none. `multi_label`: labels are all classes whose
    logits reach the bundle's `class_thresholds`. `top_k` candidates are named in any case.
    """

    top_k: int = 5
    batch_size: int = BATCH_SIZE
    exact_decode: bool = False
    limits: Limits = DEFAULT_LIMITS
    reject_below: float | None = None
    multi_label: bool = False
    with_embeddings: bool = False

    def __post_init__(self) -> None:
        if min(self.top_k, self.batch_size) < 1:
            raise ValueError(
                f"top_k is {self.top_k}, batch_size {self.batch_size}; expected 1 or more each"
            )
        if self.reject_below is not None and not 0 <= self.reject_below <= 1:
            raise ValueError(f"reject_below is {self.reject_below}; expected a probability")
        if self.reject_below is not None and self.multi_label:
            raise ValueError(
                "with multi_label every class has a threshold of its own, and an image that reaches"
                " none is rejected already; expected it without reject_below"
            )


DEFAULT_QUESTION = Question()
