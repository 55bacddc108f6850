"""From class names to everything that an image graph is given beside the image.

Which inputs those are depends on the structure of the method; `BUILDERS` has one function for each.
Exporter and runtime share this module, so that new classes enter a graph as the baked ones did.

Legend: K classes, J prompted layers, m prompt tokens, d width of the text tower, D joint width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vlp_deploy.classes.bank import ClassFeatures, Floats, Integers, Progress, build_class_features
from vlp_deploy.classes.chunks import features_in_chunks
from vlp_deploy.classes.class_aware import IMAGE, IMAGE_SMALL, check_small, class_aware_bank
from vlp_deploy.classes.conditioned import CLASS_SUFFIX, SUFFIX_END, suffix_rows
from vlp_deploy.classes.dual import (
    IMAGE_BASE,
    IMAGE_NEW,
    backbone_prompts,
    base_rows,
    has_visual_prompts,
    mixed_prompts,
)
from vlp_deploy.classes.prompts import PLAIN
from vlp_deploy.classes.tokenizer import Tokenizer
from vlp_deploy.formats.architecture import ClipConfig, TextLayout
from vlp_deploy.formats.bundle import ClassBank
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

Synonyms = Sequence[Sequence[str]]  # at least one name for every class


class RunGraph(Protocol):
    """Runs the graph of a role, such as `text`: arrays in and out by name."""

    def __call__(self, role: str, inputs: Mapping[str, NDArray[Any]]) -> dict[str, Any]: ...


@dataclass(frozen=True, kw_only=True)
class ClassSource:
    """All that a checkpoint or a bundle knows about turning names into class inputs."""

    structure: Structure
    config: ClipConfig
    layout: TextLayout
    templates: tuple[str, ...]
    prompts: Mapping[str, Floats]  # every tensor that was learned, by its name in the checkpoint
    logit_scale: float
    base_classes: tuple[str, ...]
    class_graph: str = IMAGE  # the role that serves the training classes
    run: RunGraph
    tokenizer: Tokenizer = field(default_factory=Tokenizer.default)
    progress: Progress | None = None
    chunks: Path | None = None  # a folder that keeps the finished parts of a long list

    def features(
        self,
        names: Synonyms,
        prompts: Floats,
        *,
        layout: TextLayout | None = None,
        templates: Sequence[str] | None = None,
    ) -> ClassFeatures:
        """Features of `names` with prompts (J, m, d), by default in the source's own sentences."""
        layout = self.layout if layout is None else layout
        templates = tuple(self.templates if templates is None else templates)

        def build(part: Synonyms, progress: Progress | None) -> ClassFeatures:
            return build_class_features(
                self._run_text,
                part,
                templates=templates,
                prompts=prompts,
                tokenizer=self.tokenizer,
                layout=layout,
                context_length=self.config.text.context_length,
                progress=progress,
            )

        if self.chunks is None:
            return build(names, self.progress)
        how = (templates, layout, prompts.shape, prompts.tobytes())
        return features_in_chunks(
            build,
            names,
            rows_each=len(templates),
            progress=self.progress,
            kept=self.chunks,
            how=how,
        )

    def plain_features(self, names: Synonyms, *, templates: Sequence[str]) -> ClassFeatures:
        """Features of `names` as the backbone has them, without any learned prompt."""
        return self.features(names, self.no_prompts(), layout=PLAIN, templates=templates)

    def no_prompts(self, *, layers: int = 1) -> Floats:
        """(J, 0, d)."""
        return np.zeros((layers, 0, self.config.text.width), np.float32)

    def text_prompts(self) -> Floats:
        """Prompts that all classes share (J, m, d); (1, 0, d) if none are learned."""
        prompts = self.prompts.get("text.prompts")
        return self.no_prompts() if prompts is None else prompts

    def _run_text(
        self, ids: Integers, eot: Integers, slots: Integers, prompts: Floats
    ) -> tuple[Floats, Floats]:
        tower = self.config.text
        # without a causal mask all tokens count, those behind the end of text included
        behind = ((0, 0), (0, 0 if tower.causal else tower.context_length - ids.shape[1]))
        inputs: Mapping[str, NDArray[Any]] = {
            "input_ids": np.pad(ids, behind),
            "eot_index": eot,
            "slots": np.pad(slots, behind, constant_values=-1),
            "prompts": prompts,
        }
        outputs = self.run("text", inputs)
        return outputs["feature"], outputs["embedding"]


def build_bank(source: ClassSource, names: Synonyms) -> ClassBank:
    """The inputs for classes `names`, synonyms each. Raises ClassListError."""
    return BUILDERS[type(source.structure)](source, names)


def learned_features(source: ClassSource, names: Synonyms) -> ClassFeatures:
    """Features with the learned text prompts: shared ones, or each class's own.

    Contexts of their own belong to the training classes in their order; the caller sees to it.
    """
    contexts = source.prompts.get("text.class_prompts")  # (K, m, d)
    if contexts is None:
        return source.features(names, source.text_prompts())
    each = [
        source.features([name], context[None])
        for name, context in zip(names, contexts, strict=True)
    ]
    return ClassFeatures(*(np.concatenate(part) for part in zip(*each, strict=True)))


def _plain(source: ClassSource, names: Synonyms) -> ClassBank:
    """One embedding a class, whatever the image."""
    embeddings = learned_features(source, names).embeddings
    return ClassBank.from_embeddings(embeddings, logit_scale=source.logit_scale)


def dual_bank(source: ClassSource, names: Synonyms, rows: NDArray[np.bool_]) -> ClassBank:
    """DPC: `rows` (K,) are embedded with the mixture of both prompts, the others with P."""
    structure, visual = source.structure, has_visual_prompts(source.prompts)
    assert isinstance(structure, Dual)
    mixture = mixed_prompts(source.prompts, structure.mixing_weight)
    parts = ((rows, mixture), (~rows, backbone_prompts(source.prompts)))
    embeddings = np.empty((len(names), source.config.embed_dim), np.float32)
    for chosen, prompts in parts:
        if chosen.any() or not names:  # to be refused
            group = [name for name, mine in zip(names, chosen, strict=True) if mine]
            text = prompts.get("text.prompts", source.no_prompts())
            embeddings[chosen] = source.features(group, text).embeddings
    competing = rows.any() and not rows.all()
    return ClassBank.from_embeddings(
        embeddings,
        logit_scale=source.logit_scale,
        bias=np.where(rows & competing, structure.base_offset, 0).astype(np.float32),
        graph=(IMAGE_BASE if rows.all() else IMAGE_NEW) if visual else "image",
    )


def _dual(source: ClassSource, names: Synonyms) -> ClassBank:
    """DPC: base classes from the mixture, new ones from the backbone's prompt."""
    return dual_bank(source, names, base_rows(names, source.base_classes))


def _class_aware(source: ClassSource, names: Synonyms) -> ClassBank:
    """DPT: features of the learned sentences, and of the plain ones that select classes."""
    structure, selector = source.structure, None
    assert isinstance(structure, ClassAware)
    if source.class_graph == IMAGE_SMALL:
        check_small(structure, len(names))
    else:
        templates = (structure.selector_template,)
        selector = source.plain_features(names, templates=templates).embeddings
    return class_aware_bank(
        learned_features(source, names),
        source.prompts,
        logit_scale=source.logit_scale,
        selector=selector,
    )


def _conditioned(source: ClassSource, names: Synonyms) -> ClassBank:
    """CoCoOp: the embedded rest of each class's sentence; the image graph does what is left."""
    ids, end = suffix_rows(
        names,
        templates=source.templates,
        layout=source.layout,
        tokenizer=source.tokenizer,
        context_length=source.config.text.context_length,
    )
    suffix = source.run(CLASS_SUFFIX, {"input_ids": ids})[CLASS_SUFFIX]  # (K, S, d)
    return ClassBank(inputs={CLASS_SUFFIX: suffix, SUFFIX_END: end}, embeddings=None)


def _baked(source: ClassSource, names: Synonyms) -> ClassBank:
    """The embeddings that training made; the caller sees to it that the classes are the same."""
    structure, embeddings = source.structure, source.prompts["class.embeddings"]
    assert isinstance(structure, Baked)
    return ClassBank.from_embeddings(
        embeddings,
        logit_scale=source.logit_scale,
        bias=np.full(len(names), structure.logit_bias, np.float32),
    )


Builder = Callable[[ClassSource, Synonyms], ClassBank]

BUILDERS: dict[type[Structure], Builder] = {
    Plain: _plain,
    Conditioned: _conditioned,
    ClassAware: _class_aware,
    Coupled: _plain,
    Decoupled: _plain,
    Dual: _dual,
    Baked: _baked,
}
