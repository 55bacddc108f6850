"""Turn the corpus and the texts to learn into targets in the joint space, embedded once and kept.

`targets.safetensors` holds teacher embeddings and the projection, which is fitted on the captions.
Legend: K captions, T >= K texts (captions first), D joint width.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from vlp_deploy.classes.tokenizer import Tokenizer
from vlp_deploy.errors import TrainingError
from vlp_deploy.files import write_atomic
from vlp_train.pretrain.pack import Corpus
from vlp_train.pretrain.teacher import Projection, embed, fit_projection
from vlp_train.pretrain.vocabulary import texts_to_learn
from vlp_train.pretrain.wordnet import NounLexicon


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Texts and the unit vectors they mean; the first `captions` texts are captions."""

    texts: list[str]
    vectors: Tensor  # (T, D)
    captions: int
    projection: Projection


def make_targets(corpus: Corpus, lexicon: NounLexicon, *, width: int, path: Path) -> Targets:
    """Embed all texts, or read what `path` holds of them.

    Raises:
        TrainingError: it holds other texts, to which a training may be bound.
    """
    captions = sorted({caption for own in corpus.captions for caption in own})
    texts = texts_to_learn(captions, lexicon, Tokenizer.default())
    stored = _stored(path, texts)
    if stored is None:
        embeddings = embed(texts)
        projection = fit_projection(embeddings[: len(captions)], width)
        stored = {"embeddings": embeddings, "mean": projection.mean, "axes": projection.axes}
        write_atomic(path, save({name: value.contiguous() for name, value in stored.items()}))
        write_atomic(path.with_suffix(".json"), json.dumps(texts, ensure_ascii=False).encode())
    embeddings, projection = stored["embeddings"], _projection(stored)
    return Targets(
        texts=texts, vectors=projection(embeddings), captions=len(captions), projection=projection
    )


def read_targets(path: Path) -> Tensor:
    """Return the unit vectors (T, D) of a file that `make_targets` wrote, captions first."""
    stored = load_file(path)
    return _projection(stored)(stored["embeddings"])


def _projection(tensors: dict[str, Tensor]) -> Projection:
    return Projection(mean=tensors["mean"], axes=tensors["axes"])


def _stored(path: Path, texts: list[str]) -> dict[str, Tensor] | None:
    names = path.with_suffix(".json")
    if not (path.exists() and names.exists()):
        return None
    if json.loads(names.read_text(encoding="utf-8")) != texts:
        raise TrainingError(
            f"{path} was made for other texts than those of this corpus and these nouns. Give the "
            "same inputs to go on with it, or another --output to begin anew"
        )
    tensors: dict[str, Tensor] = load_file(path)
    return tensors if torch.isfinite(tensors["embeddings"]).all() else None
