"""Train many small ReLU networks on one X: every label set under every seed, with early stopping of each.

Networks of one seed are stacked, for they read the same batches (see `_stacked_networks`). Stacks run beside each
other on the threads torch may use, one thread each: products this small gain little from a second thread.
A network's seed alone decides its weights, its order of rows and its dropout, whatever is trained beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probing.probes._stacked_networks import Networks
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
    rate_factor: float
    weight_decay: float
    batch_size: int
    max_epochs: int
    patience: int
    low: bool

    def batch(self, n: int) -> int:
        """Return the rows a step when there are `n` rows."""
        return min(self.batch_size, max(_SMALLEST_BATCH, n // _STEPS_AN_EPOCH))


@dataclass
class FittedNetwork:
    """The best epoch of one network: weights and biases by layer, float32."""

    arrays: list[NDArray[np.float32]] = field(default_factory=list)
    converged: bool = False
    best_epoch: int = 0
    dev_losses: list[float] = field(default_factory=list)
    lowest: float = np.inf

    def waited(self) -> int:
        """Return the epochs since the best one; 0 if the last was the best."""
        return len(self.dev_losses) - self.best_epoch


@dataclass(frozen=True)
class Data:
    """The rows that every stack reads.

    Attributes:
        rows: `(N, D)` standardised, in the precision of the products.
        targets: `(M, N)` class codes (int64; -1: a row that this network is not trained on), or real values (float32).
        dev_rows, dev_targets: the same of the rows for early stopping; a code of -1 is not scored.
    """

    rows: Tensor
    targets: Tensor
    dev_rows: Tensor
    dev_targets: Tensor


def train(data: Data, outputs: Sequence[int], seeds: Sequence[int], recipe: Recipe) -> list[list[FittedNetwork]]:
    """Train networks `[m][s]`, one for each of M label sets under each of S seeds.

    Args:
        data: rows and targets.
        outputs: classes of each label set (1 for real targets).
        seeds: S seeds.
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


def _trained(data: Data, chosen: list[int], outputs: list[int], seed: int, recipe: Recipe) -> list[FittedNetwork]:
    """Train one stack, until each of its networks has stopped or the epochs are over."""
    hidden = [recipe.hidden] * recipe.layers
    partial = bool((data.targets < 0).any()) and not data.targets.is_floating_point()
    networks = Networks.start(data.rows.shape[1], hidden, outputs, seed, low=recipe.low, partial=partial)
    targets, dev_targets = data.targets[chosen].T.contiguous(), data.dev_targets[chosen]
    fits = [FittedNetwork() for _ in chosen]
    active = list(range(len(chosen)))
    rates = [recipe.learning_rate] * len(chosen)
    draws = _Draws(len(data.rows), seed, recipe)
    for _ in range(recipe.max_epochs):
        for picked, masks in draws.epoch():
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

    def __init__(self, n: int, seed: int, recipe: Recipe) -> None:
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
