"""Graphs in memory, run by an engine of the runtime as it will serve them."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from numpy.typing import NDArray

from vlp_deploy.classes.towers import run_graph
from vlp_deploy.engines import load_engine
from vlp_deploy.engines.base import EngineOptions
from vlp_deploy.formats.bundle import Precision

RUN_HERE = ("onnx", "openvino")  # engines that run where bundles are exported, without a GPU
Run = Callable[[Mapping[str, NDArray[Any]]], dict[str, Any]]  # arrays in and out by name


def run_in(engine: str, content: bytes, *, precision: Precision = "fp32") -> Run:
    """What runs a graph in the engine of this name. Raises EngineError or MissingExtraError."""
    with TemporaryDirectory() as folder:
        graph = Path(folder) / "graph.onnx"
        graph.write_bytes(content)
        options = EngineOptions(precision=precision, cached=False)
        return partial(run_graph, load_engine(engine, graph, options))
