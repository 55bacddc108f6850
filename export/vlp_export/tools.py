"""Which versions of which tools made a bundle, as its manifest tells."""

import numpy as np
import onnx
import onnx_ir
import onnxruntime

from vlp_deploy import __version__


def tool_versions() -> dict[str, str]:
    """By the names of their packages."""
    return {
        "vlp-deploy": __version__,
        "onnx": onnx.__version__,
        "onnx-ir": onnx_ir.__version__,
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
    }
