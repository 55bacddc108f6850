"""Plans that were built before, kept in `$VLP_CACHE/tensorrt/KEY/` and checked when they are read.

A plan is a bare `model.plan`; `model.json` beside it says what it was built from and for. KEY is
the hash of all that, so that a plan of another GPU, driver or version is never found, and one that
was damaged or exchanged is told by its own hash.
"""

import fcntl
import hashlib
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from vlp_deploy.cache import cache_folder
from vlp_deploy.engines.tensorrt.builder import BuildReport
from vlp_deploy.engines.tensorrt.profiles import Profile
from vlp_deploy.errors import EngineError
from vlp_deploy.files import sha256_of, staged_folder
from vlp_deploy.formats.architecture import Record

PLAN, SIDECAR = "model.plan", "model.json"
FLAGS = ("strongly-typed", "no-tf32")  # how the builder is set, see `builder`


class PlanTarget(Record, frozen=True, kw_only=True):
    """All that a plan depends on."""

    engine: str  # tensorrt or tensorrt-rtx
    version: str
    graph: str  # sha256 of the ONNX file
    compute_capability: str
    device: str = ""  # the GPU's name; a plan of TensorRT for RTX serves all of a capability
    driver: str = ""
    profiles: tuple[Profile, ...] = ()  # as asked for; none: the defaults
    flags: tuple[str, ...] = FLAGS

    @property
    def key(self) -> str:
        """What its folder is called."""
        return _hash(self)

    @property
    def timing_key(self) -> str:
        """What the measurements of kernels, which all graphs share, are called."""
        return _hash(msgspec.structs.replace(self, graph="", profiles=()))


class Sidecar(Record, frozen=True, kw_only=True):
    """What is known of a plan."""

    target: PlanTarget
    sha256: str
    report: BuildReport


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A plan whose bytes were just checked."""

    folder: Path
    content: bytes
    report: BuildReport
    fresh: bool  # built just now


def plans_folder() -> Path:
    """Where all plans are."""
    return cache_folder() / "tensorrt"


def plan_for(target: PlanTarget, build: Callable[[Path], BuildReport]) -> Plan:
    """The plan from the cache; else `build` writes one to the path it is given.

    Of several processes that want the same plan, one builds and the others wait. Warns of a plan
    that is damaged. Raises EngineError if building fails, or the plan cannot be kept; then nothing
    is left behind.
    """
    folder = plans_folder() / target.key
    with suppress(OSError, DamagedPlanError):  # plans that were carried may be read-only
        return _read(folder, target, fresh=False)
    try:
        return _built(folder, target, build)
    except OSError as error:
        raise EngineError(
            f"plans cannot be kept in {plans_folder()}: {error}. Name another folder as VLP_CACHE"
        ) from error


def _built(folder: Path, target: PlanTarget, build: Callable[[Path], BuildReport]) -> Plan:
    """A plan that is made now, unless another process was quicker."""
    with _lock(folder):
        try:
            return _read(folder, target, fresh=False)
        except FileNotFoundError:
            pass
        except DamagedPlanError as damage:
            warnings.warn(f"{folder / PLAN} is built again: {damage}", stacklevel=2)
        with staged_folder(folder, replace=True) as staging:
            report = build(staging / PLAN)
            sidecar = Sidecar(target=target, sha256=sha256_of(staging / PLAN), report=report)
            (staging / SIDECAR).write_bytes(msgspec.json.format(msgspec.json.encode(sidecar)))
        return _read(folder, target, fresh=True)


def forget(target: PlanTarget) -> None:
    """Remove a plan that turned out to be of no use."""
    folder = plans_folder() / target.key
    with _lock(folder):
        shutil.rmtree(folder, ignore_errors=True)


def _hash(target: PlanTarget) -> str:
    return hashlib.sha256(msgspec.json.encode(target)).hexdigest()[:32]


class DamagedPlanError(Exception):
    """A plan that is there but is not what was built; the message says how one can tell."""


def _read(folder: Path, target: PlanTarget, *, fresh: bool) -> Plan:
    """Raises FileNotFoundError without a plan, DamagedPlanError for one that must not be used."""
    content = (folder / PLAN).read_bytes()
    try:
        sidecar = msgspec.json.decode((folder / SIDECAR).read_bytes(), type=Sidecar)
    except (OSError, msgspec.DecodeError) as error:
        raise DamagedPlanError(f"{SIDECAR} cannot be read: {error}") from None
    if sidecar.target != target:
        raise DamagedPlanError("it was built for something else")
    found = hashlib.sha256(content).hexdigest()
    if found != sidecar.sha256:
        raise DamagedPlanError(f"its sha256 is {found[:12]}…, expected {sidecar.sha256[:12]}…")
    return Plan(folder=folder, content=content, report=sidecar.report, fresh=fresh)


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """One process at a time; the kernel lets go if it dies."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder.with_suffix(".lock"), os.O_CREAT | os.O_RDWR, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
