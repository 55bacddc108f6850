"""From a request to a finished run: data, backbone and method in, a prompt checkpoint out."""

import hashlib
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from vlp_deploy import __version__
from vlp_deploy.data.dataset import Dataset, Sample, check_readable, few_shot, load_dataset, subset
from vlp_deploy.errors import ClassListError, DataError, TrainingError
from vlp_deploy.files import sha256_of
from vlp_deploy.formats.architecture import Backbone, Preprocessing
from vlp_deploy.formats.checkpoint import RUN_FILE, Header, PromptCheckpoint
from vlp_train.backbones import load_backbone, load_preprocessing
from vlp_train.devices import Precision, choose_device, default_precision
from vlp_train.dual import VARIANTS
from vlp_train.evaluate import (
    ENSEMBLE,
    Accuracy,
    accuracy,
    check_servable,
    evaluate,
    zero_shot_accuracies,
)
from vlp_train.fit import Report, fit
from vlp_train.images import ImageSet
from vlp_train.methods import Config, check_towers, method_config, method_entry
from vlp_train.methods.base import Method, Task, Training
from vlp_train.metrics import HARMONIC_MEAN, harmonic_mean, metric_name, own_metric
from vlp_train.parallel import Processes, joined, place
from vlp_train.prompted import Prompts
from vlp_train.reference import reference_pixels, references
from vlp_train.request import Request
from vlp_train.run import Epoch, Run
from vlp_train.tracing import image_graph
from vlp_train.validation import hold_out

SECOND_STAGES = ("dpc",)  # methods that go on from a tuned prompt


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A finished run: its checkpoint, how it learned, how well it does, what to know about it."""

    path: Path
    checkpoint: PromptCheckpoint
    log: tuple[Epoch, ...]
    metrics: Mapping[str, Accuracy]
    notes: tuple[str, ...] = ()

    @property
    def harmonic_mean(self) -> float | None:
        """Of base and new accuracy, where both were measured."""
        return harmonic_mean(self.metrics)


@dataclass(frozen=True, kw_only=True)
class _Job:
    """A request with everything loaded and decided."""

    request: Request
    dataset: Dataset
    train_samples: tuple[Sample, ...]
    validation: tuple[Sample, ...]
    test_samples: tuple[Sample, ...]
    others: Mapping[str, Dataset]  # to be measured on, too
    notes: tuple[str, ...]
    backbone: Backbone
    preprocessing: Preprocessing
    config: Config
    training: Training
    device: torch.device
    precision: Precision
    method: Method

    @cached_property
    def options(self) -> dict[str, Any]:
        """What a resumed run must agree on: everything that influences weights and accuracy."""
        return {
            "method": self.request.method,
            **{f"option {name}": value for name, value in hyper_parameters(self.config).items()},
            **asdict(self.training),
            "model": self.backbone.name,
            "weights": self.backbone.sha256,
            "model configuration": msgspec.to_builtins(self.backbone.config),
            "preprocessing": msgspec.to_builtins(self.preprocessing),
            "precision": self.precision,
            "device": self.device.type,
            "subset": self.request.subset,
            "shots": self.request.shots,
            "seed": self.request.seed,
            "augment": self.request.random_views,
            "views": self.request.views,
            "flip": self.request.flip,
            "class_chunk": self.request.class_chunk,
            "data": _digest(
                self.dataset.class_names,
                (*self.train_samples, *self.validation) or self.test_samples,
            ),
            "stage1": None if self.request.stage1 is None else _stage1_digest(self.request.stage1),
        }


def train(request: Request, report: Report = lambda step: None) -> Outcome:
    """Train a prompt and write its run folder. `report` is called after every step.

    Nothing is deleted or written before the whole request has been loaded and checked. Under
    torchrun every process calls this and gets the same outcome; the first one writes.
    Raises VlpError subclasses; whatever is interrupted can go on with `resume`.
    """
    with joined(cuda=torch.cuda.is_available() and request.device != "cpu") as processes:
        return _train(request, report, processes)


def _train(request: Request, report: Report, processes: Processes) -> Outcome:
    run = Run(request.output, writes=processes.first)
    with processes.agreeing():
        _check_folder(run, request)  # here because it is quick, below because it may have changed
        job = _prepare(request)
        _check_processes(job, processes)
    with run.locked():
        with processes.agreeing():
            _check_folder(run, request)
            if request.force:
                run.clear()
            finished = run.finished and not request.force  # which the first one deletes just now
        if finished:  # and --resume was given
            return _finished(run, job)
        with processes.agreeing():  # before the training: what cannot be exported is not trained
            clip = job.method.prompted.clip
            graph = image_graph(clip, job.preprocessing, report) if processes.first else {}
        started = time.perf_counter()
        log = _fit(run, job, report, processes) if job.training.epochs else ()
        seconds = time.perf_counter() - started
        with processes.agreeing():
            if processes.first:
                return _finish(run, job, log, graph, seconds=seconds)
        return _finished(run, job)


def _fit(run: Run, job: _Job, report: Report, processes: Processes) -> tuple[Epoch, ...]:
    images = ImageSet(
        job.train_samples,
        job.preprocessing,
        seed=job.request.seed,
        augment=job.request.random_views,
        flip=job.request.flip,
    )
    return fit(
        job.method,
        images,
        run,
        training=job.training,
        precision=job.precision,
        options=job.options,
        report=report,
        views=job.request.views or 0,
        processes=processes,
    )


def hyper_parameters(config: Config) -> dict[str, Any]:
    """A method's configuration as JSON values, defaults included."""
    # msgspec alone leaves out what the user did not give
    values: dict[str, Any] = msgspec.to_builtins(asdict(config))  # type: ignore[call-overload]
    return values


def _check_folder(run: Run, request: Request) -> None:
    """Never overwrite a run unasked."""
    if request.force or request.resume:
        return
    if run.finished:
        raise TrainingError(
            f"{run.folder} holds a finished run. Choose another --output, or replace it with "
            "--force"
        )
    if run.started:
        raise TrainingError(
            f"{run.folder} holds an unfinished run. Go on with --resume, or start over with --force"
        )


def _check_processes(job: _Job, processes: Processes) -> None:
    if processes.size > 1 and not job.method.data_parallel:
        raise TrainingError(
            f"the loss of {job.request.method} couples the images of a batch, so it changes when "
            f"{processes.size} processes take a share each. Train it in one process, without "
            "torchrun"
        )


def _prepare(request: Request) -> _Job:
    """Load and check everything before the first step."""
    entry = method_entry(request.method)
    config = method_config(request.method, request.method_options)
    training = _training(config, request)
    whole = load_dataset(request.data, image_root=request.image_root, classnames=request.classnames)
    dataset = subset(whole, request.subset)
    train_samples, test_samples = _samples(dataset, request, learns=training.epochs > 0)
    validation: tuple[Sample, ...] = ()
    if getattr(config, "wants_validation", False):
        train_samples, validation = hold_out(dataset, train_samples, seed=request.seed)
    check_readable([*train_samples, *validation, *test_samples])
    others = _other_data(request, config)
    *_, local_rank = place()
    device = choose_device(request.device, index=local_rank)
    preprocessing = load_preprocessing(request.model, request.pretrained)
    clip, backbone = load_backbone(request.model, request.pretrained, device=device)
    check_towers(request.method, backbone.config)
    task = Task(
        clip=clip,
        class_names=dataset.class_names,
        preprocessing=preprocessing,
        seed=request.seed,
        class_chunk=request.class_chunk,
        stage1=_stage1(request, backbone, preprocessing),
        validation=validation,
    )
    method = entry.method(config, task)
    for other in others.values():
        check_servable(method.prompted, method.prompts(), other.class_names)
    new, unserved = _new_classes(whole, request, method)
    return _Job(
        request=request,
        dataset=dataset,
        train_samples=train_samples,
        validation=validation,
        test_samples=test_samples,
        others={**new, **others},
        notes=(*_about_batches(method, training, request), *unserved),
        backbone=backbone,
        preprocessing=preprocessing,
        config=config,
        training=training,
        device=device,
        precision=request.precision or default_precision(device),
        method=method,
    )


def _stage1(
    request: Request, backbone: Backbone, preprocessing: Preprocessing
) -> PromptCheckpoint | None:
    """The prompt to go on from, by the same CLIP."""
    if request.stage1 is None:
        return None
    if request.method not in SECOND_STAGES:
        raise TrainingError(
            f"--stage1 is for {', '.join(SECOND_STAGES)}; {request.method} starts by itself. Leave "
            "it out"
        )
    checkpoint = PromptCheckpoint.load(request.stage1)
    header = checkpoint.header
    if header.backbone.sha256 != backbone.sha256 or header.preprocessing != preprocessing:
        raise TrainingError(
            f"--stage1 {request.stage1} was tuned on {header.backbone.name} "
            f"({header.backbone.sha256[:12]}), and this run is to train on {backbone.name} "
            f"({backbone.sha256[:12]}) or prepares images in another way. Give the same --model "
            "and --pretrained"
        )
    return checkpoint


def _stage1_digest(source: Path) -> str:
    return sha256_of(source / RUN_FILE if source.is_dir() else source)


def _about_batches(method: Method, training: Training, request: Request) -> list[str]:
    """What is to be known of what was trained on. Raises TrainingError if it cannot be cached."""
    if method.learns_image and request.cache_features:
        raise TrainingError(
            f"--cache-features: {request.method} learns prompts in the image tower, whose features "
            "change with every step. Leave it out; --no-augment leaves out the random crops alone"
        )
    notes = []
    if training.epochs and not method.learns_image and (request.views or not request.random_views):
        seen = f"in {request.views} random views" if request.views else "as served, never cropped"
        notes.append(f"image features were computed once and cached: each image {seen}")
    if training.accumulate > 1 and not method.data_parallel:
        notes.append(
            f"the loss of {request.method} couples the images of a batch: {training.accumulate} "
            f"batches of {training.batch_size} are not one of "
            f"{training.accumulate * training.batch_size}"
        )
    return notes


def _new_classes(
    whole: Dataset, request: Request, method: Method
) -> tuple[dict[str, Dataset], list[str]]:
    """The classes that a run on the base classes is also measured on, or why it cannot be."""
    if request.subset != "base" or not {"test", "all"} & whole.splits.keys():
        return {}, []
    new = subset(whole, "new")
    try:
        check_servable(method.prompted, method.prompts(), new.class_names)
    except ClassListError as error:
        return {}, [f"new classes were not measured: {error}"]
    check_readable(new.split("test"))
    return {"new": new}, []


def _training(config: Config, request: Request) -> Training:
    """The method's schedule for these shots, with the user's changes."""
    default = config.training(request.shots)
    asked = {name: getattr(request, name) for name in asdict(default)}
    chosen = {name: value for name, value in asked.items() if value is not None}
    if default.epochs == 0:
        if chosen:
            raise TrainingError(
                f"method {request.method} learns nothing: leave out {', '.join(sorted(chosen))}"
            )
        return default
    training = Training(**{**asdict(default), **chosen})
    if training.warmup_epochs < training.epochs:
        return training
    if request.warmup_epochs is None:  # few epochs were asked for: all of them learn
        return replace(training, warmup_epochs=0)
    raise TrainingError(
        f"{training.warmup_epochs} warm-up epochs leave none of {training.epochs} epochs to learn "
        "in. Lower --warmup-epochs or raise --epochs"
    )


def _other_data(request: Request, config: Config) -> dict[str, Dataset]:
    """The data of --evaluate by the names under which accuracies are told."""
    own = {own_metric(request.subset), ENSEMBLE, *getattr(config, "templates", ()), *VARIANTS}
    own |= {"new"} if request.subset == "base" else set()
    others: dict[str, Dataset] = {}
    for source in dict.fromkeys(path.resolve() for path in request.evaluate):
        name = metric_name(source, taken=own | others.keys())
        if name in others:
            raise TrainingError(
                f"--evaluate {source} would be told as {name!r}, which is taken. Rename its folder"
            )
        others[name] = load_dataset(source)
        check_readable(others[name].split("test"))
    return others


def _samples(
    dataset: Dataset, request: Request, *, learns: bool
) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """What to learn from and what to be measured on.

    Where the data has no splits, that is the few shots that are drawn and all the others.
    """
    pool = dataset.split("train") if learns else ()
    drawn = pool
    if request.shots is not None and learns:
        drawn = few_shot(pool, shots=request.shots, seed=request.seed)
    if "test" in dataset.splits:
        return drawn, dataset.splits["test"]
    if "all" in dataset.splits:
        taken = set(drawn)
        return drawn, tuple(s for s in dataset.splits["all"] if s not in taken)
    if not learns:
        raise DataError(f"{dataset.source} has no test split, and zeroshot only measures")
    return drawn, ()


def _digest(class_names: Sequence[str], samples: Sequence[Sample]) -> str:
    """A fingerprint of the training data that does not depend on where it lies."""
    digest = hashlib.sha256(repr(class_names).encode())
    for path, label in samples:
        name = f"{path.parent.name}/{path.name}".encode("utf-8", "surrogateescape")
        digest.update(b"%s\0%s\0%d\n" % (name, sha256_of(path).encode(), label))
    return digest.hexdigest()


def _finished(run: Run, job: _Job) -> Outcome:
    """A run that is complete already, measured on what is asked for now.

    Raises TrainingError if it was another one.
    """
    checkpoint = PromptCheckpoint.load(run.checkpoint)
    provenance = checkpoint.header.provenance
    run.check_options(provenance.get("options", {}), job.options)
    log = run.load(job.options)[0].log if run.started else ()
    metrics = msgspec.convert(provenance["metrics"], dict[str, Accuracy])
    if run.writes and job.others:
        _add_metrics(run, job, checkpoint, metrics)
    return _outcome(run, job, checkpoint, log, metrics)


@torch.no_grad()
def _finish(
    run: Run,
    job: _Job,
    log: tuple[Epoch, ...],
    graph: Mapping[str, NDArray[np.uint8]],
    *,
    seconds: float,
) -> Outcome:
    """Measure the trained prompts and write the checkpoint, the last thing a run does."""
    prompted = job.method.prompted
    prompts = {name: value.detach() for name, value in job.method.prompts().items()}
    metrics = _test_metrics(job, prompts)
    # from here on in float32 on the CPU, whatever it was trained in
    prompted.to("cpu")
    prompts = {name: value.cpu() for name, value in prompts.items()}
    pixels = reference_pixels(job.test_samples or job.train_samples, job.preprocessing, prompted)
    checkpoint = PromptCheckpoint(
        header=_header(job, log, seconds=seconds),
        tensors={
            **{name: value.numpy() for name, value in prompts.items()},
            **references(prompted, prompts, pixels),
            **graph,
        },
    )
    _add_metrics(run, job, checkpoint, metrics)
    return _outcome(run, job, checkpoint, log, metrics)


def _outcome(
    run: Run,
    job: _Job,
    checkpoint: PromptCheckpoint,
    log: tuple[Epoch, ...],
    metrics: Mapping[str, Accuracy],
) -> Outcome:
    return Outcome(
        path=run.checkpoint, checkpoint=checkpoint, log=log, metrics=metrics, notes=job.notes
    )


def _test_metrics(job: _Job, prompts: Prompts) -> dict[str, Accuracy]:
    """Accuracy on the test split; of several sentences or prompts also that of each alone."""
    prompted, own = job.method.prompted, own_metric(job.request.subset)
    if not job.test_samples:
        return {}
    if prompts or len(prompted.templates) == 1:
        measured = {own: prompts, **prompted.variants(prompts)}
        return {name: accuracy(prompted, each, job.test_samples) for name, each in measured.items()}
    accuracies = zero_shot_accuracies(
        prompted.clip,
        job.dataset,
        templates=prompted.templates,
        preprocessing=job.preprocessing,
    )
    return {own: accuracies[ENSEMBLE], **accuracies}


def _add_metrics(
    run: Run, job: _Job, checkpoint: PromptCheckpoint, metrics: dict[str, Accuracy]
) -> None:
    """Measure the other data and write the checkpoint with all accuracies."""
    for name, dataset in job.others.items():
        metrics[name] = evaluate(checkpoint, dataset, clip=job.method.prompted.clip)
    provenance = checkpoint.header.provenance
    provenance["metrics"] = msgspec.to_builtins(metrics)
    provenance[HARMONIC_MEAN] = harmonic_mean(metrics)
    checkpoint.save(run.checkpoint)


def _header(job: _Job, log: Sequence[Epoch], *, seconds: float) -> Header:
    request, prompted = job.request, job.method.prompted
    return Header(
        method=request.method,
        hyper_parameters=hyper_parameters(job.config),
        backbone=job.backbone,
        class_names=job.dataset.class_names,
        templates=prompted.templates,
        text_layout=prompted.text_layout,
        visual_layout=prompted.visual_layout,
        structure=prompted.structure,
        base_classes=prompted.base_classes,
        preprocessing=job.preprocessing,
        provenance={
            "made_by": "vlp train",
            "data": request.data.name,
            "training_images": len(job.train_samples),
            "options": job.options,
            **job.method.provenance(),
            "threads": torch.get_num_threads(),
            "seconds": round(seconds, 1),
            "last_epoch": msgspec.to_builtins(log[-1]) if log else None,
            "versions": {
                "vlp_deploy": __version__,
                "torch": version("torch"),
                "python": platform.python_version(),
            },
        },
    )
