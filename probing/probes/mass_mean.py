"""Classifies states along the difference of class means, plain or whitened, which is computed and not trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_softmax

from probing.errors import BadParameter, unknown_name
from probing.probes._descent import calibrate, calibrate_temperature
from probing.probes._estimator import ClassifierProbe, Dev
from probing.probes._rows import StreamedMoments, moments, solved, standardise

Matrix = NDArray[np.float64]
_BLOCK = 8192
INTERCEPTS = ("fitted", "midpoint")


class MassMeanProbe(ClassifierProbe):
    """Scores each class k by the product of the state with a direction, `M (μₖ - μ̄)`, where μₖ is the mean of the
    class, μ̄ the mean of these means, and M a matrix.

    By default M is the identity: with two classes the directions differ by θ = μ₁ - μ₀. States are centred and not
    scaled, so that a rotation changes nothing; coordinates that are constant in training are ignored.

    With `whitened` (linear discriminant analysis), M is the inverse of the pooled within-class covariance S. It is
    shrunk to `(1 - γ) S + γ m I`, with m the mean of S's diagonal, after every coordinate was scaled to unit variance,
    and then scaled back: so scaling a coordinate changes nothing, and large coordinates do not dominate the shrinkage.
    All is computed in float64.

    A direction alone gives no probabilities: logits are `τ · score + b`, with one temperature τ and an intercept b for
    each class, fitted on the training rows by penalised log loss. So the boundary between two classes is at right
    angles to the direction, but where it lies is fitted: it need not be half-way between the means, and a state may be
    assigned another class than that of the nearest mean. With `intercept=midpoint` the intercepts are `-τ (μₖ - m)'M(μₖ
    - m) / 2` with m the mean of all rows, and only τ is fitted: the predicted class is then that of the nearest mean in
    the metric M, as in scikit-learn's `NearestCentroid` where M is the identity.

    It assumes that classes differ by their means. Without `whitened` it misleads where a few coordinates are much
    larger than the others, as in most language models, since they then dominate the distance.

    Args:
        whitened: whether M is the inverse within-class covariance.
        shrinkage: γ, from 0 to 1, for `whitened`; None means that it is estimated (Ledoit & Wolf 2004, §3). With 0,
            more rows than columns are needed.
        intercept: `fitted`, or `midpoint`: boundaries half-way between the means, in the metric.

    Attributes:
        direction_: `(D, K)` in the coordinates of the states as given, columns in the order of `classes_`.
        temperature_: τ, 0 or more; above 0 with `midpoint`.
        intercept_: `(K,)` intercepts.
        shrinkage_: the γ that was used; 0 if not whitened.
        converged_: whether the fit of τ and the intercepts converged.
        mean_: vector that is subtracted from states before they are scored.

    References:
        Marks & Tegmark 2023, *The Geometry of Truth*, §5.1. Fisher 1936; Hastie, Tibshirani & Friedman 2009, §4.3.
        Ledoit & Wolf 2004, J. Multivariate Anal. 88.
    """

    accepts_device = True
    _arrays = ("classes", "direction", "intercept", "mean")
    _scalars = ("temperature", "shrinkage")

    direction_: Matrix
    intercept_: Matrix
    mean_: Matrix
    temperature_: float
    shrinkage_: float
    converged_: bool

    def __init__(self, whitened: bool = False, shrinkage: float | None = None, intercept: str = "fitted") -> None:
        self.whitened = whitened
        self.shrinkage = shrinkage
        self.intercept = intercept

    def predict_log_proba(self, X: ArrayLike) -> Matrix:
        """Return the natural log probabilities of K classes for each of the N states in X, `(N, K)`."""
        scores = (self._rows(X).astype(np.float64) - self.mean_) @ self.direction_
        return np.asarray(log_softmax(self.temperature_ * scores + self.intercept_, axis=1))

    def _fit_all(
        self, X: NDArray[Any], fits: Sequence[Sequence[Self]], targets: Sequence[NDArray[np.int64]], dev: Dev
    ) -> None:
        """Fit every label set; the products of all coordinates are summed once."""
        if self.shrinkage is not None and not 0 <= self.shrinkage <= 1:
            raise BadParameter("shrinkage must be from 0 to 1", needed="0 to 1, or none", found=repr(self.shrinkage))
        if self.intercept not in INTERCEPTS:
            raise unknown_name("intercept of mass_mean", str(self.intercept), INTERCEPTS, error=BadParameter)
        mean, scale = moments(X)
        rows = standardise(X, mean, scale)
        varies = np.einsum("nd,nd->d", rows, rows) > 0.5 * len(rows)  # 1 a row, but for constant coordinates
        gram = StreamedMoments.of(rows, device=self.device).centred / len(rows) if self.whitened else None
        for probe, y in zip((probe for (probe,) in fits), targets, strict=True):
            means = _class_means(rows, y, len(probe.classes_))
            towards, probe.shrinkage_ = (means - means.mean(0)) * varies, 0.0
            centres = (means * varies).T  # (D, K), from the mean of all rows
            if gram is None:
                probe.direction_ = (towards * scale).T
                in_metric = centres * scale[:, None] ** 2
            else:
                covariance, probe.shrinkage_ = _within(rows, y, means, gram, self.shrinkage)
                probe.direction_ = _solved(covariance, towards.T, self.device) / scale[:, None]
                in_metric = _solved(covariance, centres, self.device)
            probe.mean_ = mean
            scores = _scores(rows, probe.direction_ * scale[:, None])
            halves = -0.5 * np.einsum("dk,dk->k", centres, in_metric)
            fit = calibrate(scores, y) if self.intercept == "fitted" else calibrate_temperature(scores, halves, y)
            probe.temperature_, probe.intercept_, probe.converged_ = fit.temperature, fit.intercept, fit.converged


def _class_means(rows: NDArray[np.float32], codes: NDArray[np.int64], classes: int) -> Matrix:
    """Return the class means, `(K, D)` float64."""
    sums = np.zeros((classes, rows.shape[1]))
    for low in range(0, len(rows), _BLOCK):
        one_hot = (codes[low : low + _BLOCK] == np.arange(classes)[:, None]).astype(np.float64)
        sums += one_hot @ rows[low : low + _BLOCK].astype(np.float64)
    return sums / np.bincount(codes, minlength=classes)[:, None]


def _scores(rows: NDArray[np.float32], directions: Matrix) -> Matrix:
    blocks = (rows[low : low + _BLOCK].astype(np.float64) for low in range(0, len(rows), _BLOCK))
    return np.concatenate([block @ directions for block in blocks])


def _within(
    rows: NDArray[np.float32], codes: NDArray[np.int64], means: Matrix, gram: Matrix, shrinkage: float | None
) -> tuple[Matrix, float]:
    """Return the shrunk within-class covariance `(D, D)` and the shrinkage: total products less those of the class
    means.
    """
    counts = np.bincount(codes, minlength=len(means))
    covariance = gram - (means.T * (counts / len(rows))) @ means
    size = max(float(np.trace(covariance)) / len(covariance), 1e-12)
    if shrinkage is None:
        shrinkage = _ledoit_wolf(covariance, _fourth(rows, codes, means), len(rows), size)
    covariance = (1 - shrinkage) * covariance
    covariance.flat[:: len(covariance) + 1] += shrinkage * size
    return covariance, shrinkage


def _fourth(rows: NDArray[np.float32], codes: NDArray[np.int64], means: Matrix) -> float:
    """Return the mean of ‖x - μ_y‖⁴."""
    total = 0.0
    for low in range(0, len(rows), _BLOCK):
        residual = rows[low : low + _BLOCK].astype(np.float64) - means[codes[low : low + _BLOCK]]
        total += float((np.einsum("nd,nd->n", residual, residual) ** 2).sum())
    return total / len(rows)


def _ledoit_wolf(covariance: Matrix, fourth: float, n: int, size: float) -> float:
    """Return the γ of least expected squared error: noise of the covariance over its distance from `size · I`.

    It equals `sklearn.covariance.ledoit_wolf_shrinkage` of the rows less their class means, which takes 2 to 6 times
    as long as the covariance that all label sets share here.
    """
    square = float((covariance**2).sum())
    noise, distance = max(0.0, fourth - square) / n, square - len(covariance) * size**2
    return 1.0 if noise >= distance else noise / distance


def _solved(covariance: Matrix, right: Matrix, device: str) -> Matrix:
    """Return `covariance⁻¹ right` after adding 1e-9 of the mean variance to the diagonal, so that a singular matrix
    can be solved.
    """
    size = float(np.trace(covariance)) / len(covariance)
    covariance = covariance + max(size, 1e-12) * 1e-9 * np.eye(len(covariance))
    return solved(covariance, right, device)


MEMBER = MassMeanProbe
