"""DPC at export: another mixture than the trained one, and the proof of the prompt for new classes.

Legend: K classes.
"""

import msgspec
import numpy as np

from vlp_deploy.classes.dual import NEW_LOGITS
from vlp_deploy.classes.inputs import ClassSource, Synonyms, dual_bank
from vlp_deploy.errors import CheckpointError
from vlp_deploy.formats.bundle import ClassBank
from vlp_deploy.formats.checkpoint import Header, PromptCheckpoint
from vlp_deploy.formats.structures import Dual


def new_banks(source: ClassSource, names: Synonyms) -> dict[str, ClassBank]:
    """By the reference they are to reproduce: the training classes, served as new ones are."""
    return {NEW_LOGITS: dual_bank(source, names, np.zeros(len(names), np.bool_))}


def with_mixing_weight(checkpoint: PromptCheckpoint, weight: float) -> PromptCheckpoint:
    """The checkpoint with another mixing weight; its references stay those of the old one.

    Raises CheckpointError if it is none of DPC, or the weight is not above 0 and at most 1.
    """
    structure = checkpoint.header.structure
    if not isinstance(structure, Dual):
        raise CheckpointError(
            f"a mixing weight belongs to dpc, and this prompt is of {checkpoint.header.method}: "
            "leave --mixing-weight out"
        )
    if not 0 < weight <= 1:
        raise CheckpointError(
            f"the mixing weight is {weight}; expected a number above 0 and at most 1, where 1 is "
            "the parallel prompt alone. For the backbone's prompt alone, export its own run"
        )
    dual = msgspec.structs.replace(structure, mixing_weight=weight)
    header: Header = msgspec.structs.replace(checkpoint.header, structure=dual)
    return PromptCheckpoint(header=header, tensors=checkpoint.tensors)
