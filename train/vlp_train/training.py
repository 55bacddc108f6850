"""From a request to a finished run: data, backbone and method in, a prompt checkpoint out."""

import hashlib
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import torch

from vlp_deploy import __version__
from vlp_deploy.architecture import Backbone, Preprocessing
from vlp_deploy.checkpoint import Header, PromptCheckpoint
from vlp_deploy.data import Dataset, Sample, check_readable, few_shot, load_dataset
from vlp_deploy.errors import DataError, TrainingError
from vlp_deploy.files import sha256_of
from vlp_train.backbones import load_backbone, load_preprocessing
from vlp_train.evaluate import (
    ENSEMBLE,
    Accuracy,
    accuracy,
    check_servable,
    evaluate,
    zero_shot_accuracies,
)
from vlp_train.fit import Precision, Report, fit
from vlp_train.images import ImageSet
from vlp_train.methods import Config, method_config, method_entry
from vlp_train.methods.base import Method, Task, Training
from vlp_train.prompted import Prompts
from vlp_train.reference import reference_pixels, references
from vlp_train.run import Epoch, Run

TEST = "test"  # the metric of the data's own test split


@dataclass(frozen=True, kw_only=True)
class Request:
    """Everything a user can ask of a training run; what is left None the method decides."""

    data: Path
    output: Path
    method: str
    method_options: Mapping[str, Any] = field(default_factory=dict)
    model: str = "vlp-tiny"
    pretrained: str | None = None
    image_root: Path | None = None
    classnames: Path | None = None
    shots: int | None = None  # images a class; None = all
    seed: int = 1
    epochs: int | None = None
    learning_rate: float | None = None
    batch_size: int | None = None
    warmup_epochs: int | None = None
    augment: bool = True
    flip: bool = True
    device: str = "auto"
    precision: Precision | None = None
    evaluate: tuple[Path, ...] = ()
    resume: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        for name, least in (("shots", 1), ("epochs", 1), ("batch_size", 1), ("warmup_epochs", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise TrainingError(f"{name} must be at least {least}, got {value}")
        if self.learning_rate is not None and not 0 < self.learning_rate < float("inf"):
            raise TrainingError(f"the learning rate must be above 0, got {self.learning_rate}")
        if self.seed < 0:
            raise TrainingError(f"the seed must be 0 or more, got {self.seed}")
        if self.resume and self.force:
            raise TrainingError(
                "--resume goes on with a run and --force deletes it: give one of them"
            )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A finished run: its checkpoint, how it learned, how well it does."""

    path: Path
    checkpoint: PromptCheckpoint
    log: tuple[Epoch, ...]
    metrics: Mapping[str, Accuracy]


@dataclass(frozen=True, kw_only=True)
class _Job:
    """A request with everything loaded and decided."""

    request: Request
    dataset: Dataset
    train_samples: tuple[Sample, ...]
    test_samples: tuple[Sample, ...]
    others: Mapping[str, Dataset]  # to be measured on, too
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
            "shots": self.request.shots,
            "seed": self.request.seed,
            "augment": self.request.augment,
            "flip": self.request.flip,
            "data": _digest(self.dataset.class_names, self.train_samples or self.test_samples),
        }


def train(request: Request, report: Report = lambda step: None) -> Outcome:
    """Train a prompt and write its run folder. `report` is called after every step.

    Nothing is deleted or written before the whole request has been loaded and checked. Raises
    VlpError subclasses; whatever is interrupted can go on with `resume`.
    """
    run = Run(request.output)
    _check_folder(run, request)  # here because it is quick, below because it may have changed
    job = _prepare(request)
    with run.locked():
        _check_folder(run, request)
        if request.force:
            run.clear()
        if run.finished:  # and --resume was given
            return _finished(run, job)
        started = time.perf_counter()
        log = _fit(run, job, report) if job.training.epochs else ()
        return _finish(run, job, log, seconds=time.perf_counter() - started)


def _fit(run: Run, job: _Job, report: Report) -> tuple[Epoch, ...]:
    images = ImageSet(
        job.train_samples,
        job.preprocessing,
        seed=job.request.seed,
        augment=job.request.augment,
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


def _prepare(request: Request) -> _Job:
    """Load and check everything before the first step."""
    entry = method_entry(request.method)
    config = method_config(request.method, request.method_options)
    training = _training(config, request)
    dataset = load_dataset(
        request.data, image_root=request.image_root, classnames=request.classnames
    )
    train_samples, test_samples = _samples(dataset, request, learns=training.epochs > 0)
    check_readable([*train_samples, *test_samples])
    others = _other_data(request, config)
    device = _device(request.device)
    preprocessing = load_preprocessing(request.model, request.pretrained)
    clip, backbone = load_backbone(request.model, request.pretrained, device=device)
    task = Task(
        clip=clip,
        class_names=dataset.class_names,
        preprocessing=preprocessing,
        seed=request.seed,
    )
    method = entry.method(config, task)
    for other in others.values():
        check_servable(method.prompted, method.prompts(), other.class_names)
    return _Job(
        request=request,
        dataset=dataset,
        train_samples=train_samples,
        test_samples=test_samples,
        others=others,
        backbone=backbone,
        preprocessing=preprocessing,
        config=config,
        training=training,
        device=device,
        precision=request.precision or _precision(device),
        method=method,
    )


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
    reserved = {TEST, ENSEMBLE, *getattr(config, "templates", ())}
    others: dict[str, Dataset] = {}
    for source in request.evaluate:
        name = source.resolve().name
        if name in reserved or name in others:
            raise TrainingError(
                f"--evaluate {source} would be told as {name!r}, which is taken. Rename it"
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


def _device(asked: str) -> torch.device:
    if asked == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(asked)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise TrainingError(
            f"device {asked!r} cannot be used ({str(error).splitlines()[0]}); try cpu"
        ) from error
    return device


def _precision(device: torch.device) -> Precision:
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


def _digest(class_names: Sequence[str], samples: Sequence[Sample]) -> str:
    """A fingerprint of the training data that does not depend on where it lies."""
    digest = hashlib.sha256(repr(class_names).encode())
    for path, label in samples:
        name = f"{path.parent.name}/{path.name}".encode("utf-8", "surrogateescape")
        digest.update(b"%s\0%s\0%d\n" % (name, sha256_of(path).encode(), label))
    return digest.hexdigest()


def _finished(run: Run, job: _Job) -> Outcome:
    """A run that was complete already, measured on what is asked for now.

    Raises TrainingError if it was another one.
    """
    checkpoint = PromptCheckpoint.load(run.checkpoint)
    provenance = checkpoint.header.provenance
    run.check_options(provenance.get("options", {}), job.options)
    log = run.load(job.options)[0].log if run.started else ()
    metrics = msgspec.convert(provenance["metrics"], dict[str, Accuracy])
    if job.others:
        _add_metrics(run, job, checkpoint, metrics)
    return Outcome(path=run.checkpoint, checkpoint=checkpoint, log=log, metrics=metrics)


@torch.no_grad()
def _finish(run: Run, job: _Job, log: tuple[Epoch, ...], *, seconds: float) -> Outcome:
    """Measure the trained prompts and write the checkpoint, the last thing a run does."""
    prompted = job.method.prompted
    prompts = {name: value.detach() for name, value in job.method.prompts().items()}
    metrics = _test_metrics(job, prompts)
    # from here on in float32 on the CPU, whatever it was trained in
    prompted.to("cpu")
    prompts = {name: value.cpu() for name, value in prompts.items()}
    pixels = reference_pixels(job.test_samples or job.train_samples, job.preprocessing)
    checkpoint = PromptCheckpoint(
        header=_header(job, log, seconds=seconds),
        tensors={
            **{name: value.numpy() for name, value in prompts.items()},
            **references(prompted, prompts, pixels),
        },
    )
    _add_metrics(run, job, checkpoint, metrics)
    return Outcome(path=run.checkpoint, checkpoint=checkpoint, log=log, metrics=metrics)


def _test_metrics(job: _Job, prompts: Prompts) -> dict[str, Accuracy]:
    """Accuracy on the test split; of several zero-shot sentences also that of each alone."""
    prompted = job.method.prompted
    if not job.test_samples:
        return {}
    if prompts or len(prompted.templates) == 1:
        return {TEST: accuracy(prompted, prompts, job.test_samples)}
    accuracies = zero_shot_accuracies(
        prompted.clip,
        job.dataset,
        templates=prompted.templates,
        preprocessing=job.preprocessing,
    )
    return {TEST: accuracies[ENSEMBLE], **accuracies}


def _add_metrics(
    run: Run, job: _Job, checkpoint: PromptCheckpoint, metrics: dict[str, Accuracy]
) -> None:
    """Measure the other data and write the checkpoint with all accuracies."""
    for name, dataset in job.others.items():
        metrics[name] = evaluate(checkpoint, dataset, clip=job.method.prompted.clip)
    checkpoint.header.provenance["metrics"] = msgspec.to_builtins(metrics)
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
