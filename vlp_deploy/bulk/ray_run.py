"""From a stream of inputs to their answers in the same order, by the workers of a Ray cluster.

Every worker is an actor with a classifier of its own. Batches are the same as in a local run, so
answers are, too; they come back to one process, which writes them as it would its own. A worker
that dies is started again, and what it was doing is done again; an image that kills it every time
is a failure like others.
"""

import importlib
import os
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from vlp_deploy.answers import Answer, Failure
from vlp_deploy.bulk.items import Input, name_of
from vlp_deploy.bulk.pipeline import batched
from vlp_deploy.classes.class_list import ClassNames
from vlp_deploy.classifier import Classifier
from vlp_deploy.errors import BundleError, EngineError, MissingExtraError, VlpError
from vlp_deploy.question import Question

LOCAL = "local"
QUEUE = 2  # batches that a worker has: one at work, the next at hand
AHEAD = 4  # batches a worker that are taken and not given back
RETRIES = 1  # of a batch whose worker dies; more, and one of its images must be at fault
DIED = "the process that read it died, twice: the image makes its decoder crash, or takes too much"
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

    Raises EngineError if workers die whatever they are given.
    """
    workers = hire(ray, task)
    batches = batched(items, task.question.batch_size)
    free = deque(workers * QUEUE)
    pending: deque[tuple[Any, list[Input]]] = deque()  # in order: reference to answers, batch
    busy: dict[Any, Any] = {}  # reference -> worker
    try:
        while True:
            while free and len(pending) < AHEAD * len(workers):
                if (batch := next(batches, None)) is None:
                    break
                worker = free.popleft()
                reference = worker.answers.remote(batch)
                pending.append((reference, batch))
                busy[reference] = worker
            if not pending:
                return
            done, _ = ray.wait(list(busy)) if busy else ([], [])
            free.extend(busy.pop(reference) for reference in done)
            while pending and pending[0][0] not in busy:
                reference, batch = pending.popleft()
                found = _get(ray, reference)
                if found is None:
                    ray.wait([*busy, reference], num_returns=len(busy) + 1)  # nobody else is hurt
                    found = _without_fatal_images(ray, workers[0], batch)
                yield from found
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


def _without_fatal_images(ray: ModuleType, worker: Any, batch: list[Input]) -> list[Answer]:
    """The answers of a batch that killed its worker: what kills it by itself, too, is a Failure.

    The others are answered together, as if those images could not be read.
    """
    try:
        ray.get(worker.answers.remote([]))
    except ray.exceptions.RayActorError as error:
        raise EngineError(
            "the Ray workers die before they have seen an image. Is vlp-deploy installed where they"
            f" run, and is there memory enough? Ray says: {error}"
        ) from error
    rest = [
        item
        if _get(ray, worker.answers.remote([item])) is not None
        else Failure(path=name_of(item), error=DIED)
        for item in batch
    ]
    if (found := _get(ray, worker.answers.remote(rest))) is None:
        raise EngineError(
            "a Ray worker died over a batch and not over any image of it, for want of memory "
            "perhaps. Lower --max-memory or --batch-size"
        )
    return found


def _get(ray: ModuleType, reference: Any) -> list[Answer] | None:
    """The answers, or None if the worker died over them each time."""
    deaths = (
        ray.exceptions.RayActorError,
        ray.exceptions.ObjectLostError,
        ray.exceptions.OutOfMemoryError,
    )
    try:
        return ray.get(reference)  # type: ignore[no-any-return]
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, VlpError):
            raise error.cause from None
        raise
    except deaths:
        return None
