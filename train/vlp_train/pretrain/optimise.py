"""Turn gradients into steps: Muon for the transformer's matrices, AdamW for everything else.

Muon (Jordan 2024, https://kellerjordan.github.io/posts/muon/) replaces the momentum of a matrix by
the nearest semi-orthogonal matrix, found by a quintic Newton-Schulz iteration. Matrices of one
shape go through the iteration together; packed query, key and value projections count as three.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

_QUINTIC = (3.4445, -4.7750, 2.0315)
_STEPS = 5


def orthogonalise(matrices: Tensor, precision: torch.dtype = torch.float32) -> Tensor:
    """Map (N, a, b) to nearly semi-orthogonal matrices (N, a, b), singular values about 1."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).to(precision)
    a, b, c = _QUINTIC
    for _ in range(_STEPS):
        gram = x @ x.mT
        x = a * x + torch.baddbmm(gram, gram, gram, beta=b, alpha=c) @ x
    result: Tensor = x.mT if tall else x
    return result.to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised; the update has the root mean square of an AdamW step (0.2)."""

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
        precision: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self._precision = precision  # of the iteration

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every matrix once."""
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
            for parameter in group["params"]:
                momentum = self._momentum(parameter, group["momentum"])
                rows, columns = parameter.shape
                parts = 3 if rows == 3 * columns else 1
                for weight, update in zip(
                    parameter.chunk(parts), momentum.chunk(parts), strict=True
                ):
                    by_shape.setdefault((rows // parts, columns), []).append((weight, update))
            for shape, pairs in by_shape.items():
                updates = torch.stack([update for _, update in pairs])
                directions = orthogonalise(updates, self._precision)
                scale = 0.2 * math.sqrt(max(shape))
                for (weight, _), direction in zip(pairs, directions, strict=True):
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    weight.add_(direction, alpha=-group["lr"] * scale)

    def _momentum(self, parameter: nn.Parameter, decay: float) -> Tensor:
        """Return the Nesterov momentum after taking in the gradient."""
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        gradient = parameter.grad
        if gradient is None:
            raise RuntimeError(
                "Muon.step needs a gradient for every parameter; call backward first"
            )
        state["momentum"].lerp_(gradient, 1 - decay)
        nesterov: Tensor = gradient.lerp(state["momentum"], decay)
        return nesterov
