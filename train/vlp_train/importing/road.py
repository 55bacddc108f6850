"""From an official checkpoint to a prompt checkpoint: find, read, recognise, check, convert, prove.

The first half (`convert`) makes header and tensors without running a model; the second (`imported`)
adds the answers of the un-folded forward pass, which every export is compared with.
"""

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlp_deploy import __version__
from vlp_deploy.errors import CheckpointError
from vlp_deploy.formats.architecture import Backbone, ClipConfig, TextLayout
from vlp_deploy.formats.checkpoint import Header, PromptCheckpoint
from vlp_deploy.formats.structures import Coupled, Dual, Structure
from vlp_deploy.formats.weights import Floats
from vlp_train.backbones import load_backbone, load_preprocessing
from vlp_train.clip import Clip
from vlp_train.coupled import CoupledClip
from vlp_train.forward import prompted_clip
from vlp_train.images import ImageSet
from vlp_train.importing import plain, structured
from vlp_train.importing.classes import (
    Sentence,
    Tokens,
    check_names,
    given_names,
    recover_names,
    recover_tokens,
    sentence_of,
)
from vlp_train.importing.converted import Converted
from vlp_train.importing.detect import ORIGIN, Kind, Source, check_complete, check_keys, detect
from vlp_train.importing.layout import epoch_name, find_files
from vlp_train.importing.pictures import drawn_pictures, samples_of
from vlp_train.importing.questions import EPOCH, STAGE1, Answers, answer
from vlp_train.importing.reader import read_official
from vlp_train.importing.same_clip import check_same_clip
from vlp_train.prompted import Prompts
from vlp_train.reference import candidates, clearest, reference_pixels, references
from vlp_train.tracing import image_graph

BATCH = 16

ANY_IMAGE_TOWER: tuple[Kind, ...] = ("coop", "kgcoop", "deep_language", "dpc")

Converter = Callable[[Source, ClipConfig, Answers], Converted]

CONVERTERS: Mapping[Kind, Converter] = {
    "coop": plain.coop,
    "kgcoop": plain.coop,
    "cocoop": structured.cocoop,
    "vpt": plain.vpt,
    "deep_language": plain.independent,
    "ivlp": plain.independent,
    "promptsrc": plain.independent,
    "maple": plain.maple,
    "dpt": structured.dpt,
    "dpt_vlp": plain.vlp_of_dpt,
    "dpt_vpt": plain.vpt_of_dpt,
    "cmpa": structured.cmpa,
    "dpc": structured.dpc,
}


@dataclass(frozen=True, kw_only=True)
class ImportRequest:
    """What to import, the CLIP it was trained with, and what its files do not say."""

    path: Path
    model: str
    pretrained: str | None = None
    classes: Path | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    images: Path | None = None  # for the reference; drawn where there are none


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """All of a checkpoint but the answers that prove exports, and what was taken for granted."""

    header: Header
    tensors: Mapping[str, Floats]
    origin: str
    assumptions: Sequence[str]
    clip: Clip


def convert(request: ImportRequest) -> Conversion:
    """Header and tensors of an official checkpoint.

    Raises UnsafeFileError for a file that asks for calls, CheckpointError for all that does not
    fit, ClassListError and ModelError for what `request` names.
    """
    source = _find(request.path, request.options)
    clip, backbone = load_backbone(request.model, request.pretrained)
    check_tower(source.kind, backbone.config)
    check_complete(source, backbone.config)  # before options: they may be those of the whole
    answers, assumptions = answer(source.kind, request.options)
    weights = {name: tensor.numpy() for name, tensor in clip.state_dict().items()}
    for each in source.stages:
        if not check_same_clip(each, weights, backbone):
            assumptions.append(f"the CLIP is {backbone.name}: the files hold nothing of their own")
        check_keys(each, backbone.config)
        assumptions += _check_epoch(each, request.options.get(EPOCH))
    converted = CONVERTERS[source.kind](source, backbone.config, answers)
    classes = _tokens(source, weights["token_embedding.weight"], converted, backbone.config)
    if _wants_frozen(converted.structure) and not request.images:
        raise CheckpointError(
            "-O context=frozen takes the mean over images: give a folder with --images, or import "
            "without it and give them to `vlp export --calibration DATA`"
        )
    names, sentence, assumed = _names(request, converted, classes, backbone.config)
    _check_count(names, converted)
    assumptions += assumed
    return Conversion(
        header=_header(
            request,
            backbone,
            converted,
            names=names,
            sentence=sentence,
            provenance=_provenance(source, assumptions),
        ),
        tensors=converted.tensors,
        origin=ORIGIN[source.kind],
        assumptions=assumptions,
        clip=clip,
    )


def imported(
    request: ImportRequest, tell: Callable[[str], None] = lambda _: None
) -> tuple[PromptCheckpoint, Conversion]:
    """The checkpoint, with the answers of the un-folded forward pass to eight images.

    What takes long is told.
    """
    conversion = convert(request)
    header = conversion.header
    prompted = prompted_clip(header, conversion.clip, header.class_names)
    prompts: Prompts = {name: torch.from_numpy(each) for name, each in conversion.tensors.items()}
    samples = samples_of(request.images) if request.images else ()
    if isinstance(prompted, CoupledClip) and _wants_frozen(header.structure):
        images = ImageSet(samples, header.preprocessing)
        prompts = {**prompts, **prompted.freeze(prompts, lambda: _pixels(images))}
    size = header.preprocessing.image_size
    pixels = (
        reference_pixels(samples, header.preprocessing, prompted)
        if samples
        else clearest(drawn_pictures(size, candidates(prompted)), prompted)
    )
    tensors = {name: value.numpy() for name, value in prompts.items()}
    tensors |= references(prompted, prompts, pixels)
    tensors |= image_graph(conversion.clip, header.preprocessing, tell)
    return PromptCheckpoint(header=header, tensors=tensors), conversion


def check_tower(kind: Kind, config: ClipConfig) -> None:
    """Raise CheckpointError for what belongs to a ViT and is to be imported for another tower."""
    own_text = config.text.options is None
    if not own_text or (config.other is not None and kind not in ANY_IMAGE_TOWER):
        raise CheckpointError(
            f"{ORIGIN[kind]} has CLIP's text tower and a plain ViT as image tower, and --model has "
            f"{config.image_tower} and {'that' if own_text else 'another'} text tower. "
            "Pass the --model it was trained with"
        )


def _pixels(images: ImageSet) -> Iterator[Tensor]:
    return (batch.pixels for batch in images.in_order(BATCH))


def _wants_frozen(structure: Structure) -> bool:
    return isinstance(structure, Coupled) and structure.context == "frozen"


def _find(path: Path, options: Mapping[str, str]) -> Source:
    without = Path(options[STAGE1]) if STAGE1 in options else None
    if without and not without.exists():
        raise CheckpointError(f"-O {STAGE1}={without}: there is no such file or folder")
    stage1 = _find(without, {}) if without else None
    paths = find_files(path, epoch=options.get(EPOCH, ""), without=without)
    return detect([read_official(each) for each in paths], stage1=stage1)


def _check_epoch(source: Source, asked: str | None) -> list[str]:
    """Warnings about epochs. Raises CheckpointError for PromptSRC's before the last."""
    trained, planned = source.model.epoch, source.model.planned_epochs
    if source.kind != "promptsrc":
        return []
    if trained is None or planned is None:
        return ["this is the last epoch, the only one with PromptSRC's averaged prompts"]
    if trained >= planned:
        return []
    if asked is None:
        raise CheckpointError(
            f"{source.model.path} is of epoch {trained} of {planned}. PromptSRC averages its "
            "prompts over all epochs and only the last file holds the average. Import "
            f"model.pth.tar-{planned}, or insist with -O epoch={epoch_name(source.model.path)}"
        )
    return [f"un-averaged prompts of epoch {trained} of {planned} are wanted"]


def _tokens(
    source: Source, embedding: Floats, converted: Converted, config: ClipConfig
) -> tuple[Tokens, ...] | None:
    """Every class's tokens, if the files have them. Stages must agree."""
    each = [
        recover_tokens(
            stage.model,
            embedding,
            learned=converted.text_tokens,
            context_length=config.text.context_length,
        )
        for stage in source.stages
    ]
    if each[0] != each[-1]:
        raise CheckpointError(
            f"{source.model.path} and its first stage were trained for different classes: they are "
            "not of one run"
        )
    return each[0]


def _names(
    request: ImportRequest,
    converted: Converted,
    classes: tuple[Tokens, ...] | None,
    config: ClipConfig,
) -> tuple[tuple[str, ...], Sentence, list[str]]:
    """Class names, their sentence, and what was assumed about them."""
    names = given_names(request.classes) if request.classes else ()
    if classes is None and not names:
        raise CheckpointError(
            f"{request.path} holds no class names. Pass the training classes with --classes, one a "
            "line in their order"
        )
    if not converted.text_tokens:
        return names, Sentence(template=converted.template, fixed=""), []
    sentence = sentence_of(
        classes,
        learned=converted.text_tokens,
        template=converted.template,
        names=names,
        keeps_words=converted.keeps_words,
    )
    assumptions = []
    if sentence.fixed and not converted.template:
        assumptions.append(
            f"the sentence keeps the words {sentence.fixed!r} before the class name (template=)"
        )
    if classes is None:
        assumptions.append("--classes are the training classes, in their order")
        return names, sentence, assumptions
    check_names(
        names or recover_names(classes, sentence),
        classes,
        sentence,
        learned=converted.text_tokens,
        context_length=config.text.context_length,
        class_specific=converted.class_specific,
        given=bool(names),
    )
    return names or recover_names(classes, sentence), sentence, assumptions


def _check_count(names: Sequence[str], converted: Converted) -> None:
    contexts = converted.tensors.get("text.class_prompts")
    if contexts is not None and len(contexts) != len(names):
        raise CheckpointError(
            f"CoOp(CSC): contexts were trained for {len(contexts)} classes; got {len(names)}. Pass "
            "the training classes with --classes"
        )


def _header(
    request: ImportRequest,
    backbone: Backbone,
    converted: Converted,
    *,
    names: tuple[str, ...],
    sentence: Sentence,
    provenance: dict[str, Any],
) -> Header:
    return Header(
        method=converted.method,
        hyper_parameters=dict(converted.hyper_parameters),
        backbone=backbone,
        class_names=names,
        templates=(sentence.template,),
        text_layout=TextLayout(
            tokens=converted.text_tokens, position=converted.position, official_span=True
        ),
        visual_layout=converted.visual,
        structure=converted.structure,
        preprocessing=load_preprocessing(request.model, request.pretrained),
        base_classes=names if isinstance(converted.structure, Dual) else (),
        provenance=provenance,
    )


def _provenance(source: Source, assumptions: Sequence[str]) -> dict[str, Any]:
    files = [
        {
            "name": f"{file.path.parent.name}/{file.path.name}",
            "sha256": file.sha256,
            "epoch": file.epoch,
            "planned_epochs": file.planned_epochs,
        }
        for stage in source.stages
        for file in stage.parts.values()
    ]
    return {
        "made_by": "vlp import",
        "official_layout": ORIGIN[source.kind],
        "files": files,
        "assumed": list(assumptions),
        "versions": {
            "vlp_deploy": __version__,
            "torch": version("torch"),
            "python": platform.python_version(),
        },
    }
