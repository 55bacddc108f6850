"""Train the text tower: names in any template towards the teacher's embedding of the bare name.

Legend: N texts, K all texts to learn, L tokens, D joint width, d tower width.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from vlp_deploy.classes.tokenizer import Tokenizer
from vlp_train.clip import Clip
from vlp_train.pretrain.optimise import Muon
from vlp_train.pretrain.recipe import Recipe
from vlp_train.pretrain.state import TrainingState, finite
from vlp_train.pretrain.vocabulary import TEMPLATES

START_OF_TEXT, END_OF_TEXT = 49406, 49407


@dataclass(frozen=True, kw_only=True)
class TextRecipe(Recipe):
    """The text tower's: `caption_share` of a batch are captions, the rest any of the texts."""

    what: ClassVar[str] = "text samples"

    batch: int = 1024
    muon_rate: float = 2e-3
    adam_rate: float = 2e-3
    warmup_steps: int = 30
    decay_share: float = 0.5
    checkpoint_steps: int = 50
    caption_share: float = 0.4
    temperature: float = 0.05


def tokenise(texts: list[str], tokenizer: Tokenizer) -> tuple[Tensor, Tensor]:
    """Return ids (N, L), zero after the end of text and no longer than needed, and ends (N,)."""
    rows = [[START_OF_TEXT, *tokenizer.encode(text), END_OF_TEXT] for text in texts]
    ids = torch.zeros(len(rows), max(len(row) for row in rows), dtype=torch.long)
    for at, row in enumerate(rows):
        ids[at, : len(row)] = torch.tensor(row)
    return ids, torch.tensor([len(row) - 1 for row in rows])


class TextTraining:
    """The text tower's training: one template a batch, so that its tokens run once."""

    def __init__(
        self,
        clip: Clip,
        recipe: TextRecipe,
        *,
        texts: list[str],
        targets: Tensor,
        captions: int,
    ) -> None:
        """Train on `texts` with unit vectors `targets` (K, D); the first `captions` come often."""
        self.clip, self.recipe = clip, recipe
        self._texts, self._targets, self._captions = texts, targets, captions
        self._tokenizer = Tokenizer.default()
        matrices = [p for p in clip.transformer.parameters() if p.ndim == 2]
        others = [
            clip.token_embedding.weight,
            clip.positional_embedding,
            clip.text_projection,
            *clip.ln_final.parameters(),
            *(p for p in clip.transformer.parameters() if p.ndim == 1),
        ]
        muon = Muon(matrices, lr=recipe.muon_rate, momentum=0.95, weight_decay=0.05)
        adam = torch.optim.AdamW(others, lr=recipe.adam_rate, betas=(0.9, 0.98), weight_decay=0.0)
        self.state = TrainingState(
            parameters=dict(text_parameters(clip)), optimisers={"muon": muon, "adam": adam}
        )

    def advance(self) -> float:
        """Take one optimiser step and return its loss."""
        recipe, step = self.recipe, self.state.step
        generator = Generator().manual_seed(recipe.seed * 1_000_003 + step)
        from_captions = round(recipe.caption_share * recipe.batch)
        rows = torch.cat(
            [
                torch.randint(self._captions, (from_captions,), generator=generator),
                torch.randint(
                    len(self._texts), (recipe.batch - from_captions,), generator=generator
                ),
            ]
        ).unique()
        template = TEMPLATES[int(torch.randint(len(TEMPLATES), (1,), generator=generator))]
        ids, ends = tokenise(
            [template.replace("{}", self._texts[row]) for row in rows.tolist()], self._tokenizer
        )
        features = F.normalize(self.clip.encode_text_fast(ids, ends), dim=-1)
        targets = self._targets[rows]
        away = 1 - (features * targets).sum(dim=-1).mean()
        logits = features @ targets.T / recipe.temperature
        confused = F.cross_entropy(logits, torch.arange(len(rows)))
        loss: Tensor = away + 0.1 * confused
        gradients = torch.autograd.grad(loss, list(self.state.parameters.values()))
        rate = recipe.rate(step)
        self.state.apply(
            gradients, {"muon": rate * recipe.muon_rate, "adam": rate * recipe.adam_rate}
        )
        return away.item()


def text_parameters(clip: Clip) -> list[tuple[str, Tensor]]:
    """Return the names and parameters that belong to the text tower alone."""
    return [
        (name, parameter)
        for name, parameter in clip.named_parameters()
        if not name.startswith("visual.") and name != "logit_scale"
    ]


def train_text(
    training: TextTraining, checkpoint: Path, report: Callable[[int, float, float], None]
) -> None:
    """Step until the recipe is done; call `report(step, distance, texts a second)`.

    Raises TrainingError if the loss is no number any more; the file keeps an earlier step.
    """
    start, losses = time.monotonic(), []
    recipe = training.recipe
    while training.state.step < recipe.steps:
        losses.append(finite(training.advance(), training.state.step, checkpoint))
        step = training.state.step
        if step == recipe.steps or step % recipe.checkpoint_steps == 0:
            training.state.save(checkpoint, json.dumps(asdict(recipe)))
            rate = len(losses) * recipe.batch / (time.monotonic() - start)
            report(step, sum(losses) / len(losses), rate)
            start, losses = time.monotonic(), []
