"""DPC's two prompts: which classes get the mixture of both, which the backbone's alone.

The backbone prompt P was tuned first, the parallel prompt P' then, on the same base classes. Base
classes are served by w·P' + (1 - w)·P, others by P (DPC, arXiv:2503.13443, section 3.4, with w = 0
for new classes). Which of them a class gets depends on its name, never on the image. Trainer,
exporter and runtime share this module.

Legend: K classes.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlp_deploy.classes.tokenizer import Tokenizer
from vlp_deploy.errors import ClassListError
from vlp_deploy.formats.structures import Dual, Structure

BACKBONE, PARALLEL = "dpc.backbone.", "dpc.parallel."  # in front of a plain tensor's name
NEW_LOGITS = "reference.new_logits"  # P's answers where reference.logits are the mixture's
IMAGE_BASE, IMAGE_NEW = "image_base", "image_new"  # roles, where P and P' have visual prompts
NAMED = 5  # classes in a message

Tensors = Mapping[str, Any]  # NumPy's or torch's


def backbone_prompts(prompts: Tensors) -> dict[str, Any]:
    """P, by the plain names."""
    return _under(BACKBONE, prompts)


def parallel_prompts(prompts: Tensors) -> dict[str, Any]:
    """P', by the plain names."""
    return _under(PARALLEL, prompts)


def mixed_prompts(prompts: Tensors, weight: float) -> dict[str, Any]:
    """w·P' + (1 - w)·P, by the plain names; exactly P' for w = 1."""
    backbone, parallel = backbone_prompts(prompts), parallel_prompts(prompts)
    return {name: weight * parallel[name] + (1 - weight) * backbone[name] for name in backbone}


def has_visual_prompts(prompts: Tensors) -> bool:
    """Whether base and new classes need image towers of their own."""
    return f"{BACKBONE}visual.prompts" in prompts


def base_rows(names: Sequence[Sequence[str]], base_classes: Sequence[str]) -> NDArray[np.bool_]:
    """Which classes (synonyms each) are base classes, (K,): those with a name that was tuned on.

    Names of the same tokens are one name: "707-320" is what BPE spells "7 0 7 - 3 2 0".
    """
    if not base_classes:
        return np.zeros(len(names), np.bool_)
    base = {name_tokens(name) for name in base_classes}
    rows = [any(name_tokens(name) in base for name in synonyms) for synonyms in names]
    return np.array(rows, np.bool_)


def name_tokens(name: str) -> tuple[int, ...]:
    """What the text tower can tell class names apart by."""
    return tuple(Tokenizer.default().encode(name.replace("_", " ")))


def check_together(
    structure: Structure,
    names: Sequence[Sequence[str]],
    base_classes: Sequence[str],
    *,
    visual: bool,
) -> None:
    """Of a dual prompt's classes, tell what it means that base and new ones are among them.

    Raises ClassListError where they would need image towers of their own; warns where base classes
    compete with new ones. Other structures know no such difference.
    """
    rows = base_rows(names, base_classes)
    if not isinstance(structure, Dual) or rows.all() or not rows.any():
        return
    base, new = (
        _named([name for name, row in zip(names, rows, strict=True) if row == wanted])
        for wanted in (True, False)
    )
    if visual:
        raise ClassListError(
            f"{base} were tuned on and {new} were not: this prompt looks at images in one way for "
            "base classes and in another for new ones, so their logits cannot be compared. Give "
            "only base classes, or only new ones"
        )
    warnings.warn(
        f"{base} were tuned on and {new} were not: side by side, base classes are favoured. "
        f"{structure.base_offset:g} is added to their logits (base_offset of the prompt)",
        stacklevel=3,
    )


def _under(prefix: str, prompts: Tensors) -> dict[str, Any]:
    return {
        name.removeprefix(prefix): value
        for name, value in prompts.items()
        if name.startswith(prefix)
    }


def _named(classes: Sequence[Sequence[str]]) -> str:
    """The first few of them, and how many there are."""
    listed = ", ".join(repr(synonyms[0]) for synonyms in classes[:NAMED])
    return f"{listed}, … ({len(classes)} classes)" if len(classes) > NAMED else listed
