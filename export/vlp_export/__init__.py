"""Export: from a prompt checkpoint to a proven bundle. Needs the `export` extra and no PyTorch."""

from vlp_export.conversion import convert
from vlp_export.exporter import export

__all__ = ["convert", "export"]
