"""From a request to a finished run: data, backbone and method in, a prompt checkpoint out."""

import hashlib
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import torch

from vlp_deploy import __version__
from vlp_deploy.architecture import Backbone, Preprocessing
from vlp_deploy.checkpoint import Header, PromptCheckpoint
from vlp_deploy.data import Dataset, Sample, few_shot, load_dataset
from vlp_deploy.errors import DataError, TrainingError
from vlp_train.backbones import load_backbone, load_preprocessing
from vlp_train.evaluate import Accuracy, accuracy, evaluate, zero_shot_accuracies
from vlp_train.fit import Precision, Report, fit
from vlp_train.images import ImageSet
from vlp_train.methods import Config, method_config, method_entry
from vlp_train.methods.base import Method, Task, Training
from vlp_train.reference import reference_logits, reference_pixels
from vlp_train.run import Epoch, Run


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
    backbone: Backbone
    preprocessing: Preprocessing
    config: Config
    training: Training
    precision: Precision
    method: Method

    @property
    def options(self) -> dict[str, Any]:
        """What a resumed run must agree on: everything that influences the weights."""
        return {
            "method": self.request.method,
            **{f"option {name}": value for name, value in hyper_parameters(self.config).items()},
            **asdict(self.training),
            "model": self.backbone.name,
            "weights": self.backbone.sha256,
            "precision": self.precision,
            "device": self.method.prompted.device.type,
            "shots": self.request.shots,
            "seed": self.request.seed,
            "augment": self.request.augment,
            "flip": self.request.flip,
            "data": _digest(self.dataset.class_names, self.train_samples),
        }


def train(request: Request, report: Report = lambda step: None) -> Outcome:
    """Train a prompt and write its run folder. `report` is called after every step.

    Raises VlpError subclasses; whatever is interrupted can go on with `resume`.
    """
    run = Run(request.output)
    with run.locked():
        _check_folder(run, request)
        job = _prepare(request)
        started = time.perf_counter()
        if run.finished:  # and --resume was given
            _check_method(run, request)
            if job.training.epochs:
                return _finished(run, job)
        log: tuple[Epoch, ...] = ()
        if job.training.epochs:
            images = ImageSet(
                job.train_samples,
                job.preprocessing,
                seed=request.seed,
                augment=request.augment,
                flip=request.flip,
            )
            log = fit(
                job.method,
                images,
                run,
                training=job.training,
                precision=job.precision,
                options=job.options,
                report=report,
            )
        return _finish(run, job, log, seconds=time.perf_counter() - started)


def hyper_parameters(config: Config) -> dict[str, Any]:
    """A method's configuration as JSON values."""
    values: dict[str, Any] = msgspec.to_builtins(config)
    return values


def _check_folder(run: Run, request: Request) -> None:
    """Never overwrite a run unasked; `force` clears it."""
    if request.force:
        run.clear()
    elif run.finished and not request.resume:
        raise TrainingError(
            f"{run.folder} holds a finished run. Choose another --output, or replace it with "
            "--force"
        )
    elif run.started and not request.resume:
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
    device = _device(request.device)
    preprocessing = load_preprocessing(request.model, request.pretrained)
    clip, backbone = load_backbone(request.model, request.pretrained, device=device)
    task = Task(
        clip=clip,
        class_names=dataset.class_names,
        preprocessing=preprocessing,
        seed=request.seed,
    )
    return _Job(
        request=request,
        dataset=dataset,
        train_samples=train_samples,
        test_samples=test_samples,
        backbone=backbone,
        preprocessing=preprocessing,
        config=config,
        training=training,
        precision=request.precision or _precision(device),
        method=entry.method(config, task),
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
    return Training(**{**asdict(default), **chosen})


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
        size = path.stat().st_size if path.exists() else -1
        digest.update(
            f"{path.parent.name}/{path.name}\0{size}\0{label}\n".encode("utf-8", "replace")
        )
    return digest.hexdigest()


def _check_method(run: Run, request: Request) -> None:
    """A finished run of another method is not this one."""
    found = PromptCheckpoint.load(run.checkpoint).header.method
    if found != request.method:
        raise TrainingError(
            f"{run.folder} holds a finished run of {found}, now {request.method} is asked for. "
            "Choose another --output, or replace it with --force"
        )


def _finished(run: Run, job: _Job) -> Outcome:
    """A run that was complete already. Raises TrainingError if it was another one."""
    log = run.load(job.options)[0].log if run.started else ()
    checkpoint = PromptCheckpoint.load(run.checkpoint)
    metrics = msgspec.convert(checkpoint.header.provenance.get("metrics", {}), dict[str, Accuracy])
    return Outcome(path=run.checkpoint, checkpoint=checkpoint, log=log, metrics=metrics)


@torch.no_grad()
def _finish(run: Run, job: _Job, log: tuple[Epoch, ...], *, seconds: float) -> Outcome:
    """Measure the trained prompts and write the checkpoint, the last thing a run does."""
    prompted = job.method.prompted
    prompts = {name: value.detach() for name, value in job.method.prompts().items()}
    metrics = {}
    if job.test_samples:
        metrics["test"] = accuracy(prompted, prompts, job.test_samples)
    if job.test_samples and not prompts and len(prompted.templates) > 1:
        metrics |= zero_shot_accuracies(  # each sentence alone, and all together
            prompted.clip,
            job.dataset,
            templates=prompted.templates,
            preprocessing=job.preprocessing,
        )
    # from here on in float32 on the CPU, whatever it was trained in
    prompted.to("cpu")
    prompts = {name: value.cpu() for name, value in prompts.items()}
    pixels = reference_pixels(job.test_samples or job.train_samples, job.preprocessing)
    checkpoint = PromptCheckpoint(
        header=_header(job, log, metrics, seconds=seconds),
        tensors={
            **{name: value.numpy() for name, value in prompts.items()},
            "reference.pixels": pixels,
            "reference.logits": reference_logits(prompted, prompts, pixels),
        },
    )
    for source in job.request.evaluate:
        other = load_dataset(source)
        metrics[source.name] = evaluate(checkpoint, other, clip=prompted.clip)
    checkpoint.header.provenance["metrics"] = msgspec.to_builtins(metrics)
    checkpoint.save(run.checkpoint)
    return Outcome(path=run.checkpoint, checkpoint=checkpoint, log=log, metrics=metrics)


def _header(
    job: _Job, log: Sequence[Epoch], metrics: Mapping[str, Accuracy], *, seconds: float
) -> Header:
    request, prompted = job.request, job.method.prompted
    return Header(
        method=request.method,
        hyper_parameters=hyper_parameters(job.config),
        backbone=job.backbone,
        class_names=job.dataset.class_names,
        templates=prompted.templates,
        text_layout=prompted.text_layout,
        visual_layout=prompted.visual_layout,
        preprocessing=job.preprocessing,
        provenance={
            "made_by": "vlp train",
            "data": request.data.name,
            "shots": request.shots,
            "seed": request.seed,
            "training_images": len(job.train_samples),
            **asdict(job.training),
            "augment": request.augment,
            "flip": request.flip,
            "precision": job.precision,
            "device": str(prompted.device),
            "threads": torch.get_num_threads(),
            "seconds": round(seconds, 1),
            "last_epoch": msgspec.to_builtins(log[-1]) if log else None,
            "metrics": msgspec.to_builtins(dict(metrics)),
            "versions": {
                "vlp_deploy": __version__,
                "torch": version("torch"),
                "python": platform.python_version(),
            },
        },
    )
