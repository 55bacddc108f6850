"""The training loop: labelled images move a method's prompts, the CLIP around them stays frozen.

SGD with momentum and weight decay as in CoOp's code (Dassl), the learning rate set once an epoch.

Legend: B images of a piece of a batch, K classes.
"""

import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlp_deploy.errors import TrainingError
from vlp_train.devices import Precision, autocast
from vlp_train.features import Features, Indices, Piece
from vlp_train.images import ImageSet
from vlp_train.methods.base import Method, Training
from vlp_train.parallel import ALONE, Processes, StoppedElsewhereError
from vlp_train.run import Epoch, Progress, Run
from vlp_train.schedule import learning_rate

NAMED_IN_ERRORS = 5  # images of a batch


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a progress bar shows. `loss` and `accuracy` are means over the epoch so far."""

    epoch: int  # 1 is the first
    epochs: int
    step: int
    steps: int  # an epoch
    loss: float
    accuracy: float
    learning_rate: float


Report = Callable[[Step | str], None]  # a step, or what is done before and behind them


def fit(
    method: Method,
    images: ImageSet,
    run: Run,
    *,
    training: Training,
    precision: Precision,
    options: Mapping[str, Any],
    report: Report,
    views: int = 0,
    processes: Processes = ALONE,
) -> tuple[Epoch, ...]:
    """Train to the end, from where `run` stands, saving every epoch. Returns the log.

    The prompts end bit for bit the same however often the run was interrupted, on a CPU with the
    same number of threads and processes. Raises TrainingError if the loss is no number any more.
    """
    learner = _Learner(method, training, precision, processes)
    log = learner.restore(run, options) if run.started else ()
    method.start(images, training)
    features = Features(
        method, images, training=training, precision=precision, views=views, processes=processes
    )
    for epoch in range(len(log), training.epochs):
        started = time.perf_counter()
        rate, steps = learner.set_rate(epoch), features.step_count(epoch)
        total = _Sums()
        for step, pieces in enumerate(features.steps(epoch), start=1):
            sums = learner.add_gradients(pieces)
            if not math.isfinite(sums.loss):
                raise _no_number(learner, images, loss=sums.loss, epoch=epoch + 1, batch=step)
            learner.move()
            total += sums
            report(
                Step(
                    epoch=epoch + 1,
                    epochs=training.epochs,
                    step=step,
                    steps=steps,
                    loss=total.loss / total.images,
                    accuracy=total.correct / total.images,
                    learning_rate=rate,
                )
            )
        method.end_of_epoch(epoch)
        finished = Epoch(
            epoch=epoch + 1,
            loss=total.loss / total.images,
            accuracy=total.correct / total.images,
            learning_rate=rate,
            seconds=round(time.perf_counter() - started, 3),
        )
        log = (*log, finished)
        learner.save(run, options, log)
    with torch.no_grad():
        method.finish(images)
    return log


@dataclass(frozen=True)
class _Sums:
    """Over images."""

    loss: float = 0.0
    correct: float = 0
    images: float = 0

    def __add__(self, other: "_Sums") -> "_Sums":
        return _Sums(
            self.loss + other.loss, self.correct + other.correct, self.images + other.images
        )


class _Learner:
    """A method and what moves it."""

    def __init__(
        self, method: Method, training: Training, precision: Precision, processes: Processes
    ) -> None:
        self.method, self.training = method, training
        self.precision, self.processes = precision, processes
        self.optimiser = torch.optim.SGD(
            method.parameter_groups(),
            lr=0.0,
            momentum=training.momentum,
            weight_decay=training.weight_decay,
        )
        self.device = method.prompted.device
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")
        self.suspects: list[int] = []  # samples of this process whose loss was no number

    def set_rate(self, epoch: int) -> float:
        """The learning rate of an epoch, now the optimiser's."""
        usual = self.training.warmup_epochs
        for group in self.optimiser.param_groups:
            rate = self._rate(epoch, warmup=min(usual, group.get("warmup_epochs", usual)))
            group["lr"] = rate * group.get("rate_factor", 1.0)
        return self._rate(epoch, warmup=usual)

    def _rate(self, epoch: int, *, warmup: int) -> float:
        return learning_rate(
            epoch,
            epochs=self.training.epochs,
            peak=self.training.learning_rate,
            warmup_epochs=warmup,
            schedule=self.training.schedule,
        )

    def add_gradients(self, pieces: Iterable[Piece]) -> _Sums:
        """The gradients of a batch, and what it came to; both over all processes."""
        self.optimiser.zero_grad()
        sums = _Sums()
        for piece in pieces:
            with autocast(self.device, self.precision):
                logits, loss = self.method.step(piece.inputs)  # (B, K), scalar
            if not torch.isfinite(loss):
                self.suspects += _without_numbers(logits, piece.indices)
            self.scaler.scale(loss * piece.weight).backward()
            labels = piece.inputs.labels
            correct = int((logits.argmax(dim=1) == labels).sum())
            sums += _Sums(loss.item() * len(labels), correct, len(labels))
        self._add_up_gradients()
        everywhere = torch.tensor([sums.loss, sums.correct, sums.images], dtype=torch.float64)
        self.processes.add_up([everywhere])
        return _Sums(*everywhere.tolist())

    def move(self) -> None:
        """One step along the gradients."""
        self.scaler.step(self.optimiser)
        self.scaler.update()

    def _add_up_gradients(self) -> None:
        """Over the processes; one of them may have had no image, and no gradients."""
        if self.processes.size == 1:
            return
        learned = [p for p in self.method.parameters() if p.requires_grad]
        there = torch.tensor([float(p.grad is not None) for p in learned], device=self.device)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in learned]
        self.processes.add_up([there, *gradients])
        for parameter, gradient, count in zip(learned, gradients, there.tolist(), strict=True):
            parameter.grad = gradient if count else None

    def save(self, run: Run, options: Mapping[str, Any], log: tuple[Epoch, ...]) -> None:
        """The method's state and momentum, with all that is needed to go on."""
        state = self.method.state_dict()
        tensors = {f"prompt.{name}": value.cpu().numpy() for name, value in state.items()}
        for name, parameter in self.method.named_parameters():
            # not there for what was never stepped: float16 skips steps, methods freeze prompts
            momentum = self.optimiser.state[parameter].get("momentum_buffer")
            if momentum is not None:
                tensors[f"momentum.{name}"] = momentum.cpu().numpy()
        progress = Progress(
            options=dict(options),
            threads=torch.get_num_threads(),
            processes=self.processes.size,
            scaler=self.scaler.state_dict(),
            log=log,
        )
        run.save(progress, tensors)

    def restore(self, run: Run, options: Mapping[str, Any]) -> tuple[Epoch, ...]:
        """The inverse of `save`. Raises TrainingError if the options differ."""
        progress, tensors = run.load(options)
        if self.processes.first:
            _warn_of_other_sums(progress, self.processes.size)
        self.method.load_state_dict(
            {name: torch.from_numpy(tensors[f"prompt.{name}"]) for name in self.method.state_dict()}
        )
        for name, parameter in self.method.named_parameters():
            if f"momentum.{name}" in tensors:
                momentum = torch.from_numpy(tensors[f"momentum.{name}"]).to(parameter.device)
                self.optimiser.state[parameter]["momentum_buffer"] = momentum
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(progress.scaler)
        return progress.log


def _warn_of_other_sums(progress: Progress, processes: int) -> None:
    """Say that bits will differ where sums are added up in another order."""
    for what, before, now in (
        ("threads", progress.threads, torch.get_num_threads()),
        ("processes", progress.processes, processes),
    ):
        if before != now:
            warnings.warn(
                f"the run was started with {before} {what} and goes on with {now}: sums are added "
                "up in another order, so the last bits of the prompts will differ",
                stacklevel=2,
            )


def _without_numbers(logits: Tensor, indices: Indices) -> list[int]:
    """The samples whose logits (B, K) are no numbers; all of them if the loss alone is none."""
    bad = ~torch.isfinite(logits.detach()).all(dim=1).cpu().numpy()  # (B,)
    found: list[int] = indices[bad if bad.any() else np.ones_like(bad)].tolist()
    return found


def _no_number(
    learner: _Learner, images: ImageSet, *, loss: float, epoch: int, batch: int
) -> TrainingError:
    """What to say of it, in the first process; the others leave it to that one."""
    suspects = [index for found in learner.processes.gather(learner.suspects) for index in found]
    if not learner.processes.first:
        return StoppedElsewhereError("the loss is no number")
    names = [str(images.samples[index].path) for index in suspects[:NAMED_IN_ERRORS]]
    more = len(suspects) - len(names)
    return TrainingError(
        f"the loss is {loss} in epoch {epoch}, batch {batch}; training stopped before it could "
        f"spoil the prompts. It came of {', '.join(names)}{f' and {more} more' if more > 0 else ''}"
        ": look at these images. If nothing is wrong with them, lower --learning-rate or use "
        "--precision fp32; the epochs before are saved, but other options need --force"
    )
