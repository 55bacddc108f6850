"""The prompt checkpoint: what training and import hand to the exporter, one `.safetensors` file.

J prompted layers, m prompt tokens, K classes, d_t and d_v the widths of the towers, S the image
size. The header is one JSON value under the metadata key `vlp`; the tensors are listed in
README.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_safetensors

from vlp_deploy.classes.dual import BACKBONE, NEW_LOGITS, PARALLEL
from vlp_deploy.errors import CheckpointError
from vlp_deploy.files import write_atomic
from vlp_deploy.formats.architecture import (
    Backbone,
    ClipConfig,
    Preprocessing,
    Record,
    TextLayout,
    VisualLayout,
)
from vlp_deploy.formats.structures import Baked, Dual, Plain, Structure

SCHEMA_VERSION = 1
RUN_FILE = "prompt.safetensors"  # the checkpoint's name inside a training run's folder
RESUME_FILE = "resume.safetensors"  # beside it, or instead of it while the run is unfinished
REFERENCE_IMAGES = 8
IMAGE_GRAPH = "image_tower.onnx"  # a tensor: the bytes of an image tower that is no plain ViT

Shape = tuple[int | None, ...]


class Header(Record, frozen=True, kw_only=True):
    """Everything in a prompt checkpoint that is not a tensor.

    `templates` hold `{}` where the class name goes; learned methods have exactly one, whose first
    `text_layout.tokens` tokens are replaced by the learned vectors. `provenance` tells how the
    prompts were trained (data, shots, seed, steps, metrics) or imported (file, sha256).
    """

    schema: int = SCHEMA_VERSION
    method: str
    hyper_parameters: dict[str, Any]
    backbone: Backbone
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    text_layout: TextLayout
    visual_layout: VisualLayout
    structure: Structure = Plain()
    preprocessing: Preprocessing
    base_classes: tuple[str, ...] = ()
    provenance: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class PromptCheckpoint:
    """Learned prompts, where they go, and the un-folded model's answers to prove an export by."""

    header: Header
    tensors: Mapping[str, NDArray[Any]]

    def __post_init__(self) -> None:
        _check_tensors(self.header, self.tensors)

    def save(self, path: Path) -> None:
        """Write the file atomically."""
        tensors = {name: np.ascontiguousarray(value) for name, value in self.tensors.items()}
        # ascontiguousarray makes 0-d arrays 1-d; no tensor of the format is 0-d
        header = msgspec.json.encode(self.header).decode()
        write_atomic(path, to_safetensors(tensors, metadata={"vlp": header}))

    @classmethod
    def load(cls, path: Path) -> "PromptCheckpoint":
        """Read a checkpoint file, or the one in a training run's folder. Raises CheckpointError."""
        file_path = path / RUN_FILE if path.is_dir() else path
        if not file_path.is_file() and (path / RESUME_FILE).is_file():
            raise CheckpointError(
                f"{path} holds an unfinished training run: finish it with the same `vlp train` "
                "command and --resume"
            )
        if not file_path.is_file():
            raise CheckpointError(
                f"no prompt checkpoint at {file_path}: expected a .safetensors file made by "
                f"`vlp train` or `vlp import`, or a training run's folder that holds {RUN_FILE}"
            )
        try:
            with safe_open(file_path, framework="numpy") as file:
                metadata = file.metadata() or {}
                names = list(file.keys())
                tensors = {name: file.get_tensor(name) for name in names}
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file_path} is not a safetensors file: {error}") from error
        except TypeError as error:  # bfloat16 and float8, which NumPy does not have
            raise CheckpointError(
                f"{file_path}: {error}; prompt checkpoints hold float32. Convert it"
            ) from error
        header = _decode_header(metadata, file_path)
        try:
            return cls(header=header, tensors=tensors)
        except CheckpointError as error:
            raise CheckpointError(f"{file_path}: {error}") from None


def _decode_header(metadata: Mapping[str, str], path: Path) -> Header:
    if "vlp" not in metadata:
        raise CheckpointError(
            f"{path} is a safetensors file but no prompt checkpoint (no 'vlp' in its metadata). "
            "Official checkpoints go through `vlp import` first"
        )
    try:
        schema = msgspec.json.decode(metadata["vlp"]).get("schema")
        if schema != SCHEMA_VERSION:
            raise CheckpointError(
                f"{path} has checkpoint schema {schema!r}; this version reads {SCHEMA_VERSION}. "
                "Use the vlp-deploy version that wrote it, or train or import again"
            )
        return msgspec.json.decode(metadata["vlp"], type=Header)
    except (msgspec.DecodeError, AttributeError) as error:
        raise CheckpointError(f"the header of {path} is damaged: {error}") from error


def _check_tensors(header: Header, tensors: Mapping[str, NDArray[Any]]) -> None:
    config = header.backbone.config
    text_tokens, visual_tokens = header.text_layout.tokens, header.visual_layout.tokens
    size, classes = header.preprocessing.image_size, len(header.class_names)
    # None stands for "any number of prompted layers"
    expected: dict[str, Shape] = {
        "text.prompts": (None, text_tokens, config.text.width),
        "text.class_prompts": (classes, text_tokens, config.text.width),
        **_image_tower(config, visual_tokens),
        "class.embeddings": (classes, config.embed_dim),
        "reference.pixels": (REFERENCE_IMAGES, 3, size, size),
        "reference.logits": (REFERENCE_IMAGES, classes),
        "reference.per_sample_logits": (REFERENCE_IMAGES, classes),  # DCP
        "reference.selector_logits": (REFERENCE_IMAGES, classes),  # DPT
    }
    if isinstance(header.structure, Dual):
        expected |= _dual_shapes(expected, tensors)
    for name, shape in expected.items():
        if name in tensors:
            _check_tensor(name, tensors[name], shape)
    for name in ("reference.pixels", "reference.logits"):
        if name not in tensors:
            raise CheckpointError(
                f"prompt checkpoint: {name} is missing; it proves the export right"
            )
    if isinstance(header.structure, Baked) and "class.embeddings" not in tensors:
        raise CheckpointError("prompt checkpoint: class.embeddings is missing. Train it again")
    if config.other is not None and IMAGE_GRAPH not in tensors:
        raise CheckpointError(
            f"prompt checkpoint: {IMAGE_GRAPH} is missing, the graph of {config.image_tower}. "
            "Train or import it again"
        )


def _image_tower(config: ClipConfig, tokens: int) -> dict[str, Shape]:
    """Of what belongs to the image tower: prompts of a plain ViT, or any other as it is."""
    if config.other is None:
        return {"visual.prompts": (None, tokens, config.vision.width)}
    return {IMAGE_GRAPH: (None,), "visual.prompts": (0, 0, 0)}  # no prompts can be


def _dual_shapes(
    plain: Mapping[str, Shape], tensors: Mapping[str, NDArray[Any]]
) -> dict[str, Shape]:
    """Of DPC's tensors: two prompts of the same shape, and a reference for each."""
    shapes = {NEW_LOGITS: plain["reference.logits"]}
    for name in ("text.prompts", "visual.prompts"):
        if f"{BACKBONE}{name}" in tensors:
            layers = tensors[f"{BACKBONE}{name}"].shape[:1]
            shape = (*layers, *plain[name][1:])
            shapes |= {f"{BACKBONE}{name}": shape, f"{PARALLEL}{name}": shape}
    missing = [name for name in shapes if name not in tensors]
    if missing or len(shapes) == 1:
        raise CheckpointError(
            f"prompt checkpoint: {', '.join(missing) or BACKBONE} is missing; DPC has a backbone's "
            "prompt, a parallel one of the same shape, and a reference for each"
        )
    return shapes


def _check_tensor(name: str, tensor: NDArray[Any], shape: tuple[int | None, ...]) -> None:
    if not _fits(tensor.shape, shape):
        raise CheckpointError(
            f"prompt checkpoint: {name} is {tensor.shape}, expected "
            f"({', '.join('layers' if n is None else str(n) for n in shape)})"
        )
    kind = np.uint8 if name in ("reference.pixels", IMAGE_GRAPH) else np.float32
    if tensor.dtype != kind:
        raise CheckpointError(
            f"prompt checkpoint: {name} is {tensor.dtype}, expected {np.dtype(kind)}"
        )
    if not np.isfinite(tensor).all():
        raise CheckpointError(f"prompt checkpoint: {name} holds NaN or infinity")


def _fits(shape: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    return len(shape) == len(expected) and all(
        want in (None, got) for got, want in zip(shape, expected, strict=True)
    )
