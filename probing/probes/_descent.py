"""Trains probes of pairs by Adam on batches with early stopping, and calibrates probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax

from probing.contracts.probe import Probe
from probing.errors import BadParameter, DegenerateDesign
from probing.labels import Pairs
from probing.seeds import generator

Ints = NDArray[np.int64]
_LEAST_STEPS = 50  # an epoch


@dataclass(frozen=True)
class Batch:
    """Holds the words and pairs of a few sentences.

    Attributes:
        words: `(n,)` the words of the batch, as rows of the table of states.
        a, b: `(m,)` the two words of every pair, as indices into `words`.
        rows: `(m,)` the pairs, as indices into the pairs that are trained on.
        sentence: `(m,)` sentence of every pair, numbered within the batch.
        choice: `(m,)` choice of every pair, numbered within the batch; None: the pairs are not alternatives.
        n_sentences, n_choices: numbers of sentences and of choices in the batch.
    """

    words: torch.Tensor
    a: torch.Tensor
    b: torch.Tensor
    rows: torch.Tensor
    sentence: torch.Tensor
    choice: torch.Tensor | None
    n_sentences: int
    n_choices: int


class Sentences:
    """Sorts pairs by sentence, so that a batch of whole sentences is a few slices."""

    def __init__(self, pairs: Pairs) -> None:
        self._rows = np.argsort(pairs.group, kind="stable")
        groups, start = np.unique(pairs.group[self._rows], return_index=True)
        self.row_start = np.append(start, len(pairs))
        n_table, index = len(pairs.table), pairs.index[self._rows]
        ordinal = np.repeat(np.arange(len(groups)), np.diff(self.row_start))
        used, place = np.unique(ordinal[:, None] * n_table + index, return_inverse=True)
        self._words = used % n_table
        self.word_start = np.searchsorted(used, np.arange(len(groups) + 1) * n_table)
        self._index = place.reshape(index.shape) - self.word_start[ordinal][:, None]
        self._choice = None if pairs.choice is None else pairs.choice[self._rows]

    def batches(self, n_words: int, order: Ints) -> Iterator[Batch]:
        """Yield batches of whole sentences in the given order. A batch has at least one sentence and about `n_words`
        words, fewer if an epoch would otherwise have fewer than 50 batches.
        """
        sizes = np.diff(self.word_start)[order]
        n_words = max(2, min(n_words, int(sizes.sum()) // _LEAST_STEPS))
        number = (np.cumsum(sizes) - sizes) // n_words
        for chosen in np.split(order, np.flatnonzero(np.diff(number)) + 1):
            yield self._batch(chosen)

    def _batch(self, chosen: Ints) -> Batch:
        words, rows = _ranges(self.word_start, chosen), _ranges(self.row_start, chosen)
        n_rows = np.diff(self.row_start)[chosen]
        n_words = np.diff(self.word_start)[chosen]
        index = self._index[rows] + np.repeat(np.cumsum(n_words) - n_words, n_rows)[:, None]
        choice, n_choices = None, 0
        if self._choice is not None:
            distinct, codes = np.unique(self._choice[rows], return_inverse=True)
            choice, n_choices = torch.from_numpy(codes.reshape(-1)), len(distinct)
        return Batch(
            words=torch.from_numpy(self._words[words]),
            a=torch.from_numpy(index[:, 0]),
            b=torch.from_numpy(index[:, 1]),
            rows=torch.from_numpy(self._rows[rows]),
            sentence=torch.from_numpy(np.repeat(np.arange(len(chosen)), n_rows)),
            choice=choice,
            n_sentences=len(chosen),
            n_choices=n_choices,
        )

    def __len__(self) -> int:
        return len(self.row_start) - 1


def _ranges(start: Ints, chosen: Ints) -> Ints:
    """Return all of `start[i] … start[i+1]-1` for the chosen i, end to end."""
    counts = start[chosen + 1] - start[chosen]
    ends = np.cumsum(counts)
    return np.repeat(start[chosen] - (ends - counts), counts) + np.arange(ends[-1] if len(ends) else 0)


def halves(X: NDArray[Any]) -> Pairs:
    """Split plain rows `(N, 2D)` in halves and return them as pairs, each in a sentence by itself. A column of zeros is
    added to an odd width.
    """
    n, width = X.shape
    if width % 2:
        X = np.concatenate([X, np.zeros((n, 1), X.dtype)], axis=1)
    table = np.concatenate(np.split(X, 2, axis=1)).astype(np.float32, copy=False)
    return Pairs(table, np.arange(2 * n).reshape(2, n).T.copy(), np.arange(n))


def check_row_form(pairs: Pairs, who: str) -> None:
    """Check that the states of the two words of each pair are not yet combined.

    Raises:
        BadParameter: the pairs hold only the difference or product of the two states.
    """
    if pairs.row_form not in ("pair", "ends"):
        raise BadParameter(
            f"{who} reads both words of a pair",
            needed="pairs that are not combined",
            found=f"their {pairs.row_form}",
            next_step="name the task without :difference or :product",
        )


def held_out(pairs: Pairs, seed: int) -> tuple[Ints, Ints]:
    """Split pairs by sentence: return the row indices of nine tenths of the sentences, and of the other tenth. If there
    is a single sentence, both are all rows.
    """
    groups, codes = np.unique(pairs.group, return_inverse=True)
    if len(groups) < 2:
        return np.arange(len(pairs)), np.arange(len(pairs))
    order = generator(seed, "held out").permutation(len(groups))
    is_held = np.isin(codes.reshape(-1), order[: max(1, len(groups) // 10)])
    return np.flatnonzero(~is_held), np.flatnonzero(is_held)


def check_choices(pairs: Pairs, y: NDArray[np.int64]) -> None:
    """Check that exactly one pair of each choice is right (`y` is 1).

    Raises:
        DegenerateDesign: a choice has no right pair, or several.
    """
    if pairs.choice is None:
        return
    _, codes = np.unique(pairs.choice, return_inverse=True)
    right = np.bincount(codes.reshape(-1), y == 1)
    if (right != 1).any():
        raise DegenerateDesign(
            "a choice needs exactly one right pair",
            needed="one row of label 1 in each",
            found=f"{int((right != 1).sum())} choices without or with several",
        )


@dataclass(frozen=True)
class DescentSettings:
    """Holds the options of a descent: learning rate (halved after every epoch without a lower dev loss), decoupled
    weight decay, largest number of epochs, and epochs without a lower dev loss before it stops (patience).
    """

    learning_rate: float
    weight_decay: float
    max_epochs: int
    patience: int

    @classmethod
    def of(cls, probe: Probe) -> DescentSettings:
        """Return the settings from the parameters of a probe.

        Raises:
            BadParameter: a parameter is out of range.
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
    """Records a descent: the dev loss of every epoch, the best epoch (from 1), and whether patience ended it."""

    dev_losses: list[float]
    best_epoch: int
    converged: bool


def descend(
    parameters: Sequence[torch.Tensor],
    loss: Callable[[Batch], torch.Tensor],
    epochs: Callable[[int], Iterable[Batch]],
    dev_loss: Callable[[], float],
    recipe: DescentSettings,
) -> Descent:
    """Minimise the loss by AdamW, set the parameters to their values at the best epoch on dev, and return the record.

    Args:
        parameters: tensors that require gradients; they are changed in place.
        loss: returns the mean loss of a batch.
        epochs: returns the batches of an epoch, given its number.
        dev_loss: returns the mean loss on dev; it is called after every epoch.
        recipe: options of the descent.
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
    """Split n rows at random: return the indices of nine tenths and of the other tenth (at least one row each; the same
    row twice if n is 1).
    """
    order = generator(seed, "held out").permutation(n)
    count = max(1, n // 10)
    if n <= count:
        return order, order
    return np.sort(order[count:]), np.sort(order[:count])


def dev_codes(classes: NDArray[Any], y: NDArray[Any]) -> NDArray[np.int64]:
    """Return the index of each dev label in `classes`, -1 for labels that do not occur in training."""
    places = np.searchsorted(classes, y).clip(0, len(classes) - 1)
    return np.where(classes[places] == y, places, -1).astype(np.int64)


def require_scored(coded: list[NDArray[np.int64]]) -> None:
    """Check that every array of dev codes (from `dev_codes`) has a label that occurs in training.

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


Matrix = NDArray[np.float64]
_STEPS = 100
_HALVINGS = 30
_TOLERANCE = 1e-10
_LEAST = 1e-6  # a temperature of 0 would make all classes alike


@dataclass(frozen=True)
class Calibration:
    """Holds a fitted map from scores to logits, `temperature · score + intercept`; `intercept` is `(K,)`, of mean 0."""

    temperature: float
    intercept: Matrix
    converged: bool


def calibrate(scores: Matrix, codes: NDArray[np.int64]) -> Calibration:
    """Fit a temperature t and intercepts b by penalised log loss: minimise mean log loss + (t² + ‖b - b₀‖²) / (2N),
    with t for scores scaled to unit variance and b₀ the log class frequencies.

    The penalty keeps the temperature finite if the scores separate the classes. For scores `M (μₖ - μ̄)·x` (see
    `mass_mean`) the temperature is never negative, since the gradient at t = 0 is minus the scatter of the class means.

    Args:
        scores: `(N, K)` float64.
        codes: `(N,)` class codes in 0 … K-1; every class occurs.

    References:
        Guo et al. 2017, *On calibration of modern neural networks*, §4.2 (there without intercepts, on held-out rows).
    """
    n, k = scores.shape
    spread = float(scores.std()) or 1.0
    features = (scores - scores.mean(0)) / spread
    prior = np.log(np.bincount(codes, minlength=k) / n)
    theta = np.concatenate([[0.0], prior])
    loss, gradient, hessian = _model(theta, features, codes, prior)
    converged = False
    for _ in range(_STEPS):
        step = -np.linalg.solve(hessian, gradient)
        slope = float(gradient @ step)
        if -slope <= _TOLERANCE * max(loss, 1e-3):
            converged = True
            break
        size = 1.0
        for _ in range(_HALVINGS):
            found = _model(theta + size * step, features, codes, prior)
            if found[0] <= loss + 1e-4 * size * slope:
                break
            size /= 2
        else:
            converged = True  # nothing more to gain in this precision
            break
        theta = theta + size * step
        loss, gradient, hessian = found
    temperature = max(0.0, float(theta[0])) / spread
    intercept = theta[1:] - temperature * scores.mean(0)
    return Calibration(temperature, intercept - intercept.mean(), converged)


def calibrate_temperature(scores: Matrix, offsets: Matrix, codes: NDArray[np.int64]) -> Calibration:
    """Fit the temperature t alone: minimise mean log loss + t²/(2N) for logits `t · (score + offset)`. Since t is
    positive, it does not change which logit is largest.

    Args:
        scores: `(N, K)` float64.
        offsets: `(K,)` numbers that are added to the scores.
        codes: `(N,)` class codes in 0 … K-1.
    """
    shifted = scores + offsets
    n, spread = len(scores), float((scores + offsets).std()) or 1.0
    features = shifted / spread
    rows = np.arange(n)
    t, converged = 0.0, False
    for _ in range(_STEPS):
        p = np.exp(log_softmax(t * features, axis=1))
        mean = np.einsum("nk,nk->n", p, features)
        slope = float((mean - features[rows, codes]).mean()) + t / n
        curvature = float((np.einsum("nk,nk->n", p, features**2) - mean**2).mean()) + 1 / n
        step = max(-slope / curvature, -0.5 * t)  # never below 0
        t += step
        if abs(step) <= 1e-8 * max(1.0, t):
            converged = True
            break
    temperature = max(t, _LEAST) / spread
    intercept = temperature * offsets
    return Calibration(temperature, intercept - intercept.mean(), converged)


def _model(theta: Matrix, features: Matrix, codes: NDArray[np.int64], prior: Matrix) -> tuple[float, Matrix, Matrix]:
    """Return objective, gradient `(1+K,)` and Hessian `(1+K, 1+K)` in (t, b)."""
    n, k = features.shape
    logs = log_softmax(theta[0] * features + theta[1:], axis=1)
    p = np.exp(logs)
    away = np.concatenate([theta[:1], theta[1:] - prior])
    loss = -float(logs[np.arange(n), codes].mean()) + 0.5 * float(away @ away) / n
    mean = np.einsum("nk,nk->n", p, features)
    chosen = features[np.arange(n), codes]
    gradient = np.concatenate([[float((mean - chosen).mean())], p.mean(0) - np.bincount(codes, minlength=k) / n])
    hessian = np.empty((k + 1, k + 1))
    hessian[0, 0] = float((np.einsum("nk,nk->n", p, features**2) - mean**2).mean())
    hessian[0, 1:] = hessian[1:, 0] = (p * (features - mean[:, None])).mean(0)
    hessian[1:, 1:] = np.diag(p.mean(0)) - p.T @ p / n
    return loss, gradient + away / n, hessian + np.eye(k + 1) / n
