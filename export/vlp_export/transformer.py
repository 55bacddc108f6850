"""CLIP's transformer blocks as ONNX nodes, for both towers.

Legend: B rows, T tokens, d width of the tower.
"""

from collections.abc import Callable
from dataclasses import dataclass

from vlp_deploy.formats.architecture import TextTower, VisionTower
from vlp_export.dialects import ConstantRows, Dialect, GatedRows, Projections
from vlp_export.folding import LAYER_NORM_EPSILON, Floats, Weights, scaled_input_projection
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
        constants: ConstantRows | GatedRows | None = None,
    ) -> Value:
        """A pre-norm block, (B, T, d) → (B, T, d)."""
        projections = self.projections(x, layer)
        return self.attend(x, projections, layer, mask=mask, constants=constants)

    def last_block(
        self,
        x: Value,
        pick: Callable[[Value], Value],
        *,
        mask: Value | None = None,
        constants: ConstantRows | GatedRows | None = None,
    ) -> Value:
        """R2: the last block for the only token that is read behind it, (B, T, d) → (B, d).

        `pick` takes that token out of (B, T, d). All tokens give keys and values.
        """
        last = self.tower.layers - 1
        projections = self.picked_projections(x, pick, last)
        return self.attend(
            pick(x), projections, last, one_query=True, mask=mask, constants=constants
        )

    def projections(self, x: Value, layer: int) -> Projections:
        """What attention of a block works on, (B, T, d) → three times (B, T, d)."""
        name, width = self.name_of(layer), self.tower.width
        with self.graph.scope(name):
            matrix, bias = self._input_projection(name)
            packed = self._affine(  # (B, T, 3d)
                self.norm(x, f"{name}.ln_1"),
                self.graph.weight(f"{name}.attn.in_proj_weight", matrix),
                self.graph.weight(f"{name}.attn.in_proj_bias", bias),
            )
            return Projections(*self.graph.split(packed, (width, width, width), axis=-1))

    def picked_projections(
        self, x: Value, pick: Callable[[Value], Value], layer: int
    ) -> Projections:
        """`projections` with the query (B, d) of the token that `pick` takes out of (B, T, d)."""
        name, width = self.name_of(layer), self.tower.width
        with self.graph.scope(name):
            normed = self.norm(x, f"{name}.ln_1")
            matrix, bias = self._input_projection(name)
            query = self._affine(
                pick(normed),
                self.graph.weight(f"{name}.attn.query.weight", matrix[:, :width]),
                self.graph.weight(f"{name}.attn.query.bias", bias[:width]),
            )
            return Projections(query, *self._keys_values(normed, name, (matrix, bias)))

    def keys_values(self, x: Value, layer: int) -> tuple[Value, Value]:
        """What other tokens see of `x` in a block, (B, T, d) → twice (B, T, d)."""
        name = self.name_of(layer)
        with self.graph.scope(name):
            normed = self.norm(x, f"{name}.ln_1")
            return self._keys_values(normed, name, self._input_projection(name))

    def attend(
        self,
        x: Value,
        projections: Projections,
        layer: int,
        *,
        one_query: bool = False,
        mask: Value | None = None,
        constants: ConstantRows | GatedRows | None = None,
    ) -> Value:
        """The rest of a block: `x`, of the queries' shape, plus attention, plus the perceptron."""
        name = self.name_of(layer)
        with self.graph.scope(name):
            attended = self.dialect.attend(
                self.graph,
                projections,
                heads=self.tower.heads,
                one_query=one_query,
                mask=mask,
                constants=constants,
            )
            return self._residuals(x, attended, name)

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

    def _input_projection(self, name: str) -> tuple[Floats, Floats]:
        return scaled_input_projection(self.weights, name, heads=self.tower.heads)

    def _keys_values(
        self, normed: Value, name: str, projection: tuple[Floats, Floats]
    ) -> tuple[Value, Value]:
        (matrix, bias), width = projection, self.tower.width
        packed = self._affine(  # (B, T, 2d)
            normed,
            self.graph.weight(f"{name}.attn.keys_values.weight", matrix[:, width:]),
            self.graph.weight(f"{name}.attn.keys_values.bias", bias[width:]),
        )
        keys, values = self.graph.split(packed, (width, width), axis=-1)
        return keys, values

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
