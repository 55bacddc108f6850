"""What a checkpoint knows about class names: its text prompts, and whether new classes can come.

Legend: J prompted layers, m prompt tokens, d text width.
"""

import numpy as np

from vlp_deploy.classes.bank import Progress
from vlp_deploy.classes.class_aware import WARNING, class_graph
from vlp_deploy.classes.dual import backbone_prompts
from vlp_deploy.classes.inputs import ClassSource, RunGraph
from vlp_deploy.errors import CheckpointError
from vlp_deploy.formats.bundle import NewClasses
from vlp_deploy.formats.checkpoint import IMAGE_GRAPH, PromptCheckpoint
from vlp_deploy.formats.structures import Baked, ClassAware, Dual
from vlp_deploy.formats.weights import Floats

OTHER_TEXT = (
    "the model's text tower or tokenizer is not CLIP's, so the embeddings of its classes were made "
    "in training. Train again with the classes you need"
)
OWN_CONTEXTS = (
    "every class was tuned with a context of its own, so a new class would have none. "
    "Train with one context for all classes"
)


def text_prompts(checkpoint: PromptCheckpoint) -> Floats:
    """Prompts that all classes share, (J, m, d); (1, 0, d) if none are learned. Of two, P.

    Raises CheckpointError if the layout promises prompts that are not there.
    """
    tensors = checkpoint.tensors
    if isinstance(checkpoint.header.structure, Dual):  # both prompts have the same shape
        tensors = backbone_prompts(tensors)
    prompts: Floats | None = tensors.get("text.prompts")
    tokens = checkpoint.header.text_layout.tokens
    if prompts is not None and len(prompts):
        return prompts
    if tokens and "text.class_prompts" not in tensors:
        raise CheckpointError(
            f"prompt checkpoint: text_layout speaks of {tokens} learned tokens, but there is "
            "neither text.prompts nor text.class_prompts. Train or import it again"
        )
    return np.zeros((1, 0, checkpoint.header.backbone.config.text.width), np.float32)


def prompt_tensors(checkpoint: PromptCheckpoint) -> dict[str, Floats]:
    """Everything that was learned, and `text.prompts` in any case: the text graph reads it."""
    learned = {
        name: tensor
        for name, tensor in checkpoint.tensors.items()
        if not name.startswith("reference.") and name != IMAGE_GRAPH
    }
    return learned | {"text.prompts": text_prompts(checkpoint)}


def new_classes(checkpoint: PromptCheckpoint) -> NewClasses:
    """Whether classes that nobody trained on can be served."""
    if "text.class_prompts" in checkpoint.tensors:
        return NewClasses(allowed=False, reason=OWN_CONTEXTS)
    if isinstance(checkpoint.header.structure, Baked):
        return NewClasses(allowed=False, reason=OTHER_TEXT)
    class_aware = isinstance(checkpoint.header.structure, ClassAware)
    return NewClasses(warning=WARNING if class_aware else "")


def class_source(
    checkpoint: PromptCheckpoint,
    run: RunGraph,
    *,
    logit_scale: float,
    progress: Progress | None = None,
) -> ClassSource:
    """The checkpoint as `vlp_deploy.classes.inputs.build_bank` reads it."""
    header = checkpoint.header
    return ClassSource(
        structure=header.structure,
        config=header.backbone.config,
        layout=header.text_layout,
        templates=header.templates,
        prompts=prompt_tensors(checkpoint),
        logit_scale=logit_scale,
        base_classes=header.base_classes,
        class_graph=class_graph(header.structure, len(header.class_names)),
        run=run,
        progress=progress,
    )
