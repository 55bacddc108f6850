"""Training state as one safetensors file: parameters, their average, optimisers and the step.

Everything random is drawn from generators seeded by the step, so nothing else is needed to resume.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from vlp_deploy.errors import TrainingError
from vlp_deploy.files import write_atomic


@dataclass(frozen=True, kw_only=True)
class StoredState:
    """What a file of `TrainingState.save` holds."""

    step: int
    recipe: dict[str, Any]
    tensors: dict[str, Tensor]


def read_state(path: Path) -> StoredState:
    """Read a file of `TrainingState.save`.

    Raises:
        TrainingError: it is none, or it is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        step, recipe = int(metadata["step"]), json.loads(metadata["recipe"])
    except (SafetensorError, KeyError) as error:
        raise TrainingError(
            f"{path} is not the state of a training: {error!r}. Delete it to train this tower anew"
        ) from error
    return StoredState(step=step, recipe=recipe, tensors=tensors)


class TrainingState:
    """Parameters under their names, optimisers under theirs, and the number of steps taken.

    `average` follows the parameters as an exponential average over about `horizon` steps, and from
    the first step as a plain one: what is evaluated and released while the rate is high.
    """

    def __init__(
        self,
        *,
        parameters: Mapping[str, Tensor],
        optimisers: Mapping[str, torch.optim.Optimizer],
        horizon: int = 100,
    ) -> None:
        self.parameters, self.optimisers = dict(parameters), dict(optimisers)
        self.average = {name: value.detach().clone() for name, value in self.parameters.items()}
        self.horizon = horizon
        self.step = 0

    @torch.no_grad()
    def apply(self, gradients: Sequence[Tensor], rates: Mapping[str, float]) -> None:
        """Step every optimiser along `gradients` (one a parameter, in order) at its rate."""
        for parameter, gradient in zip(self.parameters.values(), gradients, strict=True):
            parameter.grad = gradient
        for name, optimiser in self.optimisers.items():
            for group in optimiser.param_groups:
                group["lr"] = rates[name]
            optimiser.step()
        self.step += 1
        share = 1 / min(self.step, self.horizon)
        for name, average in self.average.items():
            average.lerp_(self.parameters[name], share)

    def save(self, path: Path, recipe: str) -> None:
        """Write the state atomically; `recipe` (JSON) goes into the file's metadata."""
        tensors = {f"parameter.{name}": value.detach() for name, value in self.parameters.items()}
        tensors |= {f"average.{name}": value for name, value in self.average.items()}
        for label, optimiser in self.optimisers.items():
            for number, state in optimiser.state_dict()["state"].items():
                for key, value in state.items():
                    tensors[f"optimiser.{label}.{number}.{key}"] = torch.as_tensor(value)
        content = {name: value.contiguous() for name, value in tensors.items()}
        write_atomic(path, save(content, metadata={"step": str(self.step), "recipe": recipe}))

    @torch.no_grad()
    def load(self, path: Path, recipe: str) -> None:
        """Continue from a file written by `save`, with the same parameters and optimisers.

        Raises:
            TrainingError: the file was written by a training with another recipe, or is damaged.
        """
        stored = read_state(path)
        _check_recipe(path, stored.recipe, json.loads(recipe))
        self.step, tensors = stored.step, stored.tensors
        for name, parameter in self.parameters.items():
            parameter.copy_(tensors[f"parameter.{name}"])
            self.average[name].copy_(tensors[f"average.{name}"])
        for label, optimiser in self.optimisers.items():
            start = f"optimiser.{label}."
            states: dict[int, dict[str, Tensor]] = {}
            for name in (name for name in tensors if name.startswith(start)):
                number, key = name.removeprefix(start).split(".", 1)
                states.setdefault(int(number), {})[key] = tensors[name]
            optimiser.load_state_dict({**optimiser.state_dict(), "state": states})


def _check_recipe(path: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    names = [name for name in {**stored, **wanted} if stored.get(name) != wanted.get(name)]
    if names:
        found = ", ".join(f"{name} {stored.get(name)!r}" for name in names)
        expected = ", ".join(f"{name} {wanted.get(name)!r}" for name in names)
        raise TrainingError(
            f"{path} is of a training with {found}; this one has {expected}. "
            "Give the same options and inputs to go on with it, or another --output to begin anew"
        )


def finite(loss: float, step: int, checkpoint: Path) -> float:
    """Return `loss` after `step` steps. Raises TrainingError if it is NaN or infinite."""
    if math.isfinite(loss):
        return loss
    raise TrainingError(
        f"the loss at step {step} is {loss}: the training diverged. {checkpoint} keeps the "
        "step that was saved before. Begin anew with another --output and a lower --rate"
    )
