"""What a method adds to a prompted CLIP beyond tokens at fixed places: one record for each way.

Checkpoints and bundles carry one of these records; training, export and runtime each have one table
from record type to the code that does it. A method whose prompts are plain tokens is `Plain` and
needs no code of its own anywhere.

Legend: K classes, J prompted layers, m prompt tokens, c classes selected for an image.
"""

from typing import Annotated, Literal

import msgspec

from vlp_deploy.formats.architecture import Count, Record

Weight = Annotated[float, msgspec.Meta(gt=0, le=1)]


class Plain(Record, frozen=True, kw_only=True, tag="plain"):
    """Nothing: the neutral tensors and the two layouts say everything."""


class Conditioned(Record, frozen=True, kw_only=True, tag="conditioned"):
    """CoCoOp (arXiv:2203.05557): a small network shifts all text prompts by the image's feature."""


class ClassAware(Record, frozen=True, kw_only=True, tag="class_aware"):
    """DPT (arXiv:2208.08340): prompts of the last layers are made of an image's likely classes.

    `selected`: how many classes an image chooses (c = min(selected, K)), by the un-prompted tower
    and `selector_template`.
    """

    selected: Count
    selector_template: str


class Coupled(Record, frozen=True, kw_only=True, tag="coupled"):
    """DCP (arXiv:2305.17903): in blocks 1 to `depth` visual prompts attend to the text prompts.

    `context` says what stands in for the official mean over the images of a batch: `frozen`, a
    mean over training or calibration images, which leaves plain constant prompts; `per_sample`,
    the image's own; `batch`, the official mean over `batch_size` images, for reproduction only.
    `fusing` is how the official code makes one state of a batch.
    """

    depth: Count
    context: Literal["frozen", "per_sample", "batch"]
    fusing: Literal["mean", "first", "max"] = "mean"
    batch_size: Count | None = None  # of context "batch" only


class Dual(Record, frozen=True, kw_only=True, tag="dual"):
    """DPC (arXiv:2503.13443): base classes are served by a mixture of two prompts, others by one.

    The mixture is `mixing_weight · parallel + (1 - mixing_weight) · backbone`; `method` is the one
    that both prompts belong to. `base_offset` is added to the logits of base classes where they
    compete with new ones.
    """

    method: str
    mixing_weight: Weight
    base_offset: float = 0.0


class Decoupled(Record, frozen=True, kw_only=True, tag="decoupled"):
    """DPL, our reconstruction (after arXiv:2308.10061): prompts are keys and values, never tokens.

    `mode` says how much an instance listens to prompts: `exact` as softmax has it, `bias` shifted
    by a learned number a head, `fixed` a learned share a head.
    """

    mode: Literal["exact", "bias", "fixed"]


class Baked(Record, frozen=True, kw_only=True, tag="baked"):
    """Zero-shot with a text tower that is not CLIP's (SigLIP, arXiv:2303.15343): classes are fixed.

    The checkpoint holds their embeddings, `class.embeddings`. `logit_bias` is added to every logit.
    """

    logit_scale: float
    logit_bias: float = 0.0


Structure = Plain | Conditioned | ClassAware | Coupled | Dual | Decoupled | Baked
