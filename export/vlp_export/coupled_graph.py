"""DCP's image tower with prompts that are made while it runs, and the probes that calibrate it.

In front of blocks 1 to J the visual prompts are taken out of the tokens, coupled with the text by
CMPA (arXiv:2305.17903), and put back. Text enters as constant queries. With constants in the place
of CMPA the same graph is what a frozen context means, un-folded.

Legend: B images, T tokens without prompts, n prompts, J coupled blocks, d width, h heads.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from vlp_deploy.classes.coupled import fixed_batch
from vlp_deploy.formats.architecture import VisionTower
from vlp_deploy.formats.checkpoint import PromptCheckpoint
from vlp_deploy.formats.structures import Coupled
from vlp_export.coupled_folding import (
    PREFIX,
    VISUAL_PROMPTS,
    coupling_block,
    coupling_weights,
    text_queries,
)
from vlp_export.dialects import PORTABLE, Dialect, Projections
from vlp_export.folding import Floats, Weights, layer_norm
from vlp_export.graph import GraphBuilder, Value
from vlp_export.image_graph import (
    PROMPTS,
    class_token,
    image_embedding,
    image_tokens,
    image_transformer,
    write_head,
)
from vlp_export.repeat import Repeater
from vlp_export.transformer import Transformer

Couple = Callable[[int, Value], Value]  # block and prompt states (B, n, d) → prompts (B, n, d)


def write_coupled_graph(
    checkpoint: PromptCheckpoint, weights: Weights, dialect: Dialect = PORTABLE
) -> ir.Model:
    """The live graph, `image`, `class_matrix`, `class_bias` → `embedding`, `logits`.

    Any number of images, each by itself; or, in the context `batch`, exactly the structure's
    `batch_size`, over which prompts are fused. Raises CheckpointError.
    """
    coupling = coupling_weights(checkpoint)
    tower = _Tower.of(checkpoint, weights, dialect)
    blocks = Transformer(
        graph=tower.graph,
        weights=coupling,
        prefix=PREFIX,
        tower=checkpoint.header.backbone.config.vision,
        quick_gelu=True,  # whatever the towers have
        dialect=dialect,
    )
    queries = text_queries(checkpoint, weights, coupling)
    couple = _Coupling(blocks=blocks, queries=queries, structure=tower.structure)
    return tower.model(couple)


def write_unfolded_graph(
    checkpoint: PromptCheckpoint, weights: Weights, contexts: Sequence[Floats]
) -> ir.Model:
    """What a frozen context means: constants (n, d) replace the prompts in front of blocks 1 to J.

    All prompts are tokens here; `image_graph` folds the same constants into keys and values.
    """
    tower = _Tower.of(checkpoint, weights)
    return tower.model(tower.constants(contexts))


def write_probe_graph(
    checkpoint: PromptCheckpoint, weights: Weights, contexts: Sequence[Floats]
) -> ir.Model:
    """`image` → `states` (B, n, d): the prompts behind block 0 and one more for each context.

    `contexts` (n, d) replace the prompts in front of blocks 1, 2, …, which are not coupled.
    """
    tower = _Tower.of(checkpoint, weights)
    x = tower.behind(1 + len(contexts), tower.constants(contexts))
    _, states = tower.graph.split(x, tower.parts, axis=1)
    tower.graph.output("states", states, ("B", *checkpoint.tensors[VISUAL_PROMPTS].shape))
    return tower.graph.model()


@dataclass(frozen=True, kw_only=True)
class _Tower:
    """The image tower with prompts that travel as tokens and are replaced on their way."""

    graph: GraphBuilder
    image: Value
    transformer: Transformer
    checkpoint: PromptCheckpoint
    repeat: Repeater

    @classmethod
    def of(
        cls, checkpoint: PromptCheckpoint, weights: Weights, dialect: Dialect = PORTABLE
    ) -> "_Tower":
        """A new graph with its image input."""
        config = checkpoint.header.backbone.config
        graph = GraphBuilder("image", opset=dialect.opset)
        batch = fixed_batch(checkpoint.header.structure) or "B"
        size = config.vision.image_size
        image = graph.input("image", ir.DataType.UINT8, (batch, 3, size, size))
        return cls(
            graph=graph,
            image=image,
            transformer=image_transformer(graph, config, weights, dialect),
            checkpoint=checkpoint,
            repeat=Repeater(graph, image),
        )

    @property
    def structure(self) -> Coupled:
        """The checkpoint's, with its own type."""
        structure = self.checkpoint.header.structure
        assert isinstance(structure, Coupled)
        return structure

    @property
    def parts(self) -> tuple[int, int]:
        """Tokens that are no prompts, and prompts."""
        tower = self.transformer.tower
        assert isinstance(tower, VisionTower)
        return 1 + tower.patches, len(self.checkpoint.tensors[VISUAL_PROMPTS])

    def constants(self, contexts: Sequence[Floats]) -> Couple:
        """No coupling: (n, d) for the blocks 1, 2, …, as tokens."""
        return lambda layer, _: self.repeat(f"{PROMPTS}.{layer}", contexts[layer - 1][None])

    def behind(self, blocks: int, couple: Couple) -> Value:
        """Tokens behind the first blocks (B, T + n, d); behind the last the class token (B, d)."""
        graph, transformer = self.graph, self.transformer
        prompts = self.checkpoint.tensors[VISUAL_PROMPTS]
        prompts = layer_norm(prompts, transformer.weights, "visual.ln_pre")
        x = image_tokens(transformer, self.image, self.checkpoint.header.preprocessing)
        x = graph.op("Concat", x, self.repeat(PROMPTS, prompts[None]), axis=1)
        for layer in range(blocks):
            if 1 <= layer <= self.structure.depth:
                others, states = graph.split(x, self.parts, axis=1)
                x = graph.op("Concat", others, couple(layer, states), axis=1)
            if layer < transformer.tower.layers - 1:
                x = transformer.block(x, layer)
            else:
                x = transformer.last_block(x, lambda t: class_token(graph, t))
        return x

    def model(self, couple: Couple) -> ir.Model:
        """The whole graph, up to logits."""
        config = self.checkpoint.header.backbone.config
        x = self.behind(config.vision.layers, couple)
        write_head(
            self.graph,
            image_embedding(self.transformer, x),
            joint_width=config.embed_dim,
            batch=fixed_batch(self.structure) or "B",
        )
        return self.graph.model()


@dataclass(frozen=True, kw_only=True)
class _Coupling:
    """CMPA's visual half, a transformer block whose queries are constants."""

    blocks: Transformer
    queries: Sequence[Floats]  # (n, d) for the blocks 1 to J
    structure: Coupled

    def __call__(self, layer: int, states: Value) -> Value:
        """The prompts in front of block `layer`, states (B, n, d) → (B, n, d)."""
        graph = self.blocks.graph
        with graph.scope(f"{PREFIX}.{layer}"):
            if self.structure.context == "batch":
                states = self._fused(states)
            query = graph.weight(f"{PREFIX}.queries.{layer}", self.queries[layer - 1][None])
            block = coupling_block(self.blocks.weights, layer)
            keys, values = self.blocks.keys_values(states, block)
            prompts = self.blocks.attend(states, Projections(query, keys, values), block)
            if self.structure.context == "batch":
                shape = graph.integers(fixed_batch(self.structure) or 1, 1, 1)
                return graph.op("Expand", prompts, shape)
            return prompts

    def _fused(self, states: Value) -> Value:
        """One state of a batch's, (B, n, d) → (1, n, d)."""
        graph = self.blocks.graph
        if self.structure.fusing == "mean":
            return graph.op("ReduceMean", states, graph.integers(0), keepdims=1)
        if self.structure.fusing == "max":
            return graph.op("ReduceMax", states, graph.integers(0), keepdims=1)
        return graph.op("Slice", states, graph.integers(0), graph.integers(1), graph.integers(0))
