"""What an edit does to the states themselves, as linear probes fitted on F2 see it: before any output is looked at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.instrument import Place
from probing.intervening.effects import Bench
from probing.intervening.experiment import FOLDS

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Covariates = Mapping[str, tuple[NDArray[Any], int]]  # by name: values of the experiment's rows, and K (0: real)

ENOUGH = 0.8


class Discriminant:
    """Gaussian classes of one covariance: the linear probe that needs no iterations. Of real values, ridge regression.

    References:
        Hastie, Tibshirani and Friedman 2009, The Elements of Statistical Learning, §4.3.
    """

    def __init__(self, states: Floats, z: NDArray[Any], n_classes: int) -> None:
        self._n_classes = n_classes
        self._mean = states.mean(0)
        centred = states - self._mean
        if not n_classes:
            spread = centred.T @ centred
            spread[np.diag_indices_from(spread)] += 1e-3 * np.trace(spread) / len(spread) + 1e-12
            self._weights = np.linalg.solve(spread, centred.T @ (z - z.mean()))[:, None]
            self._bias = np.array([float(z.mean())])
            return
        counts = np.maximum(np.bincount(z, minlength=n_classes), 1e-9)
        means = np.stack([centred[z == k].mean(0) if (z == k).any() else 0 * self._mean for k in range(n_classes)])
        cov = (centred.T @ centred - (means.T * counts) @ means) / len(z)  # within classes
        cov[np.diag_indices_from(cov)] += 1e-3 * np.trace(cov) / len(cov) + 1e-12
        self._weights = np.linalg.solve(cov, means.T)
        self._bias = np.log(counts / counts.sum()) - 0.5 * np.einsum("kd,dk->k", means, self._weights)

    def predict(self, states: Floats) -> Floats:
        """`(n, K)` probabilities, or `(n, 1)` predicted values."""
        scores = (states - self._mean) @ self._weights + self._bias
        if not self._n_classes:
            return np.asarray(scores)
        scores = np.exp(scores - scores.max(1, keepdims=True))
        return np.asarray(scores / scores.sum(1, keepdims=True))


@dataclass(frozen=True)
class OnStates:
    """How well an edit does what it says, and nothing else; means over rotations.

    Attributes:
        completeness: mean probability of the goal after the edit, over that of unedited rows of the goal's class. Of
            real values, how far the predicted value moves, over how far it moves between rows.
        selectivity: 1 − mean total variation between what probes say of other properties before and after; None:
            there are no others.
        displacement: median length of the change, over the median distance of two rows.
        off_distribution: share of edited rows beyond the 99th percentile of clean Mahalanobis distance.
    """

    completeness: float
    selectivity: float | None
    displacement: float
    off_distribution: float

    @property
    def reliability(self) -> float | None:
        """Harmonic mean of completeness (at most 1) and selectivity."""
        if self.selectivity is None:
            return None
        complete = min(max(self.completeness, 0.0), 1.0)
        total = complete + self.selectivity
        return 2 * complete * self.selectivity / total if total else 0.0


class StateChecks:
    """The probes of one place, fitted once and asked for every dose.

    References:
        Canby et al. 2024, How Reliable are Causal Probing Interventions?, §3.
    """

    def __init__(self, bench: Bench, place: Place, covariates: Covariates) -> None:
        self._bench, self._place, self._states = bench, place, np.asarray(bench.states(place), np.float64)
        self._covariates = covariates
        e = bench.experiment
        self._own, self._others, self._far = [], [], []
        for r in range(FOLDS):
            _, f2, _ = bench.folds(r)
            h = self._states[f2]
            self._own.append(Discriminant(h, e.z[f2], e.n_classes))
            self._others.append([Discriminant(h, v[f2], k) for v, k in covariates.values() if k])
            self._far.append(_Mahalanobis(h))

    def swap(self, dose: float) -> OnStates:
        """Of class-mean swaps at a dose."""
        edited = []
        for r in range(FOLDS):
            f3, shift = self._bench.folds(r)[2], self._bench.shifts(self._place)[r]
            edited.append(self._states[f3] + dose * shift.difference(self._bench.naturals[r].sides))
        return self.of(edited)

    def of(self, edited: list[Floats]) -> OnStates:
        """Of any edit: by rotation, the new states of F3."""
        parts = [self._one(r, h) for r, h in enumerate(edited)]
        others = [p.selectivity for p in parts if p.selectivity is not None]
        return OnStates(
            float(np.mean([p.completeness for p in parts])), float(np.mean(others)) if others else None,
            float(np.mean([p.displacement for p in parts])), float(np.mean([p.off_distribution for p in parts])),
        )  # fmt: skip

    def _one(self, r: int, edited: Floats) -> OnStates:
        f3 = self._bench.folds(r)[2]
        clean, sides = self._states[f3], self._bench.naturals[r].sides
        before, after = self._own[r].predict(clean), self._own[r].predict(edited)
        if self._bench.experiment.n_classes:
            complete = _reached(before, after, sides.start, sides.goal)
        else:
            step = sides.goal - sides.start
            natural = np.polyfit(sides.start, before[:, 0], 1)[0]
            complete = float((step @ (after - before)[:, 0]) / (step @ step) / natural) if natural else 0.0
        changes = [np.abs(q.predict(edited) - q.predict(clean)).sum(1).mean() / 2 for q in self._others[r]]
        n = len(clean)
        between = np.median(np.linalg.norm(clean - clean[(np.arange(n) + n // 2) % n], axis=1))
        moved = np.median(np.linalg.norm(edited - clean, axis=1))
        limit = np.quantile(self._far[r](clean), 0.99)
        return OnStates(
            complete, 1 - float(np.mean(changes)) if changes else None, float(moved / between) if between else 0.0,
            float((self._far[r](edited) > limit).mean()),
        )  # fmt: skip

    def dose(self, doses: tuple[float, ...]) -> tuple[float, OnStates]:
        """The primary dose: 1, or the smallest above it that is complete (0.8); else 1 again."""
        first = self.swap(1.0)
        if first.completeness >= ENOUGH:
            return 1.0, first
        for dose in sorted(a for a in doses if a > 1):
            found = self.swap(dose)
            if found.completeness >= ENOUGH:
                return dose, found
        return 1.0, first


def _reached(before: Floats, after: Floats, start: NDArray[Any], goal: NDArray[Any]) -> float:
    reference = {k: before[start == k, k].mean() for k in np.unique(start)}
    wanted = np.array([reference.get(k, np.nan) for k in goal])
    return float(np.mean(after[np.arange(len(goal)), goal]) / np.nanmean(wanted))


class _Mahalanobis:
    def __init__(self, states: Floats) -> None:
        self._mean = states.mean(0)
        cov = np.cov(states.T).reshape(states.shape[1], -1)
        cov[np.diag_indices_from(cov)] += 1e-6 * np.trace(cov) / len(cov) + 1e-12
        self._root = np.linalg.inv(np.linalg.cholesky(cov))

    def __call__(self, states: Floats) -> Floats:
        return np.asarray((((states - self._mean) @ self._root.T) ** 2).sum(1))
