"""The seam between the classifier and whatever runs its graphs: load a file, run arrays, close."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar

from numpy.typing import NDArray

from vlp_deploy.engines.support import PRECISIONS
from vlp_deploy.errors import EngineError

DEVICES = ("cpu", "cuda")
Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How an engine may use the machine. `threads` None leaves the number to the engine.

    `precision` is what the graph was written in; bf16 in OpenVINO is a hint on a float32 graph.
    `profiles` are the ranges of open sizes that an engine is built for, by symbol: least, what is
    tuned for, most; none leaves them to the engine.
    `cuda_graphs` replays captured launches, of onnxruntime on CUDA only.
    `cached` is whether what OpenVINO compiles is kept for the next start.
    """

    threads: int | None = None
    device: str = "cpu"
    precision: str = "fp32"
    profiles: tuple[dict[str, tuple[int, int, int]], ...] = ()
    cuda_graphs: bool = False
    cached: bool = True

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise EngineError(f"threads is {self.threads}; expected 1 or more")
        if self.device not in DEVICES:
            raise EngineError(f"device is {self.device!r}; expected cpu or cuda")
        if self.precision not in PRECISIONS:
            raise EngineError(
                f"precision is {self.precision!r}; expected one of {', '.join(PRECISIONS)}"
            )


class Engine(ABC):
    """One loaded graph. `run` may be called from many threads at once."""

    name: ClassVar[str]
    reads: ClassVar[str]  # the suffix of the graph files it understands
    devices: ClassVar[tuple[str, ...]] = DEVICES
    distributions: ClassVar[tuple[str, ...]] = ()  # packages that bring it, any of them
    builds: ClassVar[bool] = False  # for minutes, before a graph is first loaded

    @classmethod
    def installed_version(cls) -> str:
        """Names and versions of the packages behind the engine; imports none of them."""
        found = []
        for distribution in cls.distributions:
            try:
                found.append(f"{distribution} {version(distribution)}")
            except PackageNotFoundError:
                continue
        return ", ".join(found)

    @classmethod
    @abstractmethod
    def is_installed(cls) -> bool:
        """Whether the package behind the engine is there; loads nothing."""

    @abstractmethod
    def __init__(self, graph: Path, options: EngineOptions) -> None:
        """Load a graph. Raises EngineError, or MissingExtraError without its package."""
        self._closed = False

    @property
    @abstractmethod
    def version(self) -> str:
        """What runs the graph and where, for example `onnxruntime 1.20.0 CPU`."""

    @property
    @abstractmethod
    def inputs(self) -> frozenset[str]:
        """Names of the graph's inputs."""

    @property
    def rounds_logits(self) -> bool:
        """Whether it computes the last product of a graph in less than float32, unasked."""
        return False

    @abstractmethod
    def _run(self, inputs: Arrays) -> dict[str, NDArray[Any]]: ...

    def run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """Outputs by name, in arrays that belong to the caller. Raises EngineError."""
        if self._closed:
            raise EngineError(f"the {self.name} engine is closed; load it again")
        if inputs.keys() != self.inputs:
            raise EngineError(
                f"the graph takes {', '.join(sorted(self.inputs))}; got {', '.join(sorted(inputs))}"
            )
        return self._run(inputs)

    def close(self) -> None:
        """Let go of the graph; closing twice is allowed."""
        self._closed = True
