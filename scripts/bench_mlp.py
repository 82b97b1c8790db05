#!/usr/bin/env python
"""MLP probes, UPOS and word-type control draws, sites × label sets × seeds: stacked against one by one, in one run.

    python scripts/bench_mlp.py --store DIR --treebank "en_lines-*.conllu" [--sites resid.0,resid.6] [--threads 2]

One by one is a plain torch loop: `nn.Sequential`, `Adam`, the same batch size, epochs and early stopping, on states
that are standardised before its clock starts; the stacked side standardises inside its time.
"""

from __future__ import annotations

import argparse
import copy
import time
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import nn

from probing import Corpus, Store
from probing.probes._standardise import moments, standardise
from probing.probes.mlp import MLPProbe
from probing.training.plan import Plan, make_plan

ALONE = "one by one"


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    store = Store.open(options.store)
    corpus = Corpus.read(options.treebank)
    plan = make_plan(
        store, corpus, task="upos", probes=["mlp"], controls=[f"word_type:draws={options.draws}"], measures=None,
        seeds=options.seeds, root_seed=0, sites=options.sites.split(","), cluster="sentence", rows=None,
    )  # fmt: skip
    shared = {name: getattr(options, name) for name in ("hidden", "layers", "dropout", "max_epochs")}
    recipes = {name: MLPProbe(**shared, precision=name) for name in options.precisions.split(",")}
    sides = {name: partial(stacked, recipe=recipe) for name, recipe in recipes.items()}
    sides[ALONE] = partial(one_by_one, recipe=MLPProbe(**shared))
    found: dict[str, list[tuple[np.ndarray, ...]]] = {side: [] for side in sides}
    for number, site in enumerate(plan.sites):
        for side in list(sides) if number % 2 == 0 else reversed(sides):
            clocks, losses, epochs = sides[side](plan, site)
            found[side].append((clocks, losses, epochs))
            print("{} {}: {:.1f} s, {:.1f} s of processor time".format(site, side, *clocks), flush=True)
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
        print(
            f"{side}: speed ratio {ratios[0]:.2f} ({ratios[1]:.2f} of processor time), an epoch {an_epoch[0]:.2f} "
            f"({an_epoch[1]:.2f}); {own_epochs.mean():.1f} epochs; dev loss, task {own_losses[:, 0].mean():.5f}, "
            f"controls {own_losses[:, 1:].mean():.5f} nats; mean gap {gap.mean():+.5f}, largest {np.abs(gap).max():.5f}"
        )


def clock() -> np.ndarray:
    """Seconds on the wall, and of processor time in all threads."""
    return np.array([time.perf_counter(), time.process_time()])


def stacked(plan: Plan, site: str, recipe: MLPProbe) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clocks, best dev loss and number of epochs `(sets, seeds)`."""
    X, targets, dev_X, dev_targets = data(plan, site)
    start = clock()
    fits = recipe.fit_many(X, targets, plan.seeds, dev=(dev_X, dev_targets))
    took = clock() - start
    return took, *(np.array([[read(fit) for fit in row] for row in fits]) for read in (best_loss, last_epoch))


def best_loss(fit: MLPProbe) -> float:
    return min(fit.dev_losses_)


def last_epoch(fit: MLPProbe) -> int:
    return fit.n_iter_


def one_by_one(plan: Plan, site: str, recipe: MLPProbe) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clocks, best dev loss and number of epochs `(sets, seeds)`."""
    X, targets, dev_X, dev_targets = data(plan, site)
    mean, scale = moments(X)
    rows, dev_rows = (torch.from_numpy(standardise(part, mean, scale)) for part in (X, dev_X))
    start = clock()
    found = [
        [alone(rows, torch.from_numpy(y), dev_rows, torch.from_numpy(dev_y), recipe, seed) for seed in plan.seeds]
        for y, dev_y in zip(targets, dev_targets, strict=True)
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


def data(plan: Plan, site: str) -> tuple[np.ndarray, list[np.ndarray], np.ndarray, list[np.ndarray]]:
    """States and the codes of every label set, of train and of dev."""
    parts: list = []
    for split in ("train", "dev"):
        parts.append(plan.store.read(site, plan.labels.row[plan.labels.rows(split)]))
        parts.append([labels.y[labels.rows(split)] for labels in plan.label_sets])
    return tuple(parts)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--treebank", required=True, help="glob of its CoNLL-U files")
    parser.add_argument("--sites", default="resid.*")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--max-epochs", type=int, default=40)
    parser.add_argument("--precisions", default="float32,bfloat16")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
