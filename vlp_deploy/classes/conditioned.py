"""CoCoOp's class inputs: from class names to suffixes that a graph completes for each image.

The learned prompts are shifted by the image's feature, so no class has an embedding of its own.
What a class has is the rest of its sentence: the tokens behind the learned ones, embedded.

Legend: B images, K classes, S suffix tokens, D joint width, d width of the text tower.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlp_deploy.classes.prompts import text_rows
from vlp_deploy.classes.tokenizer import Tokenizer
from vlp_deploy.errors import CheckpointError, ClassListError
from vlp_deploy.formats.architecture import ClipConfig, TextLayout

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
Pixels = NDArray[np.uint8]
RunImage = Callable[[Mapping[str, NDArray[Any]]], Mapping[str, NDArray[Any]]]

CLASS_SUFFIX, SUFFIX_END = "class_suffix", "suffix_end"
# Suffix tokens that pass through the text tower at once. In a tower 512 wide an MLP's activations
# take 67 MB each then; fewer tokens would repeat the image tower for more parts of a class list.
TOKENS_A_RUN = 8192


@dataclass(frozen=True, kw_only=True)
class MetaNet:
    """CoCoOp's two layers: `shift = W2 relu(W1 f + b1) + b2` (arXiv:2203.05557, section 3.2)."""

    weight_1: Floats  # (h, D)
    bias_1: Floats  # (h,)
    weight_2: Floats  # (d, h)
    bias_2: Floats  # (d,)

    @classmethod
    def of(cls, tensors: Mapping[str, Floats], config: ClipConfig) -> "MetaNet":
        """Out of a checkpoint. Raises CheckpointError for missing or misshapen tensors."""
        parts = [
            tensors.get(f"cocoop.linear{layer}.{part}")
            for layer in (1, 2)
            for part in ("weight", "bias")
        ]
        hidden = 0 if parts[0] is None else len(parts[0])
        wide, narrow = config.embed_dim, config.text.width
        shapes = [None if part is None else part.shape for part in parts]
        expected = [(hidden, wide), (hidden,), (narrow, hidden), (narrow,)]
        if shapes != expected:
            raise CheckpointError(
                f"prompt checkpoint: the meta-network's tensors cocoop.linear1.weight, .bias, "
                f"cocoop.linear2.weight, .bias are {shapes}, expected {expected}. Train or import "
                "it again"
            )
        weight_1, bias_1, weight_2, bias_2 = (part for part in parts if part is not None)
        return cls(weight_1=weight_1, bias_1=bias_1, weight_2=weight_2, bias_2=bias_2)


def suffix_rows(
    names: Sequence[Sequence[str]],
    *,
    templates: Sequence[str],
    layout: TextLayout,
    tokenizer: Tokenizer,
    context_length: int,
) -> tuple[Integers, Integers]:
    """Whole token rows (K, L), and where each suffix ends (K,), counted from its first token.

    Raises ClassListError for synonyms: their mean would have to be taken anew for every image.
    """
    if several := [synonyms for synonyms in names if len(synonyms) > 1]:
        raise ClassListError(
            f"this bundle's text features depend on the image, so synonyms cannot be averaged: "
            f"{', '.join(several[0])}. Give every class one name"
        )
    rows = text_rows(
        [name for (name,) in names],
        templates[0],
        tokenizer,
        layout=layout,
        context_length=context_length,
    )
    return rows.ids, rows.eot - prefix_length(layout)


def prefix_length(layout: TextLayout) -> int:
    """Start of text and the learned tokens, which stand before every class's suffix.

    Raises CheckpointError unless they do.
    """
    if layout.position != "end":
        raise CheckpointError(
            f"the class name stands at the {layout.position}; prompts that depend on the image are "
            "served with the class name at the end only. Train or import it with position=end"
        )
    return 1 + layout.tokens


def run_in_pieces(
    run: RunImage, pixels: Pixels, inputs: Mapping[str, NDArray[Any]]
) -> tuple[Floats, Floats]:
    """Embeddings (B, D) and logits (B, K) of an image graph with `inputs`, in bounded memory.

    Suffixes go through the text tower for every image. Neither images nor classes know of each
    other, so any number of them can share a run.
    """
    if CLASS_SUFFIX not in inputs:
        outputs = run({"image": pixels, **inputs})
        return outputs["embedding"], outputs["logits"]
    suffix, end = inputs[CLASS_SUFFIX], inputs[SUFFIX_END]
    logits = np.empty((len(pixels), len(end)), np.float32)
    embeddings: list[Floats] = []
    for classes in class_pieces(end):
        length = int(end[classes].max()) + 1
        piece = {CLASS_SUFFIX: suffix[classes, :length], SUFFIX_END: end[classes]}
        images = max(1, TOKENS_A_RUN // (len(classes) * length))
        embeddings = []
        for start in range(0, max(1, len(pixels)), images):  # of no images the engine complains
            outputs = run({"image": pixels[start : start + images], **piece})
            logits[start : start + images, classes] = outputs["logits"]
            embeddings.append(outputs["embedding"])
    return np.concatenate(embeddings), logits


def class_pieces(end: Integers) -> Iterator[Integers]:
    """Class numbers, those of short suffixes first, in pieces of at most TOKENS_A_RUN tokens."""
    order = np.argsort(end, kind="stable")
    while len(order):
        # how many tokens the first 1, 2, … classes are when padded to the longest of them
        tokens = np.arange(1, len(order) + 1) * (end[order] + 1)
        count = max(1, int(np.searchsorted(tokens, TOKENS_A_RUN, side="right")))
        yield order[:count]
        order = order[count:]
