"""What every engine must do, as one check: run it on a new engine before using it.

Images and text rows are the items here; an item is one row of the inputs that hold items.
"""

from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlp_deploy.engines.base import Arrays, Engine, EngineOptions
from vlp_deploy.errors import EngineError

BATCHES = (1, 2, 5, 8)


def check_engine(
    engine: type[Engine],
    graph: Path,
    inputs: Arrays,
    *,
    items: Collection[str],
    tolerance: float = 1e-5,
) -> None:
    """Raise EngineError at the first promise of `Engine` that `engine` breaks on `graph`.

    `inputs` hold at least 8 items; `items` names those whose rows are items. Outputs may differ by
    `tolerance` between batch sizes, for sums in another order.
    """
    loaded = engine(graph, EngineOptions(threads=1))
    _require(loaded.inputs == inputs.keys(), f"inputs are {set(loaded.inputs)}")
    _require(bool(loaded.version), "version is empty")
    _check_arrays(loaded, inputs)
    _check_batches(loaded, inputs, items, tolerance)
    _check_threads(loaded, inputs)
    missing = {name: value for name, value in inputs.items() if name not in items}
    _require_error(lambda: loaded.run(missing), "a missing input")
    loaded.close()
    loaded.close()
    _require_error(lambda: loaded.run(inputs), "running a closed engine")


def _check_batches(
    engine: Engine, inputs: Arrays, items: Collection[str], tolerance: float
) -> None:
    whole = engine.run(inputs)
    for batch in BATCHES:
        part = {name: value[:batch] if name in items else value for name, value in inputs.items()}
        for name, output in engine.run(part).items():
            expected = whole[name][:batch]
            shapes_fit = output.shape == expected.shape and len(output) == batch
            _require(shapes_fit, f"{name} of batch {batch} has shape {output.shape}")
            difference = float(np.abs(output - expected).max())
            _require(
                difference <= tolerance,
                f"{name} of an item changes by {difference:.1e} with the size of its batch",
            )


def _check_arrays(engine: Engine, inputs: Arrays) -> None:
    """Inputs stay as they are; outputs are the caller's, and not reused by the next run."""
    before = {name: value.copy() for name, value in inputs.items()}
    first = engine.run(inputs)
    kept = {name: value.copy() for name, value in first.items()}
    reversed_inputs = {name: np.ascontiguousarray(value[::-1]) for name, value in inputs.items()}
    engine.run(reversed_inputs)
    _require(_equal(inputs, before), "run changes its inputs")
    _require(_equal(first, kept), "outputs change with the next run")


def _check_threads(engine: Engine, inputs: Arrays) -> None:
    expected = engine.run(inputs)
    with ThreadPoolExecutor(4) as pool:
        for outputs in pool.map(lambda _: engine.run(inputs), range(16)):
            _require(_equal(outputs, expected), "outputs differ between threads")


def _equal(found: Arrays, expected: dict[str, NDArray[Any]] | Arrays) -> bool:
    return all(np.array_equal(found[name], expected[name]) for name in expected)


def _require(holds: bool, complaint: str) -> None:
    if not holds:
        raise EngineError(f"the engine breaks its contract: {complaint}")


def _require_error(call: Callable[[], object], what: str) -> None:
    try:
        call()
    except EngineError:
        return
    raise EngineError(f"the engine breaks its contract: {what} raises no EngineError")
