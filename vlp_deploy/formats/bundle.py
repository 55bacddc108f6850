"""The bundle: a folder that holds everything needed to classify, and proof that it is intact.

The format is specified in `vlp_deploy/README.md`. D joint width, K classes, S image size.
"""

import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as from_safetensors
from safetensors.numpy import save as to_safetensors

from vlp_deploy.errors import BundleError
from vlp_deploy.files import staged_folder
from vlp_deploy.formats.architecture import (
    Backbone,
    Preprocessing,
    Record,
    TextLayout,
    VisualLayout,
)
from vlp_deploy.formats.checkpoint import REFERENCE_IMAGES
from vlp_deploy.formats.sealed import CHECKSUMS, SealedFolder, seal
from vlp_deploy.formats.structures import Plain, Structure

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
PROMPTS, CLASSES, GOLDEN, VOCABULARY = (
    "prompts.safetensors",
    "classes.safetensors",
    "golden.npz",
    "bpe_simple_vocab_16e6.txt.gz",
)

CLASS_EMBEDDINGS, CLASS_MATRIX, CLASS_BIAS = "class_embeddings", "class_matrix", "class_bias"
SELECTOR_MATRIX, CLASS_BANK = "selector_matrix", "class_bank"  # of DPT
FURTHER = "embeddings."  # in the golden file, in front of another image graph's role
SELECTOR_LOGITS = "selector_logits"  # an output: by which DPT's classes were selected

Floats = NDArray[np.float32]
Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8"]


class GraphInfo(Record, frozen=True, kw_only=True):
    """One ONNX file; its cost is counted from the graph at export, per image or per text row."""

    file: str
    opset: int
    nodes: int
    # 2 x multiply-accumulates, batch 1; text: one row of `context_length` tokens; 0: not counted
    flops: int


class ParityRow(Record, frozen=True, kw_only=True):
    """How far one engine's answer is from the un-folded model's, on the reference images.

    Cosines are the smallest ones of all images: `min_cosine` between embeddings and their float32
    selves, `batch_cosine` between those of an image among others, an outlier too, and alone.
    """

    engine: str
    precision: Precision
    batch: int
    images: int = REFERENCE_IMAGES  # fewer where a selection of classes was a tie
    max_logit_difference: float
    min_cosine: float
    batch_cosine: float | None = None  # None: not told apart by an older version
    top1_agreement: float  # over images whose reference margin exceeds twice the tolerance
    tolerance: float


class NewClasses(Record, frozen=True, kw_only=True):
    """Whether classes nobody trained on can be given at run time, and the reason if not.

    `warning` is what must be said when they are.
    """

    allowed: bool = True
    reason: str = ""
    warning: str = ""


class Manifest(Record, frozen=True, kw_only=True):
    """What a bundle says about itself."""

    schema_version: int = SCHEMA_VERSION
    method: str
    backbone: Backbone
    preprocessing: Preprocessing
    engine: str
    precision: Precision
    graphs: dict[str, GraphInfo]  # role -> file: image, text
    # role -> ranges of open sizes, by symbol, that engines are built for; see engines/tensorrt
    profiles: dict[str, tuple[dict[str, tuple[int, int, int]], ...]] = msgspec.field(
        default_factory=dict
    )
    classes: tuple[str, ...]
    class_graph: str = "image"  # the role of the graph that serves them
    base_classes: tuple[str, ...] = ()
    templates: tuple[str, ...]
    text_layout: TextLayout
    visual_layout: VisualLayout
    structure: Structure = Plain()
    logit_scale: float
    host_head: bool = True
    new_classes: NewClasses
    temperature: float = 1.0
    reject_threshold: float | None = None  # the least probability that is an answer, if asked
    class_thresholds: tuple[float, ...] = ()  # the least logit of each class that is a label
    tools: dict[str, str]
    parity: tuple[ParityRow, ...]
    history: tuple[dict[str, Any], ...]


@dataclass(frozen=True, kw_only=True)
class ClassBank:
    """One list of classes as an image graph takes it.

    `inputs` by the names of that graph's inputs: `class_matrix` (D, K), logit scale included, and
    `class_bias` (K,) where `logits = embedding · class_matrix + class_bias`; other structures have
    others. All of them are float32 or int64, with K on one axis.
    """

    inputs: Mapping[str, NDArray[Any]]
    embeddings: Floats | None  # (K, D), L2-normalised; None where a class has none of its own
    graph: str = "image"  # the role of the graph that takes them

    @classmethod
    def from_embeddings(
        cls,
        embeddings: Floats,
        *,
        logit_scale: float,
        bias: Floats | None = None,
        graph: str = "image",
    ) -> "ClassBank":
        """R5: `W = s · n(t)ᵀ`, by default no bias. `embeddings` (K, D) are L2-normalised."""
        matrix = np.ascontiguousarray((logit_scale * embeddings).T, dtype=np.float32)
        bias = np.zeros(len(embeddings), np.float32) if bias is None else bias
        inputs = {CLASS_MATRIX: matrix, CLASS_BIAS: bias}
        return cls(inputs=inputs, embeddings=embeddings, graph=graph)

    def host_logits(self, embeddings: Floats) -> Floats:
        """`embedding · class_matrix + class_bias`, (B, D) → (B, K)."""
        logits: Floats = embeddings @ self.inputs[CLASS_MATRIX] + self.inputs[CLASS_BIAS]
        return logits


@dataclass(frozen=True, kw_only=True)
class Golden:
    """Inputs with the answers this bundle must give, to prove an engine right before it serves.

    `further` has the embeddings of image graphs that the bundle's own classes do not need, by role.
    """

    pixels: NDArray[np.uint8]  # (8, 3, S, S)
    embeddings: Floats  # (8, D)
    logits: Floats  # (8, K), before temperature
    further: Mapping[str, Floats] = field(default_factory=dict)  # (8, D) each


@dataclass(frozen=True, kw_only=True)
class BundleContents:
    """A whole bundle in memory, as the exporter makes it."""

    manifest: Manifest
    graphs: Mapping[str, bytes]  # file name -> ONNX
    prompts: Mapping[str, Floats]  # every prompt tensor of the checkpoint, text.prompts (J, m, d_t)
    bank: ClassBank
    golden: Golden
    vocabulary: bytes


class Bundle:
    """A bundle on disk. Every file is hashed against SHA256SUMS when it is read."""

    def __init__(self, path: Path) -> None:
        """Open the folder and read its manifest. Raises BundleError or IntegrityError."""
        self.path = path
        self.files = SealedFolder(path)
        self.manifest = _decode_manifest(self.files.read(MANIFEST), path)

    @property
    def digest(self) -> str:
        """SHA-256 that names the whole content."""
        return self.files.digest

    def graph_path(self, role: str) -> Path:
        """Path of a graph whose bytes were just hashed; `role` is a key of `manifest.graphs`."""
        if role not in self.manifest.graphs:
            raise BundleError(
                f"bundle {self.path} has no {role!r} graph; "
                f"it has {', '.join(self.manifest.graphs)}"
            )
        return self.files.checked_path(self.manifest.graphs[role].file)

    def class_bank(self) -> ClassBank:
        """The classifier baked at export."""
        inputs = self._tensors(CLASSES)
        embeddings = inputs.pop(CLASS_EMBEDDINGS, None)
        needed = (CLASS_MATRIX, CLASS_BIAS) if self.manifest.host_head else ()
        if missing := [name for name in needed if name not in inputs]:
            raise BundleError(f"{self.path / CLASSES} has no tensor {missing[0]!r}")
        return ClassBank(inputs=inputs, embeddings=embeddings, graph=self.manifest.class_graph)

    def prompts(self) -> dict[str, Floats]:
        """Every prompt tensor of the checkpoint; the text graph needs some for new classes."""
        return self._tensors(PROMPTS)

    def vocabulary(self) -> bytes:
        """The tokenizer's merge table, gzipped."""
        return self.files.read(VOCABULARY)

    def golden(self) -> Golden:
        """The inputs and answers for an engine's self-test."""
        try:
            with np.load(io.BytesIO(self.files.read(GOLDEN)), allow_pickle=False) as arrays:
                return Golden(
                    pixels=arrays["pixels"],
                    embeddings=arrays["embeddings"],
                    logits=arrays["logits"],
                    further={
                        name.removeprefix(FURTHER): arrays[name]
                        for name in arrays.files
                        if name.startswith(FURTHER)
                    },
                )
        except (ValueError, KeyError, OSError, EOFError, BadZipFile) as error:
            raise BundleError(f"{self.path / GOLDEN} cannot be read: {error}") from error

    def contents(self) -> BundleContents:
        """All of it in memory, every file checked: what `write_bundle` was given."""
        files = {info.file for info in self.manifest.graphs.values()}
        return BundleContents(
            manifest=self.manifest,
            graphs={file: self.files.read(file) for file in sorted(files)},
            prompts=self.prompts(),
            bank=self.class_bank(),
            golden=self.golden(),
            vocabulary=self.vocabulary(),
        )

    def _tensors(self, name: str) -> dict[str, Floats]:
        try:
            return from_safetensors(self.files.read(name))
        except SafetensorError as error:
            raise BundleError(f"{self.path / name} cannot be read: {error}") from error


def check_target(target: Path, *, replace: bool) -> None:
    """Raise BundleError if a bundle could not be written to `target`; to be told before the work.

    With `replace`, only a bundle or an empty folder may be replaced, never somebody's other files.
    """
    if not os.path.lexists(target):
        nearest = next(parent for parent in target.absolute().parents if parent.exists())
        if not nearest.is_dir():
            raise BundleError(f"{target} cannot be written: {nearest} is not a folder")
        return
    if not replace:
        raise BundleError(
            f"{target} exists already. Choose another --output, or pass --force to replace it"
        )
    is_folder = target.is_dir() and not target.is_symlink()
    if not is_folder or (any(target.iterdir()) and not (target / CHECKSUMS).exists()):
        raise BundleError(
            f"{target} is no bundle, so --force does not replace it. Choose another --output"
        )


def write_bundle(contents: BundleContents, target: Path, *, replace: bool) -> None:
    """Write a bundle whole or not at all; BundleError if `target` exists and not `replace`."""
    files = bundle_files(contents)
    with open_target(target, replace=replace) as staging:
        for name, content in files.items():
            (staging / name).write_bytes(content)


@contextmanager
def open_target(target: Path, *, replace: bool) -> Iterator[Path]:
    """A staging folder for `target`; an existing target is an error that says what to do."""
    check_target(target, replace=replace)
    try:
        with staged_folder(target, replace=replace) as staging:
            yield staging
    except FileExistsError:
        raise BundleError(f"{target} was written by another process meanwhile") from None
    except OSError as error:
        raise BundleError(
            f"{target} cannot be written: {error.strerror}. Nothing was left behind. Make room, or "
            "choose another --output"
        ) from error


def write_calibrated(
    bundle: Bundle,
    target: Path,
    *,
    temperature: float,
    reject_threshold: float | None,
    class_thresholds: tuple[float, ...],
    step: dict[str, Any],
    replace: bool,
) -> None:
    """Write a copy of `bundle` that knows these numbers, `step` added to its history.

    Every file of the original is checked on the way. Raises BundleError or IntegrityError.
    """
    manifest = msgspec.structs.replace(
        bundle.manifest,
        temperature=temperature,
        reject_threshold=reject_threshold,
        class_thresholds=class_thresholds,
        history=(*bundle.manifest.history, step),
    )
    files = {name: bundle.files.read(name) for name in bundle.files.names if name != MANIFEST}
    files[MANIFEST] = _encode_manifest(manifest)
    with open_target(target, replace=replace) as staging:
        for name, content in {**files, CHECKSUMS: seal(files)}.items():
            (staging / name).write_bytes(content)


def bundle_files(contents: BundleContents) -> dict[str, bytes]:
    """File name → bytes of a complete bundle, SHA256SUMS last."""
    bank, golden = contents.bank, contents.golden
    archive = io.BytesIO()
    further: dict[str, Any] = {f"{FURTHER}{role}": rows for role, rows in golden.further.items()}
    np.savez(
        archive,
        pixels=golden.pixels,
        embeddings=golden.embeddings,
        logits=golden.logits,
        **further,
    )
    files = {
        MANIFEST: _encode_manifest(contents.manifest),
        **contents.graphs,
        PROMPTS: to_safetensors(dict(contents.prompts)),
        CLASSES: to_safetensors(class_tensors(bank)),
        GOLDEN: archive.getvalue(),
        VOCABULARY: contents.vocabulary,
    }
    return {**files, CHECKSUMS: seal(files)}


def class_tensors(bank: ClassBank) -> dict[str, NDArray[Any]]:
    """A bank as the tensors of a file."""
    embeddings = {} if bank.embeddings is None else {CLASS_EMBEDDINGS: bank.embeddings}
    return {**embeddings, **bank.inputs}


def _encode_manifest(manifest: Manifest) -> bytes:
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def _decode_manifest(content: bytes, path: Path) -> Manifest:
    try:
        found = msgspec.json.decode(content).get("schema_version")
        if found != SCHEMA_VERSION:
            raise BundleError(
                f"bundle {path} has schema version {found!r}; this version reads {SCHEMA_VERSION}. "
                "Use the vlp-deploy version that exported it, or export again"
            )
        manifest = msgspec.json.decode(content, type=Manifest)
    except (msgspec.DecodeError, AttributeError) as error:
        raise BundleError(f"{path / MANIFEST} is not a manifest: {error}") from error
    return manifest
