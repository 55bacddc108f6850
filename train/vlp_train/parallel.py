"""Several processes, started by torchrun, train as one: each takes a share of every batch.

Gradients are added up over the processes and every process takes the same step, so prompts and
momentum stay equal without being sent. One process alone is the same thing with nobody to ask.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch import distributed as dist

from vlp_deploy.errors import TrainingError, VlpError

PATIENCE = timedelta(days=7)  # the others wait while the first process measures accuracies

T = TypeVar("T")


class StoppedElsewhereError(TrainingError):
    """Another process failed and says why; this one has nothing to add."""


@dataclass(frozen=True, kw_only=True)
class Processes:
    """All processes of a run as one of them sees them."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.rank == 0

    def share(self, items: NDArray[Any]) -> NDArray[Any]:
        """This process's slice; the shares of all processes make up the whole."""
        return np.array_split(items, self.size)[self.rank]

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors of one type by their sums over all processes, in one message."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        with _listening():
            dist.all_reduce(flat)
        parts = flat.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def gather(self, value: T) -> list[T]:
        """The values of all processes, the first one's first."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with _listening():
            dist.all_gather_object(values, value)
        return values

    @contextmanager
    def agreeing(self) -> Iterator[None]:
        """Nobody goes on before everybody is here; a VlpError in one process stops them all.

        Only the first process that failed raises its error, the others StoppedElsewhereError.
        """
        error: VlpError | None = None
        try:
            yield
        except VlpError as caught:
            error = caught
        failed = [rank for rank, bad in enumerate(self.gather(error is not None)) if bad]
        if error is not None and failed[0] == self.rank:
            raise error
        if failed:
            raise StoppedElsewhereError(f"process {failed[0]} failed")


ALONE = Processes()


def place() -> tuple[int, int, int]:
    """This process's rank, the number of processes, and its number on its machine."""
    if not dist.is_available() or not dist.is_torchelastic_launched():
        return 0, 1, 0
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    rank, size, local = (int(os.environ[name]) for name in names)
    return rank, size, local


@contextmanager
def joined(*, cuda: bool) -> Iterator[Processes]:
    """The processes of this run, able to talk to each other; ALONE without torchrun."""
    rank, size, local = place()
    if size == 1:
        yield ALONE
        return
    if cuda:
        torch.cuda.set_device(local)
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)
    try:
        yield Processes(rank=rank, size=size)
    finally:
        dist.destroy_process_group()


@contextmanager
def _listening() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # the connection breaks when another process ends early
        raise StoppedElsewhereError(f"another process ended early ({error})") from error
