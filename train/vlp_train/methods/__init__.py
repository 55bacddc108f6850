"""The methods that can be trained: one file each, one row here."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any, Protocol

import msgspec

from vlp_deploy.errors import TrainingError
from vlp_deploy.formats.architecture import ClipConfig
from vlp_train.methods.base import Method, Task, Training
from vlp_train.methods.cocoop import CoCoOp, CoCoOpConfig
from vlp_train.methods.coop import CoOp, CoOpConfig
from vlp_train.methods.dcp import Dcp, DcpConfig
from vlp_train.methods.deep_language import DeepLanguage, DeepLanguageConfig
from vlp_train.methods.dpc import DpcConfig, dpc
from vlp_train.methods.dpl import Dpl, DplConfig
from vlp_train.methods.dpt import Dpt, DptConfig
from vlp_train.methods.ivlp import Ivlp, IvlpConfig
from vlp_train.methods.kgcoop import KgCoOp, KgCoOpConfig
from vlp_train.methods.maple import Maple, MapleConfig
from vlp_train.methods.promptsrc import PromptSrc, PromptSrcConfig
from vlp_train.methods.vpt import Vpt, VptConfig
from vlp_train.methods.zeroshot import ZeroShot, ZeroShotConfig


class Config(Protocol):
    """A method's hyper-parameters: a frozen dataclass that checks itself."""

    def training(self, shots: int | None) -> Training:
        """The method's own epochs, learning rate and batch size for `shots` images a class."""
        ...


class Builder(Protocol):
    """A method's class."""

    def __call__(self, config: Any, task: Task) -> Method:
        """The method on one task, its prompts initialised from the task's seed."""
        ...


@dataclass(frozen=True)
class Entry:
    """A row of the table: what is learned, in one line, and the two classes that do it.

    `any_tower`: images enter through their features alone, and the text tower may be bidirectional.
    """

    summary: str
    config: type[Config]
    method: Builder
    any_tower: bool = False


METHODS: dict[str, Entry] = {
    "zeroshot": Entry("nothing; templates are averaged", ZeroShotConfig, ZeroShot, any_tower=True),
    "coop": Entry("the words around the class name", CoOpConfig, CoOp, any_tower=True),
    "cocoop": Entry("CoOp's words, shifted by each image", CoCoOpConfig, CoCoOp),
    "kgcoop": Entry("CoOp's words, held near a sentence", KgCoOpConfig, KgCoOp, any_tower=True),
    "vpt": Entry("tokens beside the image patches", VptConfig, Vpt),
    "deep_language": Entry(
        "text tokens in many layers", DeepLanguageConfig, DeepLanguage, any_tower=True
    ),
    "ivlp": Entry("text and image tokens in many layers", IvlpConfig, Ivlp),
    "maple": Entry("text tokens, and image tokens made of them", MapleConfig, Maple),
    "promptsrc": Entry("IVLP's tokens, held near CLIP", PromptSrcConfig, PromptSrc),
    "dpt": Entry("tokens of both towers, and some of an image's likely classes", DptConfig, Dpt),
    "dcp": Entry("text and image tokens that attend to each other", DcpConfig, Dcp),
    "dpc": Entry("a second prompt beside that of --stage1", DpcConfig, dpc, any_tower=True),
    "dpl": Entry("prompts that towers read beside their tokens", DplConfig, Dpl),
}


def method_entry(name: str) -> Entry:
    """A row of the table. Raises TrainingError, with the closest name, if there is none."""
    if name not in METHODS:
        raise TrainingError(_unknown("method", name, METHODS))
    return METHODS[name]


def check_towers(name: str, config: ClipConfig) -> None:
    """Raise TrainingError if a method needs the inside of towers that do not offer it."""
    if config.text.options is not None and name != "zeroshot":
        raise TrainingError(
            f"{name} is for CLIP's own text tower and tokenizer, and this model has others "
            f"({config.text.options.get('hf_tokenizer_name')}). The method for them is zeroshot. "
            "Or choose a model such as ViT-B-16-quickgelu"
        )
    if (config.other is None and config.text.causal) or METHODS[name].any_tower:
        return
    able = ", ".join(method for method, entry in METHODS.items() if entry.any_tower)
    text = "causal" if config.text.causal else "not causal"
    raise TrainingError(
        f"{name} needs a plain ViT as image tower and a causal text tower; this model's image "
        f"tower is {config.image_tower}, its text tower {text}. Methods for any towers: {able}. Or "
        "choose a model such as ViT-B-16-quickgelu"
    )


def method_config(name: str, options: Mapping[str, Any]) -> Config:
    """A method's configuration from options by name; text is read as numbers and truth values.

    Raises TrainingError naming the option that is unknown or out of range.
    """
    kind = method_entry(name).config
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    for option in options:
        if option not in known:
            raise TrainingError(_unknown(f"option of {name}", option, known))
    try:
        return msgspec.convert(dict(options), type=kind, strict=False)
    except msgspec.ValidationError as error:
        raise TrainingError(f"method {name}: {error}") from None


def _unknown(what: str, name: str, known: Mapping[str, Any] | set[str]) -> str:
    close = get_close_matches(name, known, n=1)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return f"there is no {what} {name!r}. {hint}Available: {', '.join(sorted(known))}"
