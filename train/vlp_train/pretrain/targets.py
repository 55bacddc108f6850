"""Turn the corpus and the texts to learn into targets in the joint space, embedded once and kept.

`targets.safetensors` holds teacher embeddings; the projection is fitted on the captions whenever
it is needed. Legend: K captions, T >= K texts (captions first), D joint width.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from vlp_deploy.files import write_atomic
from vlp_deploy.tokenizer import Tokenizer
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
    """Embed all texts, or read them from `path` if it holds exactly these texts."""
    captions = sorted({caption for own in corpus.captions for caption in own})
    texts = texts_to_learn(captions, lexicon, Tokenizer.default())
    embeddings = _stored(path, texts)
    if embeddings is None:
        embeddings = embed(texts)
        content = save({"embeddings": embeddings})
        write_atomic(path, content)
        write_atomic(path.with_suffix(".json"), json.dumps(texts, ensure_ascii=False).encode())
    projection = fit_projection(embeddings[: len(captions)], width)
    return Targets(
        texts=texts, vectors=projection(embeddings), captions=len(captions), projection=projection
    )


def _stored(path: Path, texts: list[str]) -> Tensor | None:
    names = path.with_suffix(".json")
    if not (path.exists() and names.exists()):
        return None
    if json.loads(names.read_text(encoding="utf-8")) != texts:
        return None
    embeddings: Tensor = load_file(path)["embeddings"]
    return embeddings if torch.isfinite(embeddings).all() else None
