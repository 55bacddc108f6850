"""From what the user asked for to the processor and the precision to train with."""

from contextlib import AbstractContextManager
from typing import Any, Literal

import torch

from vlp_deploy.errors import TrainingError

Precision = Literal["fp32", "bf16", "fp16"]


def choose_device(asked: str, *, index: int) -> torch.device:
    """`auto` is CUDA where there is one; CUDA without a number is the GPU with this `index`.

    Raises TrainingError for a device that cannot be used.
    """
    if asked == "auto":
        asked = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(asked)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", index)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise TrainingError(
            f"device {asked!r} cannot be used ({str(error).splitlines()[0]}); try cpu"
        ) from error
    return device


def default_precision(device: torch.device) -> Precision:
    """Half precision on a GPU, the better one if it has it."""
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """Matrix products in half precision where that was asked for."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "fp32")
