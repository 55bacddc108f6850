"""From a header to the forward pass that gives its tensors their meaning.

`FORWARDS` has one class for every structure; all of them are `PromptedClip`s.
"""

from collections.abc import Sequence

from vlp_deploy.formats.bundle import Manifest
from vlp_deploy.formats.checkpoint import Header
from vlp_deploy.formats.structures import (
    Baked,
    ClassAware,
    Conditioned,
    Coupled,
    Decoupled,
    Dual,
    Plain,
    Structure,
)
from vlp_train.baked import BakedClip
from vlp_train.class_aware import ClassAwareClip
from vlp_train.clip import Clip
from vlp_train.conditioned import ConditionedClip
from vlp_train.coupled import CoupledClip
from vlp_train.decoupled import DecoupledClip
from vlp_train.dual import DualClip
from vlp_train.prompted import PromptedClip

FORWARDS: dict[type[Structure], type[PromptedClip]] = {
    Plain: PromptedClip,
    ClassAware: ClassAwareClip,
    Conditioned: ConditionedClip,
    Coupled: CoupledClip,
    Decoupled: DecoupledClip,
    Dual: DualClip,
    Baked: BakedClip,
}


def prompted_clip(
    source: Header | Manifest, clip: Clip, class_names: Sequence[str]
) -> PromptedClip:
    """The un-folded model of a checkpoint or bundle, for `class_names`.

    Raises ClassListError for names that cannot be tokenized.
    """
    return FORWARDS[type(source.structure)](
        clip,
        class_names,
        templates=source.templates,
        preprocessing=source.preprocessing,
        text_layout=source.text_layout,
        visual_layout=source.visual_layout,
        structure=source.structure,
        base_classes=source.base_classes,
    )
