"""Text rows to features in chunks, so that memory does not grow with the number of classes.

Training keeps what every layer computed for every token until the backward pass. In chunks it keeps
the rows' features alone, and computes a chunk again when its gradients are due: half as much work
more, for the memory of one chunk (Chen et al., arXiv:1604.06174). The towers draw no random
numbers, so the second pass repeats the first, and gradients are equal up to rounding.

Legend: N text rows, L tokens, D joint width, J prompted layers, m prompt tokens, d width.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vlp_deploy.formats.architecture import TextTower
from vlp_train.clip import shared_prefix

KEPT_BYTES = 2 << 30  # of activations; beyond it rows are encoded in chunks
CHUNK_BYTES = 256 << 20  # of one chunk's activations: products stay large, memory small

Encode = Callable[[Tensor, Tensor, Tensor | None, Tensor | None], Tensor]


def encode_in_chunks(
    encode: Encode,
    ids: Tensor,
    eot: Tensor,
    slots: Tensor | None,
    prompts: Tensor | None,
    *,
    count: int,
) -> Tensor:
    """What `encode` makes of token rows (N, L), (N, D), by `count` rows at a time; 0 = all at once.

    The other arguments are those of `Clip.encode_text`. Rows of equal length go together.
    """
    if not 0 < count < len(ids):
        return encode(ids, eot, slots, prompts)
    order = eot.argsort(stable=True)
    parts = order.split(count)
    pieces: Sequence[Tensor | None] = [prompts] * len(parts)
    if prompts is not None and prompts.ndim == 4:  # (J, N, m, d): each row has prompts of its own
        # split, not indexed a chunk: of the latter each gradient is as large as all the prompts
        pieces = prompts[:, order].split(count, dim=1)

    def chunk(rows: Tensor, own: Tensor | None) -> Tensor:
        return encode(ids[rows], eot[rows], None if slots is None else slots[rows], own)

    def chunk_again(rows: Tensor, own: Tensor | None) -> Tensor:
        features: Tensor = checkpoint(
            chunk, rows, own, use_reentrant=False, preserve_rng_state=False
        )
        return features

    encode_rows = chunk_again if torch.is_grad_enabled() else chunk
    features = [encode_rows(rows, own) for rows, own in zip(parts, pieces, strict=True)]
    return torch.cat(features)[order.argsort()]


def fitting_rows(
    tower: TextTower,
    ids: Tensor,
    eot: Tensor,
    slots: Tensor | None,
    prompts: Tensor | None,
    *,
    plain: bool,
    sets: int = 1,
) -> int:
    """How many rows to encode at once: 0, which is all of them, where KEPT_BYTES are enough.

    `sets` of prompts make as many passes over every row, as where prompts depend on the image.
    """
    if plain:
        tokens, length = ids.numel(), float(ids.shape[1])
    else:
        shared = shared_prefix(ids, eot, slots, prompts)
        tokens = shared + int((eot + 1 - shared).sum())
        length = float(eot.float().mean()) + 1
    needed = kept_bytes(tower, tokens=sets * tokens, length=length)
    return 0 if needed <= KEPT_BYTES else max(1, int(len(ids) * CHUNK_BYTES / needed))


def kept_bytes(tower: TextTower, *, tokens: int, length: float) -> float:
    """What a backward pass needs of `tokens` tokens, in rows of `length` tokens, in float32.

    4 bytes · layers · tokens · (14 d + heads · length): in every layer a token leaves the inputs of
    two normalisations, query, scaled query, key and value, each of the tower's width d, and 2 · 4 d
    in the perceptron; and in every head an attention weight for each token of its row. Weights are
    frozen, so linear layers keep nothing.
    """
    numbers = 14 * tower.width + tower.heads * length
    return 4 * tower.layers * tokens * numbers
