"""Helpers of measures: predictions of fitted probes, rows grouped by code, one-against-rest scores, and the calibration
of log odds.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from probing.contracts.measure import Measure, Prediction
from probing.contracts.probe import Probe
from probing.errors import BadParameter
from probing.labels import Labels
from probing.statistics.clusters import Resampler

Ints = NDArray[np.int64]


def labels_of(prediction: Prediction, measure: str, needs: str) -> Labels:
    """Return the labels of the predicted rows.

    Raises:
        BadParameter: the prediction has no labels, or its rows are not of the kind that the measure needs (`choice` or
            `pair`).
    """
    labels = prediction.labels
    known = labels is not None and (labels.choice if needs == "choice" else labels.other_word) is not None
    if labels is None or not known:
        raise BadParameter(
            f"{measure} needs the rows behind a prediction",
            needed=f"Prediction.labels with rows that are {needs}s",
            found="none" if labels is None else f"{labels.level}s",
            next_step="score it by accuracy or r2",
        )
    return labels


def words_of(prediction: Prediction, measure: str) -> tuple[Labels, Ints, Ints]:
    """Return the labels of the predicted pairs, and the indices of their words a and b, each `(N,)`.

    Raises:
        BadParameter: the prediction has no labels, or its rows are not pairs.
    """
    labels = labels_of(prediction, measure, "pair")
    return labels, labels.word, np.asarray(labels.other_word)


def runs(codes: NDArray[Any]) -> tuple[Ints, Ints]:
    """Sort rows by code: return the row indices in the order of their codes, and the positions in that order where each
    code begins, followed by N.
    """
    order = np.argsort(codes, kind="stable")
    change = np.flatnonzero(np.diff(codes[order])) + 1
    return order, np.concatenate([[0], change, [len(codes)]]).astype(np.int64)


def log_probabilities(prediction: Prediction, measure: str, *, believed: bool = False) -> NDArray[np.float64]:
    """Return the probe's natural log probabilities `(N, K)`; with `believed`, those whose log odds were scaled on dev,
    if there are any.

    Raises:
        BadParameter: the probe gives no probabilities.
    """
    if prediction.log_probabilities is None:
        raise BadParameter(
            f"{measure} needs probabilities", found="a probe without them", next_step="score it by accuracy"
        )
    found = prediction.believed if believed else prediction.log_probabilities
    assert found is not None  # refused above
    return found


def indicators(y: NDArray[Any], n_classes: int) -> NDArray[np.float64]:
    """Return the classes of the rows in one-hot form: `(N, K)`, 1 in the column of the row's class, else 0."""
    found = np.zeros((len(y), n_classes))
    found[np.arange(len(y)), np.asarray(y, np.int64)] = 1.0
    return found


def mean_of_known(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the means over the last axis of `(..., K)`, without undefined values (NaN); NaN where no value is
    defined.
    """
    known = np.isfinite(scores)
    count = known.sum(-1)
    total = np.where(known, scores, 0.0).sum(-1)
    return np.asarray(np.where(count > 0, total / np.maximum(count, 1), np.nan))


_BLOCK = 1 << 19

Ranked = Callable[[NDArray[np.float64]], NDArray[np.float64]]


class OneVsRest(Measure):
    """A score of how well a probe ranks rows. With two classes the second is scored; with more, each class is scored
    against the rest, and the mean is reported.

    Rows are ranked by the log odds of the second class, or by the log probability of each class. A class that has none
    of the rows of the split, or all, is left out of the mean; a class that has none or all of the rows of a resample is
    left out of that resample's mean.
    """

    kinds = ("classes",)
    unit = "fraction"
    reads_probabilities: ClassVar[bool] = True
    needs_two_classes: ClassVar[bool] = True
    by_class: ClassVar[bool] = True

    @abstractmethod
    def shares(self, has: NDArray[np.bool_], score: NDArray[Any]) -> NDArray[np.float64]:
        """Return numbers `(N,)` whose mean over the rows of the class is the score on all rows.

        Args:
            has: `(N,)` whether each row has the class.
            score: `(N,)` scores by which rows are ranked.
        """

    @abstractmethod
    def ranked(self, has: NDArray[np.bool_], score: NDArray[Any], groups: NDArray[np.int64]) -> Ranked:
        """Return a function that takes cluster weights `(S, B)` of B resamples and returns the exact scores `(B,)` of
        one class; NaN where the class has none or all of the rows.
        """

    def row_statistics(self, y: NDArray[Any], prediction: Prediction) -> NDArray[np.float64]:
        """Return two columns for each of the C scored classes, `(N, 2C)`: the row's number from `shares` (0 for rows of
        other classes), and whether the row has the class. Ranks are those of the full split.

        Raises:
            BadParameter: the probe gives no probabilities.
        """
        pairs = self._contrasts(y, prediction)
        columns = [column for has, score in pairs for column in (np.where(has, self.shares(has, score), 0.0), has)]
        return np.stack(columns, axis=1).astype(np.float64) if columns else np.full((len(y), 2), np.nan)

    def from_totals(self, totals: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the mean over classes of (sum of the shares) / (number of rows of the class)."""
        parts = totals.reshape(*totals.shape[:-1], -1, 2)
        return mean_of_known(ratio(parts[..., 0], parts[..., 1]))

    def resampled(
        self, y: NDArray[Any], prediction: Prediction, groups: NDArray[np.int64], weights: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the exact scores `(R,)` under cluster weights `(R, S)`, with ranks of each resample; rows are sorted
        once per class, whatever R is.
        """
        step = max(1, _BLOCK // max(1, len(groups)))
        blocks = [np.ascontiguousarray(weights[low : low + step].T) for low in range(0, len(weights), step)]
        curves = (self.ranked(has, score, groups) for has, score in self._contrasts(y, prediction))
        scores = [np.concatenate([curve(block) for block in blocks]) for curve in curves]
        return mean_of_known(np.stack(scores, axis=-1)) if scores else np.full(len(weights), np.nan)

    def _contrasts(self, y: NDArray[Any], prediction: Prediction) -> list[tuple[NDArray[np.bool_], NDArray[Any]]]:
        logs = log_probabilities(prediction, type(self).__name__)
        y = np.asarray(y)
        two = logs.shape[1] == 2
        pairs = [(y == 1, logs[:, 1] - logs[:, 0])] if two else [(y == k, logs[:, k]) for k in range(logs.shape[1])]
        return [(has, score) for has, score in pairs if 0 < has.sum() < len(has)]


def ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return `part / whole`, NaN where `whole` is 0."""
    return np.asarray(np.where(whole > 0, part / np.where(whole > 0, whole, 1.0), np.nan))


_CELLS = 1 << 24
_NEARLY_ONE = 0.01


def predict(probe: Probe, X: NDArray[Any], labels: Labels) -> Prediction:
    """Return a fitted probe's predictions for the N rows of `labels`, with log probabilities `(N, K)` if the probe
    gives them.

    A class that does not occur in the probe's training has log probability -inf. For several labels per row, log
    probabilities are `(N, C, 2)`: of not having and of having each label.

    Raises:
        BadParameter: what the probe returns are not log probabilities.
    """
    n_classes = len(labels.classes)
    if labels.kind == "labels":
        each: Any = probe
        both = each.log_probabilities(X) if gives_probabilities(probe) else None
        return Prediction(np.asarray(probe.predict(X), np.int64), both, labels)
    if not n_classes:
        return Prediction(np.asarray(probe.predict(X), np.float64), labels=labels)
    if not gives_probabilities(probe):
        return Prediction(np.asarray(probe.predict(X), np.int64), labels=labels)
    classifier: Any = probe
    known = np.asarray(classifier.classes_, np.int64)
    logs = np.full((len(X), n_classes), -np.inf)
    logs[:, known] = _checked(classifier.predict_log_proba(X), (len(X), len(known)), probe)
    # No second pass over X where the prediction is the argmax of these.
    values = logs.argmax(1) if probe.predicts_most_probable else np.asarray(probe.predict(X), np.int64)
    return Prediction(values, logs, labels)


def _checked(logs: Any, shape: tuple[int, int], probe: Probe) -> NDArray[np.float64]:
    """Return log probabilities of which each row sums to one: of others an accuracy or bits would be false.

    Raises:
        BadParameter: what a probe returned is none.
    """
    found = np.asarray(logs)
    if found.shape != shape or found.dtype.kind not in "fiu":
        said = f"{found.shape} of {found.dtype}"
    else:
        totals = np.exp(found.astype(np.float64)).sum(1)
        wrong = np.flatnonzero(~(np.abs(totals - 1) < _NEARLY_ONE))
        if not len(wrong):
            return found.astype(np.float64, copy=False)
        said = f"a row whose probabilities sum to {totals[wrong[0]]:.4g}"
    raise BadParameter(
        f"{type(probe).__name__}.predict_log_proba gives no log probabilities",
        needed=f"natural logs of shape {shape}, whose exponentials sum to 1 in each row",
        found=said,
        next_step="end it in scipy.special.log_softmax(scores, axis=1)",
    )


def gives_probabilities(probe: Any) -> bool:
    """Return whether a classifier gives class probabilities; for a wrapped scikit-learn estimator, whether it has
    `predict_proba`.
    """
    probe = getattr(probe, "base", None) or probe  # of several labels at once: what is fitted on each
    wrapped = getattr(probe, "estimator", None)
    return hasattr(probe, "predict_log_proba") and (wrapped is None or hasattr(wrapped, "predict_proba"))


def resampled(measure: Measure, y: NDArray[Any], prediction: Prediction, resampler: Resampler) -> NDArray[np.float64]:
    """Return the scores `(R,)` of a measure on the resamples. Resamples are scored in blocks, so that float32 weights
    are not all converted to float64 at once.
    """
    weights = resampler.weights
    step = len(weights) if weights.dtype == np.float64 else max(1, _CELLS // weights.shape[1])
    blocks = (weights[low : low + step].astype(np.float64, copy=False) for low in range(0, len(weights), step))
    return np.concatenate([measure.resampled(y, prediction, resampler.groups, block) for block in blocks])


Floats = NDArray[np.float64]
_OF_NONE = -50 * float(np.log(2.0))  # what measures take the log of 0 for
_ROWS = 4096  # of dev at most: one number needs no more
_STEPS, _TOLERANCE = 50, 1e-6


@dataclass(frozen=True, eq=False)
class Tempers:
    """Holds the temperatures of one fit: factors that its log odds over the label frequencies are multiplied by.

    Attributes:
        temperatures: `(1,)`; for several labels per row `(C,)`.
        priors: `(1, K)` label frequencies of train; for several labels per row `(C, 2)`.
    """

    temperatures: Floats
    priors: Floats

    def applied(self, prediction: Prediction) -> Prediction:
        """Return the prediction with `tempered` set; its values and log probabilities are unchanged."""
        if prediction.log_probabilities is None:
            return prediction
        logs = _by_label(prediction.log_probabilities)
        found = [_tempered(logs[:, c], t, prior) for c, (t, prior) in enumerate(zip(*self._each, strict=True))]
        return replace(prediction, tempered=np.stack(found, axis=1).reshape(prediction.log_probabilities.shape))

    @property
    def _each(self) -> tuple[list[float], Floats]:
        return self.temperatures.tolist(), self.priors


def tempers_of(fits: Sequence[Probe], labels: Labels, X: Any, measures: Iterable[Measure]) -> list[Tempers] | None:
    """Return the temperatures of each fit, chosen on dev; None if no measure counts bits, a fit gives no probabilities,
    or there are no dev rows.

    Args:
        fits: the fits on one label set.
        labels: the label set.
        X: states of its dev rows.
        measures: the measures that will be scored.
    """
    rows = labels.rows("dev")
    if not any(one.counts_bits for one in measures) or not all(map(gives_probabilities, fits)) or not len(rows):
        return None
    within = calibrating(labels)
    if not isinstance(X, np.ndarray):  # laid out or streamed: read as a whole
        return [tempers_from(predict(fit, X, labels.take(rows)).take(within), labels) for fit in fits]
    return [tempers_from(predict(fit, X[within], labels.take(rows[within])), labels) for fit in fits]


def calibrating(labels: Labels) -> NDArray[np.int64]:
    """Return the indices, among the dev rows, of the rows on which temperatures are chosen: at most 4,096, evenly
    spaced.

    Rows whose input also occurs in train are not used if there are others, since a probe is more certain of them.
    """
    rows = labels.rows("dev")
    within = np.arange(len(rows))
    if labels.fresh is not None and labels.fresh[rows].any():
        within = np.flatnonzero(labels.fresh[rows])
    return within[np.linspace(0, len(within) - 1, min(len(within), _ROWS)).astype(np.int64)]


def tempers_from(prediction: Prediction, labels: Labels) -> Tempers:
    """Return the temperatures of a fit, given its predictions for the dev rows that `calibrating` names."""
    assert prediction.log_probabilities is not None  # the caller asked whether there are any
    logs, within = _by_label(prediction.log_probabilities), calibrating(labels)
    y = labels.y[labels.rows("dev")][within].reshape(len(within), -1)
    trained = labels.y[labels.rows("train")].reshape(-1, y.shape[1])
    priors = np.stack([np.bincount(of, minlength=logs.shape[2]) / len(of) for of in trained.T])
    return Tempers(np.array([temperature(logs[:, c], y[:, c], prior) for c, prior in enumerate(priors)]), priors)


def temperature(logs: Floats, y: NDArray[np.int64], prior: Floats) -> float:
    """Return the temperature t ≥ 0 that minimises mean log loss + (t − 1)² / 2N, for log p ∝ log prior + t (log p − log
    prior).

    The objective is convex in t. The penalty has the weight of one row: it keeps t finite if all rows are predicted
    correctly, and near 1 if there are few rows. At t = 0 only the label frequencies are left.

    Args:
        logs: `(N, K)` natural log probabilities of the probe.
        y: `(N,)` class codes.
        prior: `(K,)` label frequencies of train; rows of a class with frequency 0 are left out.

    References:
        Guo et al. 2017, On calibration of modern neural networks, §4.2 (there without a prior or a penalty).
    """
    known = prior > 0
    kept = known[y]
    n = int(kept.sum())
    if not n or known.sum() < 2:
        return 1.0
    offsets, own = np.log(prior[known]), (np.cumsum(known) - 1)[y[kept]]
    scores = _finite(logs[kept][:, known]) - offsets
    chosen = scores[np.arange(n), own]
    if float((scores @ prior[known] - chosen).mean()) >= 1 / n:
        return 0.0  # the loss rises from there on
    t, low, high = 1.0, 0.0, np.inf
    for _ in range(_STEPS):
        p = np.exp(log_softmax(offsets + t * scores, axis=1))
        mean = (p * scores).sum(1)
        slope = float((mean - chosen).mean()) + (t - 1) / n
        curvature = float(((p * scores**2).sum(1) - mean**2).mean()) + 1 / n
        low, high = (low, t) if slope > 0 else (t, high)
        after = t - slope / curvature
        if not low <= after <= high:  # where log loss is flat, Newton's step is too long
            after = (low + high) / 2 if np.isfinite(high) else 2 * t + 1
        if abs(after - t) <= _TOLERANCE * (1 + t):
            return float(after)
        t = after
    return float(t)


def _by_label(logs: Floats) -> Floats:
    """Return the logs as `(N, C, K)`; for classes, C is 1."""
    return logs if logs.ndim == 3 else logs[:, None]


def _finite(logs: Floats) -> Floats:
    return np.where(np.isneginf(logs), _OF_NONE, logs)


def _tempered(logs: Floats, t: float, prior: Floats) -> Floats:
    """Return the tempered logs `(N, K)`; those of a class that is not in train stay as the probe gives them."""
    known = prior > 0
    if known.sum() < 2:
        return logs
    offsets, found = np.log(prior[known]), logs.copy()
    found[:, known] = log_softmax(offsets + t * (_finite(logs[:, known]) - offsets), axis=1)
    return found
