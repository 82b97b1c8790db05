"""Many small ReLU networks trained as one: P networks, one X, one order of batches.

The first layer is one product `(B, D) @ (D, P·H)`; later layers are batched products. Networks share the order of
rows and nothing else: each has its own initial weights, dropout masks, early stopping and best epoch, and leaves the
stack when it has stopped.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probing.seeds import child_seed

_SMALLEST_BATCH = 16
_STEPS_AN_EPOCH = 50


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters of one training run; see `MLPProbe`."""

    hidden: int
    layers: int
    dropout: float
    learning_rate: float
    weight_decay: float
    batch_size: int
    max_epochs: int
    patience: int


@dataclass
class FittedNetwork:
    """The best epoch of one network: weights and biases by layer, float32."""

    arrays: list[NDArray[np.float32]]
    converged: bool
    best_epoch: int
    dev_losses: list[float]


def train(
    X: NDArray[np.float32],
    targets: Tensor,
    dev_X: NDArray[np.float32],
    dev_targets: Tensor,
    outputs: list[int],
    seeds: list[int],
    recipe: Recipe,
) -> list[FittedNetwork]:
    """Train P networks.

    Args:
        X: `(N, D)` standardised rows.
        targets: `(P, N)` class codes (int64), or real values (float32).
        dev_X: `(N', D)` standardised rows for early stopping.
        dev_targets: `(P, N')`; a code of -1 is not scored.
        outputs: classes of each network (1 for real targets); logits beyond are masked.
        seeds: one a network.
        recipe: hyper-parameters.
    """  # fmt: skip
    rows, held_out = torch.from_numpy(X), torch.from_numpy(dev_X)
    parameters = _initial(X.shape[1], outputs, seeds, recipe)
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in parameters]
    mask = _mask(outputs)
    order = torch.Generator().manual_seed(child_seed(0, "order", *seeds))
    noise = torch.Generator().manual_seed(child_seed(0, "dropout", *seeds))
    best = [FittedNetwork([], False, 0, []) for _ in seeds]
    lowest = [float("inf")] * len(seeds)
    active = list(range(len(seeds)))
    batch = min(recipe.batch_size, max(_SMALLEST_BATCH, len(X) // _STEPS_AN_EPOCH))
    step = 0
    for epoch in range(1, recipe.max_epochs + 1):
        for picked in torch.split(torch.randperm(len(X), generator=order), batch):
            step += 1
            _step(parameters, moments, rows[picked], targets[:, picked], mask, step, recipe, noise)
        losses = _dev_losses(parameters, held_out, dev_targets, mask)
        going = []
        for place, p in enumerate(active):
            best[p].dev_losses.append(losses[place])
            if losses[place] < lowest[p]:
                lowest[p], best[p].best_epoch = losses[place], epoch
                best[p].arrays = _copy(parameters, place, outputs[p])
            elif epoch - best[p].best_epoch >= recipe.patience:
                best[p].converged = True
                continue
            going.append(place)
        if not going:
            break
        if len(going) < len(active):
            active = [active[place] for place in going]
            targets, dev_targets, mask = targets[going], dev_targets[going], mask[going]
            parameters = _take(parameters, going)
            moments = list(zip(*(_take(list(kind), going) for kind in zip(*moments, strict=True)), strict=True))
    for p, network in enumerate(best):
        if not network.arrays:  # the dev loss was never finite
            network.arrays = _copy(parameters, active.index(p), outputs[p])
    return best


def forward(parameters: list[Tensor], X: Tensor, dropout: float = 0.0, noise: torch.Generator | None = None) -> Tensor:
    """`(P, B, K)` outputs of P networks on `(B, D)` rows."""
    first, bias = parameters[0], parameters[1]
    width, count, hidden = first.shape
    h = (X @ first.reshape(width, count * hidden)).view(len(X), count, hidden) + bias
    h = h.transpose(0, 1)
    for weights, bias in zip(parameters[2::2], parameters[3::2], strict=True):
        h = torch.relu(h)
        if dropout > 0 and noise is not None:
            h = h * (torch.rand(h.shape, generator=noise) >= dropout) / (1 - dropout)
        h = torch.baddbmm(bias.unsqueeze(1), h, weights)
    return h


def _initial(width: int, outputs: list[int], seeds: list[int], recipe: Recipe) -> list[Tensor]:
    """Uniform ±1/√(fan in), each network from its own seed: first weights `(D, P, H)`, later ones `(P, H, ·)`."""
    sizes = [width, *[recipe.hidden] * recipe.layers, max(outputs)]
    networks = []
    for seed in seeds:
        source = torch.Generator().manual_seed(child_seed(seed, "weights"))
        arrays = []
        for fan_in, fan_out in pairwise(sizes):
            bound = fan_in**-0.5
            arrays.append(torch.empty(fan_in, fan_out).uniform_(-bound, bound, generator=source))
            arrays.append(torch.empty(fan_out).uniform_(-bound, bound, generator=source))
        networks.append(arrays)
    stacked = [torch.stack(arrays) for arrays in zip(*networks, strict=True)]
    stacked[0] = stacked[0].transpose(0, 1).contiguous()
    return [p.requires_grad_() for p in stacked]


def _mask(outputs: list[int]) -> Tensor:
    """`(P, 1, K)`: 0 for a network's own classes, -inf for those it has not."""
    columns = torch.arange(max(outputs))
    own = columns.unsqueeze(0) < torch.tensor(outputs).unsqueeze(1)
    return torch.where(own, 0.0, -torch.inf).unsqueeze(1)


def _losses(output: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """`(P,)` mean log loss, or mean squared error for real targets."""
    if targets.dtype.is_floating_point:
        return (output.squeeze(-1) - targets).square().mean(1)
    scored = targets >= 0
    chosen = torch.log_softmax(output + mask, -1).gather(-1, targets.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    return -(chosen * scored).sum(1) / scored.sum(1)


def _step(
    parameters: list[Tensor], moments: list[tuple[Tensor, Tensor]], X: Tensor, targets: Tensor, mask: Tensor,
    step: int, recipe: Recipe, noise: torch.Generator,
) -> None:  # fmt: skip
    """One AdamW step. The losses are summed over networks, so each sees the gradient of its own."""
    loss = _losses(forward(parameters, X, recipe.dropout, noise), targets, mask).sum()
    gradients = torch.autograd.grad(loss, parameters)
    rate, decay = recipe.learning_rate, recipe.weight_decay
    with torch.no_grad():
        for p, g, (m, v) in zip(parameters, gradients, moments, strict=True):
            m.lerp_(g, 0.1)
            v.mul_(0.999).addcmul_(g, g, value=0.001)
            p.mul_(1 - rate * decay)
            p.addcdiv_(m, (v / (1 - 0.999**step)).sqrt_().add_(1e-8), value=-rate / (1 - 0.9**step))


@torch.no_grad()
def _dev_losses(parameters: list[Tensor], X: Tensor, targets: Tensor, mask: Tensor) -> list[float]:
    total, seen = torch.zeros(len(targets), dtype=torch.float64), torch.zeros(len(targets), dtype=torch.float64)
    for rows, wanted in zip(torch.split(X, 4096), torch.split(targets, 4096, dim=1), strict=True):
        counted = (wanted >= 0).sum(1).double() if not wanted.dtype.is_floating_point else float(len(rows))
        part = _losses(forward(parameters, rows), wanted, mask).double()
        total += torch.where(torch.as_tensor(counted > 0), part * counted, 0.0)
        seen += counted
    losses: list[float] = (total / seen).tolist()
    return losses


def _take(arrays: list[Tensor], going: list[int]) -> list[Tensor]:
    """The networks that go on; the first array has them on its second axis."""
    kept = [array.detach()[:, going] if i == 0 else array.detach()[going] for i, array in enumerate(arrays)]
    return [new.contiguous().requires_grad_(old.requires_grad) for new, old in zip(kept, arrays, strict=True)]


def _copy(parameters: list[Tensor], place: int, outputs: int) -> list[NDArray[np.float32]]:
    """A copy, not a view, of one network's weights, without the masked outputs."""
    arrays = [p.detach()[:, place] if i == 0 else p.detach()[place] for i, p in enumerate(parameters)]
    arrays[-2], arrays[-1] = arrays[-2][:, :outputs], arrays[-1][:outputs]
    return [array.clone().contiguous().numpy() for array in arrays]
