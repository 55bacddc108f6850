"""How often prompts are right: top-1 accuracy of checkpoints and of zero-shot templates.

Everything is computed by the forward pass that defines a checkpoint (`vlp_train.prompted`), on
images prepared as they are when served.

Legend: B images of a batch, n images, K classes, D joint width.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from vlp_deploy.data.dataset import Dataset, Sample
from vlp_deploy.errors import ClassListError, DataError
from vlp_deploy.formats.architecture import Preprocessing, Record
from vlp_deploy.formats.checkpoint import PromptCheckpoint
from vlp_train.backbones import reload_backbone
from vlp_train.clip import Clip
from vlp_train.forward import prompted_clip
from vlp_train.images import ImageSet
from vlp_train.prompted import PromptedClip, Prompts

BATCH = 64
ENSEMBLE = "ensemble"
CLASS_PROMPTS = "text.class_prompts"


class Accuracy(Record, frozen=True, kw_only=True):
    """Share of images whose best class is the right one."""

    top1: float
    images: int
    classes: int


def evaluate(
    checkpoint: PromptCheckpoint,
    dataset: Dataset,
    *,
    split: str = "test",
    clip: Clip | None = None,
    pretrained: str | None = None,
) -> Accuracy:
    """Accuracy on a split of any data set, of the training classes or of new ones.

    `clip` saves loading the checkpoint's backbone; `pretrained` says where its weights are now.
    Raises ClassListError if the prompts serve their training classes only.
    """
    header = checkpoint.header
    if CLASS_PROMPTS in checkpoint.tensors:
        _check_same_classes(header.class_names, dataset.class_names)
    clip = clip or reload_backbone(header.backbone, pretrained)
    prompted = prompted_clip(header, clip, dataset.class_names)
    prompts = {
        name: torch.from_numpy(value).to(prompted.device)
        for name, value in checkpoint.tensors.items()
        if not name.startswith("reference.")
    }
    return accuracy(prompted, prompts, dataset.split(split))


def check_servable(prompted: PromptedClip, prompts: Prompts, class_names: Sequence[str]) -> None:
    """Raise ClassListError if these prompts cannot serve `class_names`; cheap."""
    if CLASS_PROMPTS in prompts:
        _check_same_classes(prompted.class_names, class_names)
    type(prompted)(
        prompted.clip,
        class_names,
        templates=prompted.templates,
        preprocessing=prompted.preprocessing,
        text_layout=prompted.text_layout,
        visual_layout=prompted.visual_layout,
        structure=prompted.structure,
        base_classes=prompted.base_classes,
    )


@torch.no_grad()
def accuracy(prompted: PromptedClip, prompts: Prompts, samples: Sequence[Sample]) -> Accuracy:
    """Top-1 accuracy of a forward pass. Raises DataError if there are no samples."""
    classes = prompted.classes(prompts)
    logits, labels = _collect(
        prompted, samples, lambda pixels: prompted.predict(pixels, prompts, classes)
    )
    return _top1(logits, labels)


@torch.no_grad()
def zero_shot_accuracies(
    clip: Clip,
    dataset: Dataset,
    *,
    templates: Sequence[str],
    preprocessing: Preprocessing,
    split: str = "test",
) -> Mapping[str, Accuracy]:
    """Accuracy of every template alone, and under ENSEMBLE of all of them together."""
    sets = {template: (template,) for template in templates} | {ENSEMBLE: tuple(templates)}
    prompted = {
        name: PromptedClip(clip, dataset.class_names, templates=group, preprocessing=preprocessing)
        for name, group in sets.items()
    }
    image_features, labels = _collect(
        prompted[ENSEMBLE],
        dataset.split(split),
        lambda pixels: prompted[ENSEMBLE].image_features(pixels, {}),
    )
    return {
        name: _top1(each.logits(image_features, each.class_features({})), labels)
        for name, each in prompted.items()
    }


def _collect(
    prompted: PromptedClip, samples: Sequence[Sample], compute: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """What `compute` makes of the samples' pixels, (n, …), and their labels (n,)."""
    if not samples:
        raise DataError("there are no images to measure the accuracy on")
    images = ImageSet(samples, prompted.preprocessing)
    batches = [(compute(batch.pixels), batch.labels) for batch in images.in_order(BATCH)]
    values, labels = zip(*batches, strict=True)
    return torch.cat(values), torch.cat(labels).to(prompted.device)


def _top1(logits: Tensor, labels: Tensor) -> Accuracy:
    right = int((logits.argmax(dim=1) == labels).sum())
    return Accuracy(top1=right / len(labels), images=len(labels), classes=logits.shape[1])


def _check_same_classes(trained: Sequence[str], given: Sequence[str]) -> None:
    if tuple(trained) == tuple(given):
        return
    pairs = enumerate(zip(trained, given, strict=False))
    first = next((f"index {i}: {a!r} against {b!r}" for i, (a, b) in pairs if a != b), "the length")
    raise ClassListError(
        f"class-specific contexts were trained for {len(trained)} classes; got {len(given)} "
        f"(first difference at {first}). They cannot serve new or re-ordered classes: train with "
        "class_specific=false"
    )
