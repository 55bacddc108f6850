"""Constants that every row of a batch needs, repeated by a graph for its dynamic batch size."""

from typing import Any

from numpy.typing import NDArray

from vlp_export.graph import GraphBuilder, Value


class Repeater:
    """Repeats constants of shape (1, …) to the batch size of `like`.

    Concat does not broadcast, so constants have to be expanded first. The target shape is computed
    once in a graph for every rank, and not at all in a graph that repeats nothing.
    """

    def __init__(self, graph: GraphBuilder, like: Value) -> None:
        self._graph = graph
        self._like = like
        self._batch: Value | None = None
        self._shapes: dict[int, Value] = {}

    def __call__(self, name: str, constant: NDArray[Any]) -> Value:
        """The constant (1, …) as an initialiser called `name`, repeated to (B, …)."""
        weight = self._graph.weight(name, constant)
        return self._graph.op("Expand", weight, self._target_shape(constant.ndim))

    def _target_shape(self, rank: int) -> Value:
        """(B, 1, …, 1): to Expand, a 1 means "as it is"."""
        if self._batch is None:
            self._batch = self._graph.op("Shape", self._like, start=0, end=1)
        if rank not in self._shapes:
            ones = self._graph.integers(*[1] * (rank - 1))
            self._shapes[rank] = self._graph.op("Concat", self._batch, ones, axis=0)
        return self._shapes[rank]
