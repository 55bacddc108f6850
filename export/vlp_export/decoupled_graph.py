"""DPL's towers with constant prompts: keys and values beside the tokens', weighed by gates.

A reconstruction after arXiv:2308.10061. Multiplying the weight of prompts by exp(g) is the same as
adding g to their scores, so the modes `exact` and `bias` are one softmax; a fixed share takes two.
Prompts that depend on the sentence are P + U D LN₁(x at end of text).

Legend: B rows, T tokens, n prompts, J prompted layers, h heads, d width, r rank.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vlp_deploy.errors import CheckpointError
from vlp_deploy.formats.checkpoint import PromptCheckpoint
from vlp_deploy.formats.structures import Decoupled
from vlp_export.dialects import PORTABLE, Dialect, GatedRows
from vlp_export.folding import Floats, Weights, constant_keys_values
from vlp_export.graph import GraphBuilder, Value
from vlp_export.image_graph import (
    class_token,
    image_embedding,
    image_tokens,
    image_transformer,
    write_head,
)
from vlp_export.repeat import Repeater
from vlp_export.text_graph import BesideTokens, Pick, Read
from vlp_export.transformer import Transformer

DOWN, UP = "dpl.condition.down", "dpl.condition.up"


def write_decoupled_graph(
    checkpoint: PromptCheckpoint, weights: Weights, dialect: Dialect = PORTABLE
) -> ir.Model:
    """The image graph, `image`, `class_matrix`, `class_bias` → `embedding`, `logits`.

    Raises CheckpointError if prompts or gates do not fit the tower.
    """
    header = checkpoint.header
    config, size = header.backbone.config, header.backbone.config.vision.image_size
    graph = GraphBuilder("image", opset=dialect.opset)
    image = graph.input("image", ir.DataType.UINT8, ("B", 3, size, size))
    transformer = image_transformer(graph, config, weights, dialect)

    def pick(t: Value) -> Value:
        return class_token(graph, t)

    read = _Prompts.of(checkpoint, "visual", transformer, image, pick)
    x = image_tokens(transformer, image, header.preprocessing)
    last = config.vision.layers - 1
    for layer in range(last):
        x = transformer.block(x, layer, constants=read(x, layer))
    x = transformer.last_block(x, pick, constants=read(x, last))
    write_head(graph, image_embedding(transformer, x), joint_width=config.embed_dim)
    return graph.model()


def text_prompts_beside(checkpoint: PromptCheckpoint) -> BesideTokens:
    """What the tokens of the text tower read beside each other."""

    def beside(transformer: Transformer, ids: Value, pick: Pick) -> Read:
        return _Prompts.of(checkpoint, "text", transformer, ids, pick)

    return beside


@dataclass(frozen=True, kw_only=True)
class _Prompts:
    """Writes the keys and values of a tower's prompts, layer by layer."""

    name: str
    prompts: Floats  # (J, n, d)
    gates: Floats | None  # (J, h)
    fixed: bool
    condition: tuple[Floats, Floats] | None  # (J, r, d), (J, d, r)
    transformer: Transformer
    repeat: Repeater
    pick: Callable[[Value], Value]

    @classmethod
    def of(
        cls,
        checkpoint: PromptCheckpoint,
        tower: str,
        transformer: Transformer,
        rows: Value,
        pick: Pick,
    ) -> "_Prompts":
        """The prompts of the tower `text` or `visual`; `rows` is an input with B on its first axis.

        Raises CheckpointError if they do not fit it.
        """
        structure, tensors = checkpoint.header.structure, checkpoint.tensors
        assert isinstance(structure, Decoupled)
        name, heads = f"dpl.{tower}_prompts", transformer.tower.heads
        prompts, gates = tensors.get(name), tensors.get(f"dpl.{tower}_gates")
        layers, width = transformer.tower.layers, transformer.tower.width
        if prompts is None or not 1 <= len(prompts) <= layers or prompts.shape[2] != width:
            found = "missing" if prompts is None else str(prompts.shape)
            raise CheckpointError(
                f"prompt checkpoint: {name} is {found}, expected (layers, prompts, {width}) for at "
                f"most {layers} layers. Train it again"
            )
        if structure.mode == "exact":
            gates = None
        elif gates is None or gates.shape != (len(prompts), heads):
            found = "missing" if gates is None else str(gates.shape)
            raise CheckpointError(
                f"prompt checkpoint: dpl.{tower}_gates is {found}, expected "
                f"({len(prompts)}, {heads}) in mode {structure.mode}. Train it again"
            )
        conditioned = tower == "text" and DOWN in tensors
        return cls(
            name=name,
            prompts=prompts,
            gates=gates,
            fixed=structure.mode == "fixed",
            condition=(tensors[DOWN], tensors[UP]) if conditioned else None,
            transformer=transformer,
            repeat=Repeater(transformer.graph, rows),
            pick=pick,
        )

    def __call__(self, x: Value, layer: int) -> GatedRows | None:
        """What tokens (B, T, d) read beside each other in a block; nothing behind the last set."""
        if layer >= len(self.prompts):
            return None
        graph, name = self.transformer.graph, f"{self.name}.{layer}"
        with graph.scope(name):
            keys, values = (
                self._constant(layer) if self.condition is None else self._conditioned(x, layer)
            )
            if self.gates is None:
                return GatedRows(keys, values)
            gates = self.gates[layer].reshape(1, -1, 1, 1).astype(np.float32)
            if not self.fixed:
                return GatedRows(keys, values, bias=graph.weight(f"{name}.gates", gates))
            share = 1 / (1 + np.exp(-gates.astype(np.float64)))
            shares = (share.astype(np.float32), (1 - share).astype(np.float32))
            of_prompts, of_tokens = (
                graph.weight(f"{name}.{kind}", value)
                for kind, value in zip(("share", "rest"), shares, strict=True)
            )
            return GatedRows(keys, values, share=of_prompts, rest=of_tokens)

    def _constant(self, layer: int) -> tuple[Value, Value]:
        """Keys (1, h, d/h, n) and values (B, h, n, d/h) that are the same for every row."""
        transformer, name = self.transformer, f"{self.name}.{layer}"
        keys, values = constant_keys_values(
            self.prompts[layer],
            transformer.weights,
            transformer.name_of(layer),
            heads=transformer.tower.heads,
        )
        transposed = transformer.graph.weight(f"{name}.keys", keys.swapaxes(2, 3))
        return transposed, self.repeat(f"{name}.values", values)

    def _conditioned(self, x: Value, layer: int) -> tuple[Value, Value]:
        """Keys (B, h, d/h, n) and values (B, h, n, d/h) of each row's own prompts."""
        transformer, name = self.transformer, f"{self.name}.{layer}"
        graph, heads = transformer.graph, transformer.tower.heads
        assert self.condition is not None
        down, up = self.condition
        end = transformer.norm(self.pick(x), f"{transformer.name_of(layer)}.ln_1")  # (B, d)
        for factor, matrix in (("down", down), ("up", up)):
            end = graph.op("MatMul", end, graph.weight(f"{name}.{factor}", matrix[layer].T))
        shift = graph.op("Unsqueeze", end, graph.integers(1))  # (B, 1, d)
        prompts = graph.op("Add", shift, graph.weight(name, self.prompts[layer][None]))
        keys, values = transformer.keys_values(prompts, layer)  # (B, n, d)
        split = graph.integers(0, 0, heads, -1)
        keys = graph.op("Transpose", graph.op("Reshape", keys, split), perm=[0, 2, 3, 1])
        values = graph.op("Transpose", graph.op("Reshape", values, split), perm=[0, 2, 1, 3])
        return keys, values
