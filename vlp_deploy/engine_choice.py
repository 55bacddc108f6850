"""The engine that serves a bundle on this machine: of those that give its own answers, the fastest.

What was measured is kept in the cache, so that only the first start pays. An engine that was asked
for by name is used or is an error; only `auto` falls back, to engines that have passed the bundle's
self-test.
"""

import hashlib
import math
import os
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from vlp_deploy import __version__
from vlp_deploy.cache import cache_folder
from vlp_deploy.classes.coupled import fixed_batch
from vlp_deploy.classes.towers import Towers
from vlp_deploy.engines import AUTO, ENGINES, candidates, engine_class
from vlp_deploy.engines.base import EngineOptions
from vlp_deploy.engines.memory import give_back
from vlp_deploy.engines.support import refuse_unsupported
from vlp_deploy.errors import EngineError, MissingExtraError, VlpError
from vlp_deploy.files import write_atomic
from vlp_deploy.formats.architecture import Record
from vlp_deploy.formats.bundle import Bundle, ClassBank
from vlp_deploy.processor import processor_name

BATCHES = (1, 2)  # one image and several; every further one of a ViT-B/16 would take 10 MB
TURNS = 2  # of each engine, so that a busy moment of the machine does not decide
SECONDS = 0.2  # of one turn at one batch size
ROUNDS = range(2, 10)  # calls: so few where one takes long, so many where it does not
Times = dict[int, float]  # milliseconds by batch size
NOT_HERE = (EngineError, MissingExtraError)  # why an engine is not used, under `auto`


class Conditions(Record, frozen=True, kw_only=True):
    """All that the fastest engine may depend on."""

    bundle: str
    engines: dict[str, str]  # candidates -> versions
    processor: str
    cores: int
    threads: int | None
    device: str
    release: str = __version__  # which sets the engines up


class Choice(Record, frozen=True, kw_only=True):
    """What was found out about the candidates, as kept in the cache."""

    conditions: Conditions
    milliseconds: dict[str, Times]  # engines that passed, the fastest first -> by batch
    refused: dict[str, str]  # the others -> why

    def __str__(self) -> str:
        """`openvino (2.1 ms at batch 1, 4 ms at batch 2), onnx (…)`."""
        return ", ".join(
            f"{name} ({', '.join(f'{ms:.3g} ms at batch {n}' for n, ms in times.items())})"
            for name, times in self.milliseconds.items()
        )


def load_towers(bundle: Bundle, bank: ClassBank, engine: str, options: EngineOptions) -> Towers:
    """A bundle's graphs in the engine of this name, or in the fastest; it has passed the self-test.

    Raises what loading the engine raises; for `auto` only if no engine can serve the bundle.
    """
    options = replace(options, precision=bundle.manifest.precision)
    if engine != AUTO:
        refuse_unsupported(engine, options.precision)
        return _proven(bundle, bank, engine, options)
    names = _candidates(bundle, options)
    if len(names) == 1:
        return _proven(bundle, bank, names[0], options)
    conditions = _conditions(bundle, names, options)
    choice = _recall(conditions)
    if choice is None:
        return _fastest(bundle, bank, conditions, options)
    return _first_that_works(bundle, bank, choice, options)


def known_choice(bundle: Bundle, options: EngineOptions) -> Choice | Sequence[str]:
    """What `auto` would use: what was measured here before, else the candidates to be measured."""
    options = replace(options, precision=bundle.manifest.precision)
    names = _able(bundle, options)
    return _recall(_conditions(bundle, names, options)) or names


def _candidates(bundle: Bundle, options: EngineOptions) -> list[str]:
    names = _able(bundle, options)
    made_for = bundle.manifest.engine
    # onnx is what every bundle can be run by, so nobody need be told that another engine does
    if made_for not in (*names, "onnx") and made_for in ENGINES:
        warnings.warn(
            f"this bundle was exported for {made_for}, which is not installed here or does not run "
            f"on {options.device}; {' or '.join(names)} runs it instead",
            stacklevel=2,
        )
    return names


def _able(bundle: Bundle, options: EngineOptions) -> list[str]:
    """Engines that could run a bundle; one that builds for minutes only if the bundle is for it."""
    manifest = bundle.manifest
    suffix = Path(manifest.graphs[manifest.class_graph].file).suffix
    names = candidates(suffix, options)
    wanted = [n for n in names if n == manifest.engine or not engine_class(n).builds]
    return wanted or names


def _conditions(bundle: Bundle, names: Sequence[str], options: EngineOptions) -> Conditions:
    return Conditions(
        bundle=bundle.digest,
        engines={name: engine_class(name).installed_version() for name in names},
        processor=processor_name(),
        cores=len(os.sched_getaffinity(0)),
        threads=options.threads,
        device=options.device,
    )


def _proven(bundle: Bundle, bank: ClassBank, name: str, options: EngineOptions) -> Towers:
    towers = Towers(bundle, name, options)
    try:
        towers.prove(bank)
    except VlpError:
        towers.close()
        raise
    return towers


def _first_that_works(
    bundle: Bundle, bank: ClassBank, choice: Choice, options: EngineOptions
) -> Towers:
    """The fastest of those that passed once, if it still does. Raises what the last one raised."""
    *others, last = choice.milliseconds
    for name in others:
        try:
            return _proven(bundle, bank, name, options)
        except NOT_HERE as error:
            _warn(name, error)
    return _proven(bundle, bank, last, options)


def _fastest(
    bundle: Bundle, bank: ClassBank, conditions: Conditions, options: EngineOptions
) -> Towers:
    """Measure all candidates, keep what was found, and load the first of them.

    Raises what the last of them raised if none passes.
    """
    times, refused = _measured(bundle, bank, list(conditions.engines), options)
    if not times:
        raise refused[[*conditions.engines][-1]]
    choice = Choice(
        conditions=conditions,
        milliseconds=dict(sorted(times.items(), key=lambda item: math.prod(item[1].values()))),
        refused={name: str(error) for name, error in refused.items()},
    )
    with suppress(OSError):  # a cache that cannot be written to costs time, not answers
        write_atomic(_path(conditions), msgspec.json.format(msgspec.json.encode(choice)) + b"\n")
    return _first_that_works(bundle, bank, choice, options)


def _measured(
    bundle: Bundle, bank: ClassBank, names: Sequence[str], options: EngineOptions
) -> tuple[dict[str, Times], dict[str, Exception]]:
    """The fastest calls of those that pass, and what the others raised.

    Engines take turns, and none is in memory out of its turn. The last comes first: OpenVINO takes
    most while it compiles, when no library of another engine should be there yet.
    """
    batches = _batches(bundle)
    times: dict[str, Times] = {}
    refused: dict[str, Exception] = {}
    for name in TURNS * tuple(reversed(names)):
        if name in refused:
            continue
        try:
            found = _turn(bundle, bank, name, options, batches)
        except NOT_HERE as error:
            refused[name] = error
            times.pop(name, None)
            _warn(name, error)
            continue
        before = times.get(name, found)
        times[name] = {size: min(ms, before[size]) for size, ms in found.items()}
    return times, refused


def _turn(
    bundle: Bundle,
    bank: ClassBank,
    name: str,
    options: EngineOptions,
    batches: Sequence[NDArray[np.uint8]],
) -> Times:
    """Load an engine, prove it, time it at every batch size, and let go of it."""
    towers = _proven(bundle, bank, name, options)
    try:
        return {len(pixels): _quickest(towers, bank, pixels) for pixels in batches}
    finally:
        towers.close()
        give_back()


def _quickest(towers: Towers, bank: ClassBank, pixels: NDArray[np.uint8]) -> float:
    """Milliseconds of the fastest of some calls; other programs only ever add to it."""
    towers.run_image(pixels, bank)  # the first call makes room, or finds none
    quickest, deadline = math.inf, time.perf_counter() + SECONDS
    for done in range(ROUNDS.stop):
        if done >= ROUNDS.start and time.perf_counter() > deadline:
            break
        start = time.perf_counter()
        towers.run_image(pixels, bank)
        quickest = min(quickest, 1000 * (time.perf_counter() - start))
    return quickest


def _batches(bundle: Bundle) -> list[NDArray[np.uint8]]:
    """What engines are timed on: golden images, over again where they are few."""
    golden = bundle.golden().pixels
    batch = fixed_batch(bundle.manifest.structure)
    sizes = BATCHES if batch is None else (batch,)
    return [np.resize(golden, (size, *golden.shape[1:])) for size in sizes]


def _warn(name: str, error: Exception) -> None:
    warnings.warn(f"engine {name} is left out: {error}", stacklevel=2)


def _recall(conditions: Conditions) -> Choice | None:
    """What was measured before; None if nothing was, or it cannot be read, or fits no more."""
    try:
        choice = msgspec.json.decode(_path(conditions).read_bytes(), type=Choice)
    except (OSError, msgspec.DecodeError):
        return None
    usable = choice.milliseconds and choice.milliseconds.keys() <= conditions.engines.keys()
    return choice if usable and choice.conditions == conditions else None


def _path(conditions: Conditions) -> Path:
    digest = hashlib.sha256(msgspec.json.encode(conditions)).hexdigest()
    return cache_folder() / "engine-choices" / f"{digest}.json"
