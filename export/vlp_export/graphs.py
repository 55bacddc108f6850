"""All graphs of a checkpoint, ready to be run, counted and written to disk.

Which graphs a method needs depends on its structure; `WRITERS` has one function for each.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from vlp_deploy.classes.class_aware import IMAGE_SMALL, class_graph
from vlp_deploy.classes.conditioned import CLASS_SUFFIX, MetaNet, prefix_length
from vlp_deploy.classes.coupled import fixed_batch
from vlp_deploy.classes.dual import (
    IMAGE_BASE,
    IMAGE_NEW,
    backbone_prompts,
    has_visual_prompts,
    mixed_prompts,
)
from vlp_deploy.formats.bundle import ClassBank, GraphInfo
from vlp_deploy.formats.checkpoint import PromptCheckpoint
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
from vlp_deploy.formats.weights import Floats
from vlp_export.class_aware_graph import write_class_aware_graph
from vlp_export.class_texts import text_prompts
from vlp_export.conditioned_graph import write_conditioned_graph, write_suffix_graph
from vlp_export.coupled_graph import write_coupled_graph
from vlp_export.decoupled_graph import text_prompts_beside, write_decoupled_graph
from vlp_export.dialects import PORTABLE, Dialect
from vlp_export.flops import count_flops, sum_flops
from vlp_export.folding import Weights
from vlp_export.graph import node_count, to_bytes
from vlp_export.image_graph import write_image_graph
from vlp_export.other_graph import OTHER_TOWER, write_other_graph
from vlp_export.seen_shapes import shapes_of_a_run
from vlp_export.text_graph import write_text_graph

Models = dict[str, ir.Model]  # by role


@dataclass(frozen=True, kw_only=True)
class GraphFile:
    """A graph as a model to look into and as the bytes of its file."""

    file: str
    model: ir.Model
    content: bytes

    @classmethod
    def of(cls, role: str, model: ir.Model) -> "GraphFile":
        """The model, serialised, in a file that is called as its role."""
        return cls(file=f"{role}.onnx", model=model, content=to_bytes(model))

    def info(self, shapes: Mapping[str, Sequence[int]], *, images: int = 1) -> GraphInfo:
        """The manifest's record, with FLOPs for inputs of these shapes, an image."""
        inputs = {str(value.name): shapes[str(value.name)] for value in self.model.graph.inputs}
        return GraphInfo(
            file=self.file,
            opset=self.model.graph.opset_imports[""],
            nodes=node_count(self.model),
            flops=_flops(self.model, inputs) // images,
        )


def _flops(model: ir.Model, inputs: Mapping[str, Sequence[int]]) -> int:
    """0 where another exporter's operators cannot be counted; ours always can."""
    if OTHER_TOWER not in model.metadata_props:
        return count_flops(model, inputs)
    try:
        return sum_flops(model, shapes_of_a_run(model, inputs))
    except ValueError:
        return 0


@dataclass(frozen=True, kw_only=True)
class Graphs:
    """What a bundle computes with: a file for every role."""

    files: Mapping[str, GraphFile]

    @classmethod
    def of(
        cls, checkpoint: PromptCheckpoint, weights: Weights, dialect: Dialect = PORTABLE
    ) -> "Graphs":
        """Fold the checkpoint's prompts into the backbone and write every graph it needs."""
        models = WRITERS[type(checkpoint.header.structure)](checkpoint, weights, dialect)
        return cls(files={role: GraphFile.of(role, model) for role, model in models.items()})

    def infos(self, checkpoint: PromptCheckpoint, bank: ClassBank) -> dict[str, GraphInfo]:
        """Role → record: FLOPs of one image with these classes, and of one full-length text row."""
        config = checkpoint.header.backbone.config
        size, length = config.image_size, config.text.context_length
        images = fixed_batch(checkpoint.header.structure) or 1
        shapes = {
            "image": (images, 3, size, size),
            **{name: array.shape for name, array in bank.inputs.items()},
            "input_ids": (1, length),
            "eot_index": (1,),
            "slots": (1, length),
            "prompts": text_prompts(checkpoint).shape,
        }
        return {
            role: file.info(shapes, images=1 if role == "text" else images)
            for role, file in self.files.items()
        }


def _plain(checkpoint: PromptCheckpoint, weights: Weights, dialect: Dialect) -> Models:
    """Visual prompts folded into one image tower, text prompts left to be an input."""
    return {
        "image": image_model(checkpoint, weights, dialect=dialect),
        "text": text_model(checkpoint, weights, dialect),
    }


def _dual(checkpoint: PromptCheckpoint, weights: Weights, dialect: Dialect) -> Models:
    """Visual prompts make two image towers, one for base and one for new classes."""
    structure = checkpoint.header.structure
    assert isinstance(structure, Dual)
    text = {"text": text_model(checkpoint, weights, dialect)}
    if not has_visual_prompts(checkpoint.tensors):
        return {"image": image_model(checkpoint, weights, dialect=dialect), **text}
    prompts = {
        IMAGE_BASE: mixed_prompts(checkpoint.tensors, structure.mixing_weight),
        IMAGE_NEW: backbone_prompts(checkpoint.tensors),
    }
    return {
        role: image_model(checkpoint, weights, tensors, dialect=dialect)
        for role, tensors in prompts.items()
    } | text


def _conditioned(checkpoint: PromptCheckpoint, weights: Weights, dialect: Dialect) -> Models:
    """Image and text tower in one graph; new classes need their tokens embedded, nothing else."""
    header = checkpoint.header
    config = header.backbone.config
    image = write_conditioned_graph(
        config,
        weights,
        preprocessing=header.preprocessing,
        prompts=text_prompts(checkpoint),
        meta_net=MetaNet.of(checkpoint.tensors, config),
        dialect=dialect,
    )
    prefix = prefix_length(header.text_layout)
    suffix = write_suffix_graph(config, weights, prefix=prefix, dialect=dialect)
    return {"image": image, CLASS_SUFFIX: suffix}


def _class_aware(checkpoint: PromptCheckpoint, weights: Weights, dialect: Dialect) -> Models:
    """DPT's image tower, with a selector if there are more classes than an image looks for."""
    header, structure = checkpoint.header, checkpoint.header.structure
    assert isinstance(structure, ClassAware)
    role = class_graph(structure, len(header.class_names))
    image = write_class_aware_graph(
        header.backbone.config,
        weights,
        preprocessing=header.preprocessing,
        tensors=checkpoint.tensors,
        selected=None if role == IMAGE_SMALL else structure.selected,
        dialect=dialect,
    )
    return {role: image, "text": text_model(checkpoint, weights, dialect)}


def _coupled(checkpoint: PromptCheckpoint, weights: Weights, dialect: Dialect) -> Models:
    """DCP's image tower, with constants folded in or with the coupling that makes prompts."""
    structure = checkpoint.header.structure
    assert isinstance(structure, Coupled)
    if structure.context == "frozen":
        return _plain(checkpoint, weights, dialect)
    return {
        "image": write_coupled_graph(checkpoint, weights, dialect),
        "text": text_model(checkpoint, weights, dialect),
    }


def _decoupled(checkpoint: PromptCheckpoint, weights: Weights, dialect: Dialect) -> Models:
    """DPL's towers: prompts are constants in both, and new classes need no input for them."""
    config = checkpoint.header.backbone.config
    beside = text_prompts_beside(checkpoint)
    return {
        "image": write_decoupled_graph(checkpoint, weights, dialect),
        "text": write_text_graph(config, weights, beside=beside, dialect=dialect),
    }


def _baked(checkpoint: PromptCheckpoint, weights: Weights, dialect: Dialect) -> Models:
    """The image tower alone."""
    return {"image": image_model(checkpoint, weights, dialect=dialect)}


def image_model(
    checkpoint: PromptCheckpoint,
    weights: Weights,
    tensors: Mapping[str, Floats] | None = None,
    *,
    dialect: Dialect = PORTABLE,
) -> ir.Model:
    """The image tower with the visual prompts, if there are any, of the checkpoint or `tensors`."""
    header = checkpoint.header
    if header.backbone.config.other is not None:
        return write_other_graph(checkpoint)
    return write_image_graph(
        header.backbone.config,
        weights,
        preprocessing=header.preprocessing,
        prompts=(tensors or checkpoint.tensors).get("visual.prompts"),
        layout=header.visual_layout,
        dialect=dialect,
    )


def text_model(checkpoint: PromptCheckpoint, weights: Weights, dialect: Dialect) -> ir.Model:
    """The text tower, for as many prompted layers as the checkpoint has."""
    return write_text_graph(
        checkpoint.header.backbone.config,
        weights,
        prompted_layers=len(text_prompts(checkpoint)),
        dialect=dialect,
    )


Writer = Callable[[PromptCheckpoint, Weights, Dialect], Models]

WRITERS: dict[type[Structure], Writer] = {
    Plain: _plain,
    ClassAware: _class_aware,
    Conditioned: _conditioned,
    Coupled: _coupled,
    Decoupled: _decoupled,
    Dual: _dual,
    Baked: _baked,
}
