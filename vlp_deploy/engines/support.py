"""Which engine takes which precision, as one table; why not where it does not.

The precision of a bundle is written into its graphs (`Manifest.precision`), with one exception:
bf16 in OpenVINO is a hint on the float32 graph. "Takes" means that the engine can load such a
graph and answers rightly; whether this machine has units for the precision shows when it loads.
Processors without them compute float16 graphs in float32: half the download, the same time.
"""

from collections.abc import Mapping
from types import MappingProxyType

from vlp_deploy.errors import EngineError

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")

# engine -> precision -> "" where it takes it, else the reason why not
SUPPORT: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "onnx": {
            "fp32": "",
            "fp16": "",
            "bf16": "onnxruntime's CPU kernels know no bfloat16",
            "int8": "",
            "fp8": "onnxruntime has no matrix product of fp8",
        },
        "openvino": {
            "fp32": "",
            "fp16": "",
            "bf16": "",
            "int8": "",
            "fp8": "its CPU kernels have no matrix product of fp8",
        },
        "tensorrt": dict.fromkeys(PRECISIONS, ""),
        "tensorrt-rtx": dict.fromkeys(PRECISIONS, ""),
    }
)


def why_unsupported(engine: str, precision: str) -> str:
    """The reason why `engine` does not take `precision`; empty where it does.

    Engines that stand in no table (`fake`) take everything.
    """
    return SUPPORT[engine][precision] if engine in SUPPORT else ""


def refuse_unsupported(engine: str, precision: str) -> None:
    """Raise EngineError, with the whole table, if `engine` does not take `precision`."""
    if precision not in PRECISIONS:
        raise EngineError(f"precision is {precision!r}; expected one of {', '.join(PRECISIONS)}")
    reason = why_unsupported(engine, precision)
    if reason:
        raise EngineError(
            f"engine {engine} does not take {precision}: {reason}. What goes together:\n"
            f"{support_table()}"
        )


def support_table() -> str:
    """The table in plain text: a row an engine, a column a precision."""
    rows: list[tuple[str, ...]] = [("engine", *PRECISIONS)]
    for engine, cells in SUPPORT.items():
        rows.append((engine, *("-" if cells[p] else "yes" for p in PRECISIONS)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
