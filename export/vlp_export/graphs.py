"""Both graphs of a checkpoint, ready to be run, counted and written to disk."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from vlp_deploy.bundle import GraphInfo
from vlp_deploy.checkpoint import PromptCheckpoint
from vlp_export.class_texts import text_prompts
from vlp_export.flops import count_flops
from vlp_export.folding import Weights
from vlp_export.graph import node_count, to_bytes
from vlp_export.image_graph import write_image_graph
from vlp_export.text_graph import write_text_graph


@dataclass(frozen=True, kw_only=True)
class GraphFile:
    """A graph as a model to look into and as the bytes of its file."""

    file: str
    model: ir.Model
    content: bytes

    @classmethod
    def of(cls, model: ir.Model) -> "GraphFile":
        """The model, serialised, in a file of its own name."""
        return cls(file=f"{model.graph.name}.onnx", model=model, content=to_bytes(model))

    def info(self, inputs: Mapping[str, Sequence[int]]) -> GraphInfo:
        """The manifest's record, with FLOPs for inputs of these shapes."""
        return GraphInfo(
            file=self.file,
            opset=self.model.graph.opset_imports[""],
            nodes=node_count(self.model),
            flops=count_flops(self.model, inputs),
        )


@dataclass(frozen=True, kw_only=True)
class Graphs:
    """What a bundle computes with."""

    image: GraphFile
    text: GraphFile

    @classmethod
    def of(cls, checkpoint: PromptCheckpoint, weights: Weights) -> "Graphs":
        """Fold the checkpoint's prompts into the backbone and write both towers."""
        header = checkpoint.header
        config = header.backbone.config
        image = write_image_graph(
            config,
            weights,
            preprocessing=header.preprocessing,
            prompts=checkpoint.tensors.get("visual.prompts"),
            layout=header.visual_layout,
        )
        text = write_text_graph(config, weights, prompted_layers=len(text_prompts(checkpoint)))
        return cls(image=GraphFile.of(image), text=GraphFile.of(text))

    def infos(self, checkpoint: PromptCheckpoint, *, classes: int) -> dict[str, GraphInfo]:
        """Role → record: FLOPs of one image, and of one text row of full length."""
        config = checkpoint.header.backbone.config
        size, length = config.vision.image_size, config.text.context_length
        image = {
            "image": (1, 3, size, size),
            "class_matrix": (config.embed_dim, classes),
            "class_bias": (classes,),
        }
        text = {
            "input_ids": (1, length),
            "eot_index": (1,),
            "slots": (1, length),
            "prompts": text_prompts(checkpoint).shape,
        }
        return {"image": self.image.info(image), "text": self.text.info(text)}
