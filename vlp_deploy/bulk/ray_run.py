"""From a stream of inputs to their answers in the same order, by the workers of a Ray cluster.

Every worker is an actor with a classifier of its own. Batches are the same as in a local run, so
answers are, too; they come back to one process, which writes them as it would its own. A worker
that dies is started again, and what it was doing is done again.
"""

import importlib
import os
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from vlp_deploy.answers import Answer
from vlp_deploy.bulk.items import Input
from vlp_deploy.bulk.pipeline import batched
from vlp_deploy.classes.class_list import ClassNames
from vlp_deploy.classifier import Classifier
from vlp_deploy.errors import BundleError, EngineError, MissingExtraError, VlpError
from vlp_deploy.question import Question

LOCAL = "local"
QUEUE = 2  # batches that a worker has: one at work, the next at hand
AHEAD = 4  # batches a worker that are taken and not given back
RETRIES = 3  # of a batch whose worker dies; more, and the batch is at fault
SILENCE = {
    "RAY_USAGE_STATS_ENABLED": "0",  # else it would call home
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else it announces a change of its defaults
}


@dataclass(frozen=True, kw_only=True)
class Task:
    """What all workers do: a classifier and what it is asked. Paths must hold on every machine."""

    bundle: str
    digest: str
    engine: str
    threads: int  # of a worker: to decode and, after that, in the engine
    device: str
    classes: ClassNames | None
    templates: tuple[str, ...] | None
    question: Question


class Worker:
    """Classifies batches. It loads its bundle with the first, so that errors reach the caller."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._classifier: Classifier | None = None

    def answers(self, batch: list[Input]) -> list[Answer]:
        """One for every input, in order."""
        self._classifier = self._classifier or _load(self._task)
        task = self._task
        return list(self._classifier.stream(batch, task.question, read_threads=task.threads))

    def process(self) -> int:
        """The id of the process, by which a test kills it."""
        return os.getpid()


def _load(task: Task) -> Classifier:
    classifier = Classifier.load(task.bundle, task.engine, task.threads, device=task.device)
    if classifier.bundle.digest != task.digest:
        raise BundleError(
            f"{task.bundle} is another bundle on a worker's machine: {classifier.bundle.digest};"
            f" expected {task.digest}. Put the same one there"
        )
    if task.classes is None:
        return classifier
    return classifier.with_classes(task.classes, task.templates)


@contextmanager
def connected(address: str) -> Iterator[ModuleType]:
    """The package ray, connected to a cluster; for `local` to one made here, that ends with this.

    Raises MissingExtraError, or EngineError if there is no such cluster.
    """
    for name, value in SILENCE.items():
        os.environ.setdefault(name, value)
    try:
        ray = importlib.import_module("ray")
    except ModuleNotFoundError:
        raise MissingExtraError("--ray", needs="ray", extra="ray") from None
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == LOCAL:
        cores = len(os.sched_getaffinity(0))
        quiet |= {"include_dashboard": False, "num_cpus": cores}
    try:
        ray.init(address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise EngineError(
            f"there is no Ray cluster at {address}: {error}. Start one with `ray start --head`, or"
            f" use --ray {LOCAL}"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def answers(ray: ModuleType, items: Iterable[Input], task: Task) -> Iterator[Answer]:
    """One for every item, in order; at most AHEAD batches a worker are taken before their turn.

    Raises EngineError if a batch kills its worker again and again.
    """
    workers = hire(ray, task)
    batches = batched(items, task.question.batch_size)
    free = deque(workers * QUEUE)
    pending: deque[Any] = deque()  # references to answers, in the order of their batches
    busy: dict[Any, Any] = {}  # reference -> worker
    try:
        while True:
            while free and len(pending) < AHEAD * len(workers):
                if (batch := next(batches, None)) is None:
                    break
                worker = free.popleft()
                pending.append(worker.answers.remote(batch))
                busy[pending[-1]] = worker
            if not pending:
                return
            done, _ = ray.wait(list(busy)) if busy else ([], [])
            free.extend(busy.pop(reference) for reference in done)
            while pending and pending[0] not in busy:
                yield from _get(ray, pending.popleft())
    finally:
        for worker in workers:
            ray.kill(worker)


def hire(ray: ModuleType, task: Task) -> list[Any]:
    """As many workers as the cluster has room for now."""
    needs = {"CPU": task.threads, "GPU": int(task.device != "cpu")}
    found = ray.cluster_resources()
    room = min(int(found.get(name, 0) // need) for name, need in needs.items() if need)
    if room < 1:
        raise EngineError(
            f"no worker fits into the Ray cluster: it has {found.get('CPU', 0):g} CPUs and"
            f" {found.get('GPU', 0):g} GPUs, a worker needs {needs['CPU']} and {needs['GPU']}."
            " Use fewer --threads or another --device"
        )
    actor = ray.remote(num_cpus=needs["CPU"], num_gpus=needs["GPU"])(Worker)
    revived = actor.options(max_restarts=-1, max_task_retries=RETRIES)
    return [revived.remote(task) for _ in range(room)]


def _get(ray: ModuleType, reference: Any) -> list[Answer]:
    try:
        return ray.get(reference)  # type: ignore[no-any-return]
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, VlpError):
            raise error.cause from None
        raise
    except (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError) as error:
        raise EngineError(
            f"a Ray worker died {RETRIES + 1} times over the same batch, for want of memory"
            " perhaps. Lower --max-memory or --batch-size, or leave that image out"
        ) from error
