"""Adam on batches with early stopping: the recipe of the probes of pairs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from probing.contracts.probe import Probe
from probing.errors import BadParameter, DegenerateDesign
from probing.probes._pair_batches import Batch
from probing.seeds import generator


@dataclass(frozen=True)
class Recipe:
    """Learning rate (halved after every epoch without a lower dev loss), decoupled weight decay, and when to stop."""

    learning_rate: float
    weight_decay: float
    max_epochs: int
    patience: int

    @classmethod
    def of(cls, probe: Probe) -> Recipe:
        """Return the recipe that a probe's parameters give.

        Raises:
            BadParameter: out of range.
        """
        given: dict[str, Any] = probe.get_params(deep=False)
        for name in ("batch_words", "max_epochs", "patience", "rank"):
            if given[name] is not None and given[name] < 1:
                raise BadParameter(f"{name} must be at least 1", needed="at least 1", found=str(given[name]))
        if not given["learning_rate"] > 0 or not given["weight_decay"] >= 0:
            found = f"learning_rate={given['learning_rate']}, weight_decay={given['weight_decay']}"
            raise BadParameter(
                "a rate out of range", needed="learning_rate above 0, weight_decay not below", found=found
            )
        return cls(*(given[name] for name in ("learning_rate", "weight_decay", "max_epochs", "patience")))


@dataclass(frozen=True)
class Descent:
    """Course of a descent: dev losses by epoch, the best epoch (from 1), and whether patience ended it."""

    dev_losses: list[float]
    best_epoch: int
    converged: bool


def descend(
    parameters: Sequence[torch.Tensor],
    loss: Callable[[Batch], torch.Tensor],
    epochs: Callable[[int], Iterable[Batch]],
    dev_loss: Callable[[], float],
    recipe: Recipe,
) -> Descent:
    """Minimise the loss, and leave the parameters as they were at the best epoch on dev.

    Args:
        parameters: leaves that require gradients.
        loss: mean loss of one batch.
        epochs: the batches of an epoch, by its number.
        dev_loss: mean loss on dev, called after every epoch.
        recipe: of the descent.
    """
    optimiser = torch.optim.AdamW(list(parameters), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    losses: list[float] = []
    best, best_loss, best_epoch = [p.detach().clone() for p in parameters], math.inf, 0
    for epoch in range(1, recipe.max_epochs + 1):
        for batch in epochs(epoch):
            optimiser.zero_grad()
            loss(batch).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        with torch.no_grad():
            losses.append(dev_loss())
        if losses[-1] < best_loss or not best_epoch:
            best, best_loss, best_epoch = [p.detach().clone() for p in parameters], losses[-1], epoch
            continue
        if epoch - best_epoch >= recipe.patience:
            break
        for group in optimiser.param_groups:
            group["lr"] /= 2.0
    with torch.no_grad():
        for parameter, kept in zip(parameters, best, strict=True):
            parameter.copy_(kept)
    return Descent(losses, best_epoch, len(losses) - best_epoch >= recipe.patience)


def held_out_rows(n: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return nine tenths and one tenth of the rows, at least one each."""
    order = generator(seed, "held out").permutation(n)
    count = max(1, n // 10)
    if n <= count:
        return order, order
    return np.sort(order[count:]), np.sort(order[:count])


def dev_codes(classes: NDArray[Any], y: NDArray[Any]) -> NDArray[np.int64]:
    """Return the codes of dev labels, -1 for labels that training never saw."""
    places = np.searchsorted(classes, y).clip(0, len(classes) - 1)
    return np.where(classes[places] == y, places, -1).astype(np.int64)


def require_scored(coded: list[NDArray[np.int64]]) -> None:
    """Refuse dev labels of which training saw none.

    Raises:
        DegenerateDesign: no dev row can be scored.
    """
    if any((codes < 0).all() for codes in coded):
        raise DegenerateDesign(
            "no dev row can be scored",
            needed="dev rows whose label occurs in training",
            found="none",
            next_step="check that train and dev share their label column and classes",
        )
