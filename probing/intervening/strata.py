"""Strata of rows: all covariates crossed, or bins of the chance of the property given them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, Ridge

Ints = NDArray[np.int64]
BINS = 5


def crossed(covariates: Sequence[NDArray[Any]]) -> Ints:
    """`(N,)` codes of the combinations of values; real values count by their quintile."""
    code = np.zeros(len(covariates[0]), np.int64)
    for values in covariates:
        own = binned(values, BINS) if values.dtype.kind == "f" else values
        codes = np.unique(own, return_inverse=True)[1].reshape(-1)
        code = np.unique(code * (int(codes.max()) + 1) + codes, return_inverse=True)[1].reshape(-1)
    return code.astype(np.int64)


def propensity(z: NDArray[Any], n_classes: int, covariates: Sequence[NDArray[Any]], folds: Ints) -> NDArray[np.float64]:
    """`(N,)` what the covariates say of z, each fold predicted from the others.

    Of more than two classes the first principal component of the log-odds; of real values the prediction.

    References:
        Rosenbaum and Rubin 1984, Reducing bias in observational studies using subclassification.
    """
    X = np.concatenate([_columns(values) for values in covariates], axis=1)
    score = np.zeros(len(z))
    for fold in np.unique(folds):
        own, rest = folds == fold, folds != fold
        if not n_classes:
            score[own] = Ridge(1.0).fit(X[rest], z[rest]).predict(X[own])
        elif len(np.unique(z[rest])) > 1:
            logits = LogisticRegression(max_iter=1000).fit(X[rest], z[rest]).decision_function(X[own])
            score[own] = logits if logits.ndim == 1 else _first_component(logits)
    return score


def _columns(values: NDArray[Any]) -> NDArray[np.float64]:
    if values.dtype.kind == "f":
        spread = float(values.std()) or 1.0
        return np.asarray(((values - values.mean()) / spread)[:, None], np.float64)
    return np.asarray(values[:, None] == np.unique(values)[None, :], np.float64)


def _first_component(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    centred = logits - logits.mean(0)
    direction = np.linalg.svd(centred, full_matrices=False)[2][0]
    return np.asarray(centred @ (direction * np.sign(direction[np.abs(direction).argmax()])))


def binned(values: NDArray[Any], n_bins: int) -> Ints:
    """`(N,)` codes of as many quantiles."""
    edges = np.unique(np.nanquantile(np.asarray(values, np.float64), np.linspace(0, 1, n_bins + 1)[1:-1]))
    return np.searchsorted(edges, values, side="right").astype(np.int64)
