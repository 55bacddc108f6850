"""From an image tower of open_clip's to the ONNX graph that travels in the prompt checkpoint.

The graph is `image` uint8 (B, 3, S, S) → `embedding` (B, D), L2-normalised: all of the tower that
the exporter needs.

Legend: B images, S image size, D joint width.
"""

import copy
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from vlp_deploy.errors import MissingExtraError, ModelError
from vlp_deploy.formats.architecture import Preprocessing
from vlp_deploy.formats.checkpoint import IMAGE_GRAPH
from vlp_train.clip import Clip

OPSET = 18  # that of all graphs that every engine is to read
SAMPLE = 2  # images: the exporter takes a batch of one for a constant


def image_graph(
    clip: Clip, preprocessing: Preprocessing, tell: Callable[[str], None] = lambda _: None
) -> dict[str, NDArray[np.uint8]]:
    """The checkpoint's tensor with the ONNX file of the image tower; none for a plain ViT.

    It takes a while, which is told. Raises ModelError if PyTorch cannot export it;
    MissingExtraError where onnxscript is not installed.
    """
    if clip.config.other is None:
        return {}
    _check_installed()
    tell(f"turning the image tower ({clip.config.image_tower}) into ONNX: about half a minute")
    served = _Served(clip, preprocessing).eval().cpu()
    size = preprocessing.image_size
    sample = torch.zeros(SAMPLE, 3, size, size, dtype=torch.uint8)
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                served,
                (sample,),
                dynamo=True,
                opset_version=OPSET,
                input_names=["image"],
                output_names=["embedding"],
                dynamic_shapes=({0: torch.export.Dim("B")},),
                verbose=False,
            )
    except (RuntimeError, ValueError) as error:  # torch.onnx.OnnxExporterError is a RuntimeError
        raise ModelError(
            f"PyTorch {torch.__version__} cannot export the image tower {clip.config.image_tower} "
            f"to ONNX: {_reason(error)}"
        ) from error
    assert program is not None
    content = program.model_proto.SerializeToString()
    return {IMAGE_GRAPH: np.frombuffer(content, np.uint8)}


class _Served(nn.Module):
    """uint8 pixels (B, 3, S, S) → L2-normalised embeddings (B, D)."""

    scale: Tensor  # (3, 1, 1)
    offset: Tensor  # (3, 1, 1)

    def __init__(self, clip: Clip, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.tower = _merged(copy.deepcopy(clip.visual))
        mean, std = (
            torch.tensor(colours).view(3, 1, 1)
            for colours in (preprocessing.mean, preprocessing.std)
        )
        self.register_buffer("scale", 1 / (255 * std))
        self.register_buffer("offset", -mean / std)

    def forward(self, image: Tensor) -> Tensor:
        pixels = image.float() * self.scale + self.offset
        return F.normalize(self.tower(pixels), dim=-1)


def _merged(tower: nn.Module) -> nn.Module:
    """The tower with the branches of MobileCLIP's training merged into one convolution each."""
    if not any(hasattr(module, "reparameterize") for module in tower.modules()):
        return tower
    from timm.utils.model import reparameterize_model

    merged: nn.Module = reparameterize_model(tower, inplace=True)
    return merged


def _check_installed() -> None:
    if find_spec("onnxscript") is None:
        raise MissingExtraError(
            "Turning another image tower than a plain ViT into ONNX",
            needs="onnxscript",
            extra="train",
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks to its developers."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _reason(error: BaseException) -> Any:
    """What went wrong at the bottom of PyTorch's chain of errors."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
