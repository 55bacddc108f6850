"""The training loop: labelled images move a method's prompts, the CLIP around them stays frozen.

SGD with momentum and weight decay as in CoOp's code (Dassl), the learning rate set once an epoch.

Legend: B images of a batch, K classes, D joint width, n training images.
"""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from vlp_deploy.errors import TrainingError
from vlp_train.images import ImageSet
from vlp_train.methods.base import Inputs, Method, Training
from vlp_train.run import Epoch, Progress, Run
from vlp_train.schedule import learning_rate

MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4  # on prompts too
FEATURE_BATCH = 64  # images a batch where no gradient is needed

Precision = Literal["fp32", "bf16", "fp16"]


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


Report = Callable[[Step], None]


def fit(
    method: Method,
    images: ImageSet,
    run: Run,
    *,
    training: Training,
    precision: Precision,
    options: Mapping[str, Any],
    report: Report,
) -> tuple[Epoch, ...]:
    """Train to the end, from where `run` stands, saving every epoch. Returns the log.

    The prompts end bit for bit the same however often the run was interrupted, on a CPU with the
    same number of threads. Raises TrainingError if the loss is no number any more.
    """
    optimiser = torch.optim.SGD(
        method.parameter_groups(), lr=0.0, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
    )
    device = method.prompted.device.type
    scaler = torch.amp.GradScaler(device, enabled=precision == "fp16")
    log = _restore(method, optimiser, scaler, run, options) if run.started else ()
    method.start(images, training)
    features = _Features(method, images, precision)
    for epoch in range(len(log), training.epochs):
        started = time.perf_counter()
        rate = learning_rate(
            epoch,
            epochs=training.epochs,
            peak=training.learning_rate,
            warmup_epochs=training.warmup_epochs,
        )
        for group in optimiser.param_groups:
            group["lr"] = rate * group.get("rate_factor", 1.0)
        means = _Means()
        steps = len(images.shuffled(epoch, training.batch_size))
        batches = features.epoch(epoch, training.batch_size)
        for step, inputs in enumerate(batches, start=1):
            with autocast(features.device, precision):
                logits, loss = method.step(inputs)  # (B, K), scalar
            _check_finite(loss, epoch=epoch + 1, batch=step)
            optimiser.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimiser)
            scaler.update()
            means.add(loss, logits, inputs.labels)
            report(
                Step(
                    epoch=epoch + 1,
                    epochs=training.epochs,
                    step=step,
                    steps=steps,
                    loss=means.loss,
                    accuracy=means.accuracy,
                    learning_rate=rate,
                )
            )
        method.end_of_epoch(epoch)
        log = (*log, means.epoch(epoch + 1, rate=rate, seconds=time.perf_counter() - started))
        _save(method, optimiser, scaler, run, options, log)
    with torch.no_grad():
        method.finish(images)
    return log


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """Matrix products in half precision where that was asked for."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "fp32")


class _Features:
    """What a method's steps work on: features that training cannot change are computed once."""

    def __init__(self, method: Method, images: ImageSet, precision: Precision) -> None:
        self._method, self._images, self._precision = method, images, precision
        self.device = method.prompted.device
        self._image_features = None if method.learns_image or images.augment else self._all()
        self._class_features = None if method.learns_text else self._frozen_classes()

    def epoch(self, epoch: int, batch_size: int) -> Iterator[Inputs]:
        """Batch after batch."""
        for images, labels in self._batches(epoch, batch_size):
            yield Inputs(
                images=images,
                class_features=self._class_features,
                labels=labels.to(self.device),
                epoch=epoch,
            )

    def _batches(self, epoch: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Image features (B, D), or pixels (B, 3, S, S), and labels (B,)."""
        if self._image_features is not None:
            for indices in self._images.shuffled(epoch, batch_size):
                yield self._image_features[torch.from_numpy(indices)], self._images.labels(indices)
            return
        for batch in self._images.epoch(epoch, batch_size):
            learns_image = self._method.learns_image
            yield (batch.pixels if learns_image else self._of(batch.pixels)), batch.labels

    @torch.no_grad()
    def _of(self, pixels: Tensor) -> Tensor:
        """(B, D)."""
        with autocast(self.device, self._precision):
            return self._method.image_features(pixels)

    def _all(self) -> Tensor:
        """(n, D)."""
        return torch.cat([self._of(b.pixels) for b in self._images.in_order(FEATURE_BATCH)])

    @torch.no_grad()
    def _frozen_classes(self) -> Tensor:
        return self._method.class_features()


class _Means:
    """Running means of an epoch."""

    def __init__(self) -> None:
        self._loss, self._correct, self._images = 0.0, 0, 0

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        self._loss += loss.item() * len(labels)
        self._correct += int((logits.argmax(dim=1) == labels).sum())
        self._images += len(labels)

    @property
    def loss(self) -> float:
        return self._loss / self._images

    @property
    def accuracy(self) -> float:
        return self._correct / self._images

    def epoch(self, number: int, *, rate: float, seconds: float) -> Epoch:
        """The line for the log."""
        return Epoch(
            epoch=number,
            loss=self.loss,
            accuracy=self.accuracy,
            learning_rate=rate,
            seconds=round(seconds, 3),
        )


def _check_finite(loss: Tensor, *, epoch: int, batch: int) -> None:
    if not torch.isfinite(loss):
        raise TrainingError(
            f"the loss is {loss.item()} in epoch {epoch}, batch {batch}; training stopped before "
            "it could spoil the prompts. Lower --learning-rate, or use --precision fp32; the "
            "epochs before are saved, but other options need --force"
        )


def _save(
    method: Method,
    optimiser: torch.optim.SGD,
    scaler: torch.amp.GradScaler,
    run: Run,
    options: Mapping[str, Any],
    log: tuple[Epoch, ...],
) -> None:
    """The method's state and momentum, with all that is needed to go on."""
    tensors = {f"prompt.{name}": v.cpu().numpy() for name, v in method.state_dict().items()}
    for name, parameter in method.named_parameters():
        # not there for what was never stepped: float16 skips steps, methods freeze prompts
        momentum = optimiser.state[parameter].get("momentum_buffer")
        if momentum is not None:
            tensors[f"momentum.{name}"] = momentum.cpu().numpy()
    progress = Progress(
        options=dict(options),
        threads=torch.get_num_threads(),
        scaler=scaler.state_dict(),
        log=log,
    )
    run.save(progress, tensors)


def _restore(
    method: Method,
    optimiser: torch.optim.SGD,
    scaler: torch.amp.GradScaler,
    run: Run,
    options: Mapping[str, Any],
) -> tuple[Epoch, ...]:
    """The inverse of `_save`. Raises TrainingError if the options differ."""
    progress, tensors = run.load(options)
    if progress.threads != torch.get_num_threads():
        warnings.warn(
            f"the run was started with {progress.threads} threads and goes on with "
            f"{torch.get_num_threads()}: sums are added up in another order, so the last bits "
            "of the prompts will differ",
            stacklevel=2,
        )
    method.load_state_dict(
        {name: torch.from_numpy(tensors[f"prompt.{name}"]) for name in method.state_dict()}
    )
    for name, parameter in method.named_parameters():
        if f"momentum.{name}" in tensors:
            momentum = torch.from_numpy(tensors[f"momentum.{name}"]).to(parameter.device)
            optimiser.state[parameter]["momentum_buffer"] = momentum
    if scaler.is_enabled():
        scaler.load_state_dict(progress.scaler)
    return progress.log
