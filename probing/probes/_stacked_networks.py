"""M small ReLU networks of one seed on one X: their parameters, one step of Adam, and their losses.

The networks differ in their targets only: they start from the same weights, read the same batches and drop the same
hidden units, so a task and its controls differ in nothing but labels. Activations are `(M, H, B)`: the first layer of
all networks is a single product `(M·H, D) @ (D, B)`, and later layers run along the long last axis. Gradients are
computed by hand, since recording the graph at every step would cost as much as the products of a narrow network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.adamw import adamw

from probing.seeds import child_seed

_ABSENT = -1e30  # bias of a class that a network has not: its probability and its gradients are exactly 0
_EVALUATED = 1024


@dataclass
class Networks:
    """Holds the parameters of M networks on one device, with Adam's moments of each.

    Attributes:
        parameters: weights `(M, out, in)` and bias `(M, out)` of each layer in turn.
        means, squares: Adam's running moments, of the shapes of the parameters.
        steps: number of steps taken so far.
        low: whether the first layer's products are in bfloat16 (sums, weights and moments are float32).
        partial: whether networks are trained on parts of the rows; rows with class code -1 then have no effect.
    """

    parameters: list[Tensor]
    means: list[Tensor]
    squares: list[Tensor]
    low: bool = False
    steps: int = 0
    partial: bool = False

    @classmethod
    def start(
        cls,
        width: int,
        hidden: Sequence[int],
        outputs: Sequence[int],
        seed: int,
        *,
        low: bool,
        partial: bool = False,
        device: torch.device | None = None,
    ) -> Networks:
        """Return networks with weights and biases drawn uniformly between ±1/√(fan in), the same for each network as if
        it were trained alone, and the same on every device.
        """
        parameters = []
        for layer, (fan_in, fan_out) in enumerate(pairwise([width, *hidden, max(outputs)])):
            last = layer == len(hidden)
            drawn = [_drawn(fan_in, own if last else fan_out, fan_out, seed, layer) for own in outputs]
            parameters += [torch.stack(part).to(device) for part in zip(*drawn, strict=True)]
        zeros = [[torch.zeros_like(p) for p in parameters] for _ in range(2)]
        return cls(parameters, zeros[0], zeros[1], low, partial=partial)

    def step(self, X: Tensor, targets: Tensor, rates: Sequence[float], decay: float, masks: Sequence[Tensor]) -> None:
        """Take one step of AdamW on rows `(B, D)` and targets `(M, B)`, with one learning rate for each network.

        Args:
            X: rows.
            targets: class codes or real values.
            rates: learning rate of each network.
            decay: decoupled weight decay.
            masks: dropout, `(H, B)` for each hidden layer: 0 where a unit is dropped, else 1/(1 - dropout); empty:
                none.
        """
        activations = self._hidden(X, masks)
        slope = (_partial_slope if self.partial else _slope)(self._output(activations), targets)
        self._adam(self._gradients(X, activations, slope, masks), rates, decay)

    def losses(self, X: Tensor, targets: Tensor) -> list[float]:
        """Return, for each network, the mean log loss in nats (or mean squared error) over all rows; rows with class
        code -1 are left out.
        """
        real = targets.dtype.is_floating_point
        total = torch.zeros(len(targets), dtype=torch.float64, device=X.device)
        for rows, wanted in zip(torch.split(X, _EVALUATED), torch.split(targets, _EVALUATED, dim=1), strict=True):
            output = self._output(self._hidden(rows, (), exact=True))
            if real:
                total += (output.squeeze(1) - wanted).square_().sum(1).double()
                continue
            chosen = output.gather(1, wanted.clamp_min(0).unsqueeze(1)).squeeze(1)
            total += ((torch.logsumexp(output, 1) - chosen) * (wanted >= 0)).sum(1).double()
        scored = targets.shape[1] if real else (targets >= 0).sum(1)
        found: list[float] = (total / scored).tolist()
        return found

    def only(self, going: list[int]) -> Networks:
        """Return the networks with these indices, with Adam's moments."""
        parameters, means, squares = ([p[going] for p in kind] for kind in (self.parameters, self.means, self.squares))
        return Networks(parameters, means, squares, self.low, self.steps, self.partial)

    def arrays(self, network: int, outputs: int) -> list[NDArray[np.float32]]:
        """Return a copy of one network's parameters, with its first `outputs` outputs: weights `(in, out)` and bias of
        each layer in turn.
        """
        own = [p[network] for p in self.parameters]
        own[-2:] = [part[:outputs] for part in own[-2:]]
        return [
            (part.T if part.dim() == 2 else part).clone(memory_format=torch.contiguous_format).cpu().numpy()
            for part in own
        ]

    def _hidden(self, X: Tensor, masks: Sequence[Tensor], *, exact: bool = False) -> list[Tensor]:
        """Return the units `(M, H, B)` of each hidden layer."""
        first, bias = self.parameters[:2]
        flat, shift = first.view(-1, first.shape[2]), bias.view(-1, 1)
        rounded = self.low and not exact
        h = (flat.to(X.dtype) @ X.T).float().add_(shift) if rounded else torch.addmm(shift, flat, X.T)
        h = h.view(*bias.shape, len(X)).relu_()
        found = [h.mul_(masks[0]) if masks else h]
        for layer, (weights, bias) in enumerate(zip(self.parameters[2:-2:2], self.parameters[3:-2:2], strict=True)):
            h = torch.baddbmm(bias.unsqueeze(2), weights, h).relu_()
            found.append(h.mul_(masks[layer + 1]) if masks else h)
        return found

    def _output(self, activations: list[Tensor]) -> Tensor:
        """Return the outputs, `(M, K, B)`."""
        weights, bias = self.parameters[-2:]
        return torch.baddbmm(bias.unsqueeze(2), weights, activations[-1])

    def _gradients(self, X: Tensor, activations: list[Tensor], slope: Tensor, masks: Sequence[Tensor]) -> list[Tensor]:
        """Return the gradient of each parameter, from the slope `(M, K, B)` of the loss at the outputs."""
        found: list[Tensor] = []
        scale = float(masks[0].max()) if masks else 1.0
        for h, weights in zip(reversed(activations), reversed(self.parameters[2::2]), strict=True):
            found = [slope @ h.transpose(1, 2), slope.sum(2), *found]
            slope = torch.ops.aten.threshold_backward(weights.transpose(1, 2) @ slope, h, 0)
            slope = slope.mul_(scale) if masks else slope
        first = slope.view(-1, len(X)).to(X.dtype) @ X
        return [first.float().view(self.parameters[0].shape), slope.sum(2), *found]

    def _adam(self, gradients: list[Tensor], rates: Sequence[float], decay: float) -> None:
        """Update by Adam with β₁ 0.9, β₂ 0.999, ε 1e-8, in one pass over the parameters of all networks that share a
        rate.
        """
        groups = [slice(None)] if len(set(rates)) == 1 else [slice(i, i + 1) for i in range(len(rates))]
        for group in groups:
            kinds = (self.parameters, gradients, self.means, self.squares)
            parameters, slopes, means, squares = ([array[group] for array in kind] for kind in kinds)
            steps = [torch.tensor(float(self.steps), device=slope.device) for slope in slopes]
            adamw(
                parameters,
                slopes,
                means,
                squares,
                [],
                steps,
                fused=True,
                amsgrad=False,
                maximize=False,
                beta1=0.9,
                beta2=0.999,
                eps=1e-8,
                lr=rates[group][0],
                weight_decay=decay,
            )
        self.steps += 1


def _drawn(fan_in: int, own: int, fan_out: int, seed: int, layer: int) -> tuple[Tensor, Tensor]:
    """Draw weights `(fan_out, fan_in)` and bias of one layer with `own` outputs; the rest are absent."""
    source = torch.Generator().manual_seed(child_seed(seed, "weights", layer))
    weights, bias = torch.zeros(fan_out, fan_in), torch.full((fan_out,), _ABSENT)
    for part in (weights[:own], bias[:own]):
        part.uniform_(-(fan_in**-0.5), fan_in**-0.5, generator=source)
    return weights, bias


def _slope(output: Tensor, targets: Tensor) -> Tensor:
    """Return the derivative `(M, K, B)` of the mean loss by the outputs; the outputs may be overwritten."""
    if targets.dtype.is_floating_point:
        return output.sub_(targets.unsqueeze(1)).mul_(2 / targets.shape[1])
    slope = torch.softmax(output, 1)
    slope.scatter_add_(
        1, targets.unsqueeze(1), slope.new_full((1, 1, 1), -1.0).expand(len(targets), 1, output.shape[2])
    )
    return slope.div_(targets.shape[1])


def _partial_slope(output: Tensor, targets: Tensor) -> Tensor:
    """Return the derivative of the mean over those rows whose code is not -1; otherwise as `_slope`."""
    scored = targets >= 0
    share = scored / scored.sum(1, keepdim=True).clamp_min(1)
    slope = torch.softmax(output, 1).mul_(share.unsqueeze(1))
    return slope.scatter_add_(1, targets.clamp_min(0).unsqueeze(1), -share.unsqueeze(1))


_SMALLEST_BATCH = 16
_STEPS_AN_EPOCH = 50


@dataclass(frozen=True)
class NetworkSettings:
    """Hyper-parameters of one training run; see `MLPProbe`."""

    hidden: int
    layers: int
    dropout: float
    learning_rate: float
    rate_factor: float
    weight_decay: float
    batch_size: int
    max_epochs: int
    patience: int
    low: bool

    def batch(self, n: int) -> int:
        """Return the number of rows per step if there are `n` rows: `batch_size`, or fewer so that an epoch has at
        least 50 steps (but at least 16 rows).
        """
        return min(self.batch_size, max(_SMALLEST_BATCH, n // _STEPS_AN_EPOCH))


@dataclass
class FittedNetwork:
    """Holds one network at its best epoch (weights and bias of each layer in turn, float32) and the record of its
    training.
    """

    arrays: list[NDArray[np.float32]] = field(default_factory=list)
    converged: bool = False
    best_epoch: int = 0
    dev_losses: list[float] = field(default_factory=list)
    lowest: float = np.inf

    def waited(self) -> int:
        """Return the number of epochs since the best one; 0 if the last was the best."""
        return len(self.dev_losses) - self.best_epoch


@dataclass(frozen=True)
class Data:
    """Holds the rows and targets that all stacks of networks are trained on.

    Attributes:
        rows: `(N, D)` standardised, in the dtype of the first layer's products.
        targets: `(M, N)` class codes (int64; -1 for rows that a network is not trained on) or real values (float32).
        dev_rows, dev_targets: rows and targets for early stopping; rows with class code -1 are not scored.
    """

    rows: Tensor
    targets: Tensor
    dev_rows: Tensor
    dev_targets: Tensor


def train(
    data: Data, outputs: Sequence[int], seeds: Sequence[int], recipe: NetworkSettings
) -> list[list[FittedNetwork]]:
    """Train one network for each of M label sets and each of S seeds, and return them as `result[m][s]`.

    Args:
        data: rows and targets.
        outputs: number of classes of each label set (1 for real targets).
        seeds: the S seeds.
        recipe: hyper-parameters.
    """
    threads = torch.get_num_threads()
    stacks = [(seed, chosen) for seed in seeds for chosen in _parts(len(outputs), len(seeds), threads)]

    def run(stack: tuple[int, list[int]]) -> list[FittedNetwork]:
        if len(stacks) > 1:
            torch.set_num_threads(1)
        return _trained(data, stack[1], [outputs[m] for m in stack[1]], stack[0], recipe)

    try:
        with ThreadPoolExecutor(min(threads, len(stacks))) as pool:
            fitted = dict(zip(((s, tuple(m)) for s, m in stacks), pool.map(run, stacks), strict=True))
    finally:
        torch.set_num_threads(threads)
    found = {(m, s): network for (s, chosen), fits in fitted.items() for m, network in zip(chosen, fits, strict=True)}
    return [[found[m, seed] for seed in seeds] for m in range(len(outputs))]


def _parts(sets: int, seeds: int, threads: int) -> list[list[int]]:
    """Return the label sets of each stack of a seed: as many together as leaves two stacks a thread, so that no thread
    idles.
    """
    wanted = 1 if threads == 1 else -(-2 * threads // seeds)
    return [part.tolist() for part in np.array_split(np.arange(sets), min(sets, wanted))]


def _trained(
    data: Data, chosen: list[int], outputs: list[int], seed: int, recipe: NetworkSettings
) -> list[FittedNetwork]:
    """Train one stack, until each of its networks has stopped or the epochs are over."""
    hidden = [recipe.hidden] * recipe.layers
    partial = bool((data.targets < 0).any()) and not data.targets.is_floating_point()
    width, device = data.rows.shape[1], data.rows.device
    networks = Networks.start(width, hidden, outputs, seed, low=recipe.low, partial=partial, device=device)
    targets, dev_targets = data.targets[chosen].T.contiguous(), data.dev_targets[chosen]
    fits = [FittedNetwork() for _ in chosen]
    active = list(range(len(chosen)))
    rates = [recipe.learning_rate] * len(chosen)
    draws = _Draws(len(data.rows), seed, recipe)
    for _ in range(recipe.max_epochs):
        for picked, masks in draws.epoch():
            picked, masks = picked.to(data.rows.device), [mask.to(data.rows.device) for mask in masks]
            rows = data.rows.index_select(0, picked)
            networks.step(rows, targets.index_select(0, picked).T, rates, recipe.weight_decay, masks)
        for place, loss in enumerate(networks.losses(data.dev_rows, dev_targets)):
            _note(fits[active[place]], loss, networks, place, outputs[active[place]], recipe.patience)
            rates[place] *= recipe.rate_factor if fits[active[place]].waited() else 1.0
        going = [place for place, index in enumerate(active) if not fits[index].converged]
        if len(going) < len(active):
            active = [active[place] for place in going]
            if not active:
                break
            networks, rates = networks.only(going), [rates[place] for place in going]
            targets, dev_targets = targets[:, going].contiguous(), dev_targets[going]
    return fits


def _note(fit: FittedNetwork, loss: float, networks: Networks, place: int, outputs: int, patience: int) -> None:
    """Keep a copy of an epoch that is the best so far; before any loss was finite, of the first."""
    fit.dev_losses.append(loss)
    if loss < fit.lowest:
        fit.lowest, fit.best_epoch = loss, len(fit.dev_losses)
    if loss == fit.lowest or not fit.arrays:
        fit.arrays = networks.arrays(place, outputs)
    fit.converged = fit.waited() >= patience


class _Draws:
    """Random draws of one seed: the order of rows and the dropped units."""

    def __init__(self, n: int, seed: int, recipe: NetworkSettings) -> None:
        self.n, self.recipe = n, recipe
        self.order = torch.Generator().manual_seed(child_seed(seed, "order"))
        self.noise = torch.Generator().manual_seed(child_seed(seed, "dropout"))

    def epoch(self) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """Yield the row numbers of each batch, and a mask for each hidden layer."""
        for picked in torch.split(torch.randperm(self.n, generator=self.order), self.recipe.batch(self.n)):
            yield picked, self._masks(len(picked))

    def _masks(self, rows: int) -> list[Tensor]:
        drop = self.recipe.dropout
        if drop == 0:
            return []
        size = (self.recipe.layers, self.recipe.hidden, rows)
        kept = torch.rand(size, generator=self.noise) >= drop
        return list(kept.float().div_(1 - drop))
