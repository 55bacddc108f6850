"""A checkpoint's classes as the text graph embeds them, with whatever text prompts it learned.

Legend: K classes, J prompted layers, m prompt tokens, d text width, D joint width.
"""

from collections.abc import Callable, Sequence

import numpy as np

from vlp_deploy.bundle import ClassBank, NewClasses
from vlp_deploy.checkpoint import PromptCheckpoint
from vlp_deploy.class_bank import RunText, build_class_embeddings
from vlp_deploy.errors import CheckpointError, ClassListError
from vlp_deploy.tokenizer import Tokenizer
from vlp_deploy.weights import Floats

Progress = Callable[[int, int], None]

OWN_CONTEXTS = (
    "every class was tuned with a context of its own, so a new class would have none. "
    "Train with one context for all classes"
)


def text_prompts(checkpoint: PromptCheckpoint) -> Floats:
    """Prompts that all classes share, (J, m, d); (1, 0, d) if none are learned.

    Raises CheckpointError if the layout promises prompts that are not there.
    """
    prompts: Floats | None = checkpoint.tensors.get("text.prompts")
    tokens = checkpoint.header.text_layout.tokens
    if prompts is not None and len(prompts):
        return prompts
    if tokens and "text.class_prompts" not in checkpoint.tensors:
        raise CheckpointError(
            f"prompt checkpoint: text_layout speaks of {tokens} learned tokens, but there is "
            "neither text.prompts nor text.class_prompts. Train or import it again"
        )
    return np.zeros((1, 0, checkpoint.header.backbone.config.text.width), np.float32)


def new_classes(checkpoint: PromptCheckpoint) -> NewClasses:
    """Whether the text graph can embed classes that nobody trained on."""
    if "text.class_prompts" in checkpoint.tensors:
        return NewClasses(allowed=False, reason=OWN_CONTEXTS)
    return NewClasses()


def trained_classes(
    checkpoint: PromptCheckpoint,
    run_text: RunText,
    *,
    logit_scale: float,
    progress: Progress | None = None,
) -> ClassBank:
    """The classifier for the checkpoint's own classes; `progress(done, total)` counts rows."""
    names = [(name,) for name in checkpoint.header.class_names]
    contexts: Floats | None = checkpoint.tensors.get("text.class_prompts")
    if contexts is None:
        embeddings = _embed(checkpoint, run_text, names, text_prompts(checkpoint), progress)
    else:
        embeddings = np.concatenate(
            [
                _embed(checkpoint, run_text, [name], context[None])
                for name, context in zip(names, contexts, strict=True)
            ]
        )  # (K, D)
    return ClassBank.from_embeddings(embeddings, logit_scale=logit_scale)


def other_classes(
    checkpoint: PromptCheckpoint,
    run_text: RunText,
    names: Sequence[Sequence[str]],
    *,
    logit_scale: float,
    progress: Progress | None = None,
) -> ClassBank:
    """The classifier for classes (synonyms each) that nobody trained on. Raises ClassListError."""
    allowed = new_classes(checkpoint)
    if not allowed.allowed:
        raise ClassListError(f"these classes cannot be served: {allowed.reason}")
    embeddings = _embed(checkpoint, run_text, names, text_prompts(checkpoint), progress)
    return ClassBank.from_embeddings(embeddings, logit_scale=logit_scale)


def _embed(
    checkpoint: PromptCheckpoint,
    run_text: RunText,
    names: Sequence[Sequence[str]],
    prompts: Floats,
    progress: Progress | None = None,
) -> Floats:
    header = checkpoint.header
    return build_class_embeddings(
        run_text,
        names,
        templates=header.templates,
        prompts=prompts,
        tokenizer=Tokenizer.default(),
        layout=header.text_layout,
        context_length=header.backbone.config.text.context_length,
        progress=progress,
    )
