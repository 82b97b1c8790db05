"""MLP probes, UPOS and word-type control draws, sites × label sets × seeds: stacked against one by one, in one run.

One by one is a plain torch loop: `nn.Sequential`, `Adam`, the same batch size, epochs and early stopping, on states
that are standardised before its clock starts; the stacked side standardises inside its time.
"""

from __future__ import annotations

import argparse
import copy
import time
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from _bench_states import SPLITS, label_sets
from torch import nn

from probing.probes._rows import moments, standardise
from probing.probes.mlp import MLPProbe

ALONE = "one by one"


def stacked_against_alone(options: argparse.Namespace) -> None:
    """Both sides at every site, and what they come to; the split `test` stops training early."""
    targets = label_sets(options.states, 5)[: options.sets]
    recipes = {name: MLPProbe(hidden=options.hidden, precision=name) for name in ("float32", "bfloat16")}
    sides: dict[str, Any] = {name: partial(stacked, recipe=recipe) for name, recipe in recipes.items()}
    sides[ALONE] = partial(one_by_one, recipe=recipes["float32"])
    found: dict[str, list[tuple[np.ndarray, ...]]] = {side: [] for side in sides}
    for number, site in enumerate(options.sites.split(",")):
        X = [np.load(options.states / f"{split}.{site}.npy") for split in SPLITS]
        for side in list(sides) if number % 2 == 0 else reversed(sides):
            clocks, losses, epochs = sides[side](X, targets, range(options.seeds))
            found[side].append((clocks, losses, epochs))
            print("resid.{} {}: {:.1f} s, {:.1f} s of processor time".format(site, side, *clocks), flush=True)
    report({side: [np.stack(part) for part in zip(*parts, strict=True)] for side, parts in found.items()})


def report(found: dict[str, list[np.ndarray]]) -> None:
    """Clocks `(sites, 2)`, dev losses and epochs `(sites, sets, seeds)` of each side; ratios to one by one."""
    clocks, losses, epochs = found[ALONE]
    print(f"networks: {losses.size} (sites × label sets × seeds: {losses.shape}), threads {torch.get_num_threads()}")
    print(
        f"spread of dev loss over seeds, one by one (mean standard deviation): {losses.std(2, ddof=1).mean():.5f} nats"
    )
    for side, (own_clocks, own_losses, own_epochs) in found.items():
        ratios = clocks.sum(0) / own_clocks.sum(0)
        an_epoch = ratios * own_epochs.sum() / epochs.sum()
        gap = own_losses.mean(2) - losses.mean(2)
        error = np.sqrt((own_losses.var(2, ddof=1) + losses.var(2, ddof=1)).mean() / losses.shape[2])
        print(
            f"{side}: speed ratio {ratios[0]:.2f} ({ratios[1]:.2f} of processor time), an epoch {an_epoch[0]:.2f} "
            f"({an_epoch[1]:.2f}); {own_epochs.mean():.1f} epochs; dev loss, task {own_losses[:, 0].mean():.5f}, "
            f"controls {own_losses[:, 1:].mean():.5f} nats; mean gap {gap.mean():+.5f}, largest "
            f"{np.abs(gap).max():.5f}, standard error of one gap by the seeds {error:.5f}"
        )


def clock() -> np.ndarray:
    """Seconds on the wall, and of processor time in all threads."""
    return np.array([time.perf_counter(), time.process_time()])


Sets = list[tuple[np.ndarray, np.ndarray]]  # codes of train and of the held-out rows


def stacked(X: list[np.ndarray], targets: Sets, seeds: range, recipe: MLPProbe) -> tuple[np.ndarray, ...]:
    """Clocks, best dev loss and number of epochs `(sets, seeds)`."""
    start = clock()
    fits = recipe.fit_many(X[0], [y for y, _ in targets], seeds, dev=(X[1], [dev_y for _, dev_y in targets]))
    took = clock() - start
    return took, *(np.array([[read(fit) for fit in row] for row in fits]) for read in (best_loss, last_epoch))


def best_loss(fit: MLPProbe) -> float:
    return min(fit.dev_losses_)


def last_epoch(fit: MLPProbe) -> int:
    return fit.n_iter_


def one_by_one(X: list[np.ndarray], targets: Sets, seeds: range, recipe: MLPProbe) -> tuple[np.ndarray, ...]:
    """Clocks, best dev loss and number of epochs `(sets, seeds)`."""
    mean, scale = moments(X[0])
    rows, dev_rows = (torch.from_numpy(standardise(part, mean, scale)) for part in X)
    start = clock()
    found = [
        [alone(rows, torch.from_numpy(y), dev_rows, torch.from_numpy(dev_y), recipe, seed) for seed in seeds]
        for y, dev_y in targets
    ]
    took = clock() - start
    return took, *(np.array([[one[part] for one in row] for row in found]) for part in (0, 1))


def alone(
    X: torch.Tensor, y: torch.Tensor, dev_X: torch.Tensor, dev_y: torch.Tensor, recipe: MLPProbe, seed: int
) -> tuple[float, int]:
    """Best dev loss and number of epochs of one network."""
    torch.manual_seed(seed)
    sizes = [X.shape[1], *[recipe.hidden] * recipe.layers]
    parts: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        parts += [nn.Linear(fan_in, fan_out), nn.ReLU()]
        parts += [nn.Dropout(recipe.dropout)] if recipe.dropout else []
    network = nn.Sequential(*parts, nn.Linear(sizes[-1], int(y.max()) + 1))
    adam = torch.optim.Adam(network.parameters(), lr=recipe.learning_rate)
    cross_entropy = nn.CrossEntropyLoss()
    lowest, best_epoch, kept = float("inf"), 0, {}
    for epoch in range(1, recipe.max_epochs + 1):
        network.train()
        for picked in torch.randperm(len(X)).split(recipe.batch_size):
            adam.zero_grad()
            cross_entropy(network(X[picked]), y[picked]).backward()
            adam.step()
        network.eval()
        with torch.no_grad():
            loss = cross_entropy(network(dev_X), dev_y).item()
        if loss < lowest:
            lowest, best_epoch, kept = loss, epoch, copy.deepcopy(network.state_dict())
        elif epoch - best_epoch >= recipe.patience:
            break
    network.load_state_dict(kept)
    return lowest, epoch
