"""CLIP's transformer blocks as ONNX nodes, for both towers.

Legend: B rows, T tokens, d width of the tower.
"""

from collections.abc import Callable
from dataclasses import dataclass

from vlp_deploy.architecture import TextTower, VisionTower
from vlp_export.dialects import ConstantRows, Dialect, Projections
from vlp_export.folding import LAYER_NORM_EPSILON, Weights, scaled_input_projection
from vlp_export.graph import GraphBuilder, Value


@dataclass(frozen=True, kw_only=True)
class Transformer:
    """Writes the blocks of one tower; `prefix` is where its weights are."""

    graph: GraphBuilder
    weights: Weights
    prefix: str
    tower: VisionTower | TextTower
    quick_gelu: bool
    dialect: Dialect

    def block(
        self,
        x: Value,
        layer: int,
        *,
        mask: Value | None = None,
        constants: ConstantRows | None = None,
    ) -> Value:
        """A pre-norm block, (B, T, d) → (B, T, d)."""
        name, width = self.name_of(layer), self.tower.width
        with self.graph.scope(name):
            matrix, bias = scaled_input_projection(self.weights, name, heads=self.tower.heads)
            packed = self._affine(  # (B, T, 3d)
                self.norm(x, f"{name}.ln_1"),
                self.graph.weight(f"{name}.attn.in_proj_weight", matrix),
                self.graph.weight(f"{name}.attn.in_proj_bias", bias),
            )
            parts = self.graph.split(packed, (width, width, width), axis=-1)
            attended = self.dialect.attend(
                self.graph,
                Projections(*parts),
                heads=self.tower.heads,
                mask=mask,
                constants=constants,
            )
            return self._residuals(x, attended, name)

    def last_block(
        self,
        x: Value,
        pick: Callable[[Value], Value],
        *,
        mask: Value | None = None,
        constants: ConstantRows | None = None,
    ) -> Value:
        """R2: the last block for the only token that is read behind it, (B, T, d) → (B, d).

        `pick` takes that token out of (B, T, d). All tokens give keys and values.
        """
        name, width = self.name_of(self.tower.layers - 1), self.tower.width
        with self.graph.scope(name):
            normed = self.norm(x, f"{name}.ln_1")
            matrix, bias = scaled_input_projection(self.weights, name, heads=self.tower.heads)
            weight = self.graph.weight
            query = self._affine(  # (B, d)
                pick(normed),
                weight(f"{name}.attn.query.weight", matrix[:, :width]),
                weight(f"{name}.attn.query.bias", bias[:width]),
            )
            packed = self._affine(  # (B, T, 2d)
                normed,
                weight(f"{name}.attn.keys_values.weight", matrix[:, width:]),
                weight(f"{name}.attn.keys_values.bias", bias[width:]),
            )
            attended = self.dialect.attend(
                self.graph,
                Projections(query, *self.graph.split(packed, (width, width), axis=-1)),
                heads=self.tower.heads,
                one_query=True,
                mask=mask,
                constants=constants,
            )
            return self._residuals(pick(x), attended, name)

    def norm(self, x: Value, name: str) -> Value:
        """LayerNorm over the last axis."""
        return self.graph.op(
            "LayerNormalization",
            x,
            self.graph.weight(f"{name}.weight", self.weights[f"{name}.weight"]),
            self.graph.weight(f"{name}.bias", self.weights[f"{name}.bias"]),
            axis=-1,
            epsilon=LAYER_NORM_EPSILON,
        )

    def project(self, x: Value, name: str) -> Value:
        """`x` times a projection that is stored as a right-hand factor."""
        return self.graph.op("MatMul", x, self.graph.weight(name, self.weights[name]))

    def name_of(self, layer: int) -> str:
        """State-dict prefix of a block."""
        return f"{self.prefix}.resblocks.{layer}"

    def _residuals(self, x: Value, attended: Value, name: str) -> Value:
        x = self.graph.op("Add", x, self._linear(attended, f"{name}.attn.out_proj"))
        hidden = self._linear(self.norm(x, f"{name}.ln_2"), f"{name}.mlp.c_fc")
        return self.graph.op("Add", x, self._linear(self._gelu(hidden), f"{name}.mlp.c_proj"))

    def _gelu(self, x: Value) -> Value:
        """`x σ(1.702 x)` or `x (1 + erf(x / √2)) / 2`, written in the forms that engines fuse."""
        op, number = self.graph.op, self.graph.number
        if self.quick_gelu:
            return op("Mul", x, op("Sigmoid", op("Mul", x, number(1.702))))
        error = op("Erf", op("Div", x, number(2**0.5)))
        return op("Mul", op("Mul", x, op("Add", error, number(1.0))), number(0.5))

    def _linear(self, x: Value, name: str) -> Value:
        weight, bias = f"{name}.weight", f"{name}.bias"
        return self._affine(
            x,
            self.graph.weight(weight, self.weights[weight].T),
            self.graph.weight(bias, self.weights[bias]),
        )

    def _affine(self, x: Value, weight: Value, bias: Value) -> Value:
        return self.graph.op("Add", self.graph.op("MatMul", x, weight), bias)


def normalised(graph: GraphBuilder, feature: Value) -> Value:
    """(B, D) divided by its L2 norm, row by row."""
    length = graph.op("ReduceL2", feature, graph.integers(-1), keepdims=1)
    return graph.op("Div", feature, length)
