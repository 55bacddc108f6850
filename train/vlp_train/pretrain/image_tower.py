"""Train the image tower: drawings towards the teacher's embedding of their captions.

Every image is classified among captions by a softmax over cosine similarities (arXiv:2103.00020,
section 2.3, with the text side frozen). Three changes save samples: captions close to the true one
share its target, the captions' sampling frequencies are added to the logits (arXiv:2007.07314) so
that common names do not attract everything, and in most of the training blank and random patches
are left out (arXiv:2212.00794).

Legend: B images, K bank captions, D joint width.
"""

import json
import math
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from vlp_train.clip import VisionTransformer
from vlp_train.pretrain.batches import Bank, Batches, normalise
from vlp_train.pretrain.optimise import Muon
from vlp_train.pretrain.patches import encode
from vlp_train.pretrain.recipe import Recipe
from vlp_train.pretrain.state import TrainingState, finite

MAX_SCALE = 100.0
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class ImageRecipe(Recipe):
    """The image tower's. In `precision`, a key of `PRECISIONS`, tower and Muon's iteration are
    computed; parameters, sums of tokens, loss and the optimisers' states are float32.

    A batch is taken in pieces of `part` drawings; `keep_patches` of each are seen, until the last
    `whole_share` of the steps. `soft_share` of a target goes to captions near the true one.
    """

    precision: str = "float32"
    batch: int = 1152
    part: int = 192
    muon_rate: float = 4e-3
    adam_rate: float = 2e-3
    weight_decay: float = 0.1
    warmup_steps: int = 50
    decay_share: float = 0.4
    keep_patches: int = 8
    whole_share: float = 0.15
    negatives: int = 2048
    soft_share: float = 0.5
    soft_temperature: float = 0.1
    checkpoint_steps: int = 25

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision is {self.precision!r}; expected one of {[*PRECISIONS]}")
        if self.batch % self.part:
            raise ValueError(f"batch is {self.batch}; expected a multiple of part, {self.part}")

    @property
    def dtype(self) -> torch.dtype:
        """The type that `precision` names."""
        return PRECISIONS[self.precision]

    def patches(self, step: int, patches: int) -> int:
        """Patches kept at `step`: all of them at the end, `keep_patches` before."""
        whole = step >= (1 - self.whole_share) * self.steps
        return patches if whole else min(self.keep_patches, patches)


def caption_loss(
    features: Tensor,
    targets: Tensor,
    scale: Tensor,
    bank: Bank,
    columns: Tensor,
    recipe: ImageRecipe,
) -> Tensor:
    """Cross entropy of images (B, D) over bank columns, soft over captions near the true one."""
    embeddings = bank.embeddings[columns]
    logits = scale * F.normalize(features, dim=-1) @ embeddings.T + bank.log_frequency[columns]
    own = bank.embeddings[targets] @ embeddings.T  # (B, columns)
    soft = F.softmax(own / recipe.soft_temperature, dim=1)
    hard = torch.zeros_like(soft)
    place = (columns[None] == targets[:, None]).float().argmax(dim=1)
    hard[torch.arange(len(targets)), place] = 1.0
    goal = recipe.soft_share * soft + (1 - recipe.soft_share) * hard
    return -(goal * F.log_softmax(logits, dim=1)).sum(dim=1).mean()


class ImageTraining:
    """The image tower's training; all chance in a step depends on (seed, step, part) alone."""

    def __init__(
        self, tower: VisionTransformer, recipe: ImageRecipe, *, batches: Batches, bank: Bank
    ) -> None:
        self.tower, self.recipe = tower, recipe
        self._batches, self._bank = batches, bank
        self._log_scale = nn.Parameter(torch.tensor(math.log(20.0)))
        matrices = [p for p in tower.transformer.parameters() if p.ndim == 2]
        chosen = {id(p) for p in matrices}
        others = [p for p in tower.parameters() if id(p) not in chosen] + [self._log_scale]
        decay = recipe.weight_decay
        muon = Muon(
            matrices,
            lr=recipe.muon_rate,
            momentum=0.95,
            weight_decay=decay,
            precision=recipe.dtype,
        )
        adam = torch.optim.AdamW(others, lr=recipe.adam_rate, betas=(0.9, 0.98), weight_decay=0.0)
        self.state = TrainingState(
            parameters={**dict(tower.named_parameters()), "log_scale": self._log_scale},
            optimisers={"muon": muon, "adam": adam},
        )

    def advance(self, pool: Executor) -> float:
        """Take one optimiser step and return its loss.

        The batch is cut into parts that the pool's threads take as they become free; gradients are
        added in the parts' order, so that the result does not depend on who was faster.
        """
        recipe, state = self.recipe, self.state
        parts = range(recipe.batch // recipe.part)
        total = 0.0
        sums = [torch.zeros_like(parameter) for parameter in state.parameters.values()]
        for loss, gradients in pool.map(self._part, parts):
            total += loss
            for whole, gradient in zip(sums, gradients, strict=True):
                whole.add_(gradient, alpha=1 / len(parts))
        rate = recipe.rate(state.step)
        state.apply(sums, {"muon": rate * recipe.muon_rate, "adam": rate * recipe.adam_rate})
        return total / len(parts)

    def _part(self, part: int) -> tuple[float, tuple[Tensor, ...]]:
        """Return loss and gradients of one part of this step's batch."""
        recipe, bank, step = self.recipe, self._bank, self.state.step
        generator = Generator().manual_seed((recipe.seed * 1_000_003 + step) * 1_009 + part)
        images, targets = self._batches(recipe.part, generator)
        drawn = torch.randint(len(bank.captions), (recipe.negatives,), generator=generator)
        columns = torch.cat([targets, drawn]).unique()
        keep = recipe.patches(step, len(self.tower.positional_embedding) - 1)
        low = recipe.dtype != torch.float32
        with torch.autocast("cpu", recipe.dtype, enabled=low, cache_enabled=False):
            features = encode(self.tower, normalise(images), keep, generator)
        scale = self._log_scale.clamp(max=math.log(MAX_SCALE)).exp()
        loss = caption_loss(features.float(), targets, scale, bank, columns, recipe)
        gradients = torch.autograd.grad(loss, list(self.state.parameters.values()))
        return loss.item(), gradients


def train_images(
    training: ImageTraining,
    checkpoint: Path,
    report: Callable[[int, float, float], None],
    *,
    threads: int,
) -> None:
    """Step until the recipe is done; call `report(step, loss, samples a second)` and save at times.

    Each of `threads` threads takes gradients on one core: faster than one computation on all of
    them where other programs share the machine. Optimisers use all. Raises TrainingError if the
    loss is no number any more; the file keeps an earlier step.
    """
    torch.set_num_threads(threads)
    start, losses = time.monotonic(), []
    recipe, state = training.recipe, training.state
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        while state.step < recipe.steps:
            losses.append(finite(training.advance(pool), state.step, checkpoint))
            if state.step == recipe.steps or state.step % recipe.checkpoint_steps == 0:
                state.save(checkpoint, json.dumps(asdict(recipe)))
                rate = len(losses) * recipe.batch / (time.monotonic() - start)
                report(state.step, sum(losses) / len(losses), rate)
                start, losses = time.monotonic(), []
