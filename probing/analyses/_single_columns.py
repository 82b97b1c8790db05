"""Single columns of a sparse matrix, such as latents of a dictionary, that stand for a class: the best one on train,
with its scores on test, and further ones that fire where it does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.analyses._fits import measure_of, point
from probing.contracts.analysis import SiteData
from probing.contracts.measure import Prediction
from probing.measures._rows import resampled
from probing.results.analysis import Point
from probing.statistics.bootstrap import one_sided_p, replicates
from probing.statistics.clusters import FRACTION, Resampler
from probing.statistics.sparse_columns import SortedColumns

Flags = NDArray[np.bool_]
Floats = NDArray[np.float64]

MOST_CLASSES = 12
LEAST_ROWS = 10  # of a class, in train and in test
MOST_OTHERS = 4  # columns beside the main one
LEVEL = 0.05
LEAST_GAIN = 0.03  # of F1 on train, for a further column to count (Chanin et al. 2024, §3)


@dataclass(frozen=True)
class _Rule:
    """A column that fires from a cut on."""

    column: int
    cut: float

    def fires(self, X: Any) -> Flags:
        return np.asarray(X[:, [self.column]].toarray()[:, 0] >= self.cut)


def single_columns(states: Mapping[str, Any], random: Mapping[str, Any] | None, data: SiteData) -> list[Point]:
    """Return the numbers of the columns that stand for each class, for the commonest classes.

    The main column of a class is the one with the largest area under the ROC curve on train, and fires from the cut on
    that has the largest F1 on train. Its scores on test are `auroc`, `precision`, `recall`, `f1`, and `p`, one-sided
    and times the number of columns searched (`searched`). Where p is at most 0.05, columns follow that fire where it
    does not: each raises the F1 of "any of them fires" on train by at least 0.03. `recovers` is the share of the
    class's test rows on which no earlier column fires and this one does; `false_alarms` the same share of the other
    rows.

    Args:
        states: columns by split, sparse `(n, m)`.
        random: the same number of columns without meaning, whose best one is reported for comparison (with the control
            `random`); None: none.
        data: labels and resamplers.

    References:
        Chanin et al. 2024, A is for Absorption: Studying Feature Splitting and Absorption in Sparse Autoencoders, §3.
    """
    train, test = data.labels.take(data.labels.rows("train")), data.resamplers["test"]
    y, y_test = train.y, data.labels.y[test.rows]
    common: list[int] = np.argsort(-np.bincount(y, minlength=len(train.classes)), kind="stable").tolist()
    enough = [c for c in common if min((y == c).sum(), (y_test == c).sum()) >= LEAST_ROWS]
    order = SortedColumns.of(states["train"])
    by_chance = None if random is None else SortedColumns.of(random["train"])
    points: list[Point] = []
    for c in sorted(enough[:MOST_CLASSES]):
        place = {"x_name": "latent", "label": train.classes[c]}
        points += _of_class(order, states, y == c, y_test == c, test, place)
        if random is not None and by_chance is not None:
            column = int(by_chance.areas(y == c).argmax())
            of_test = _area(random["test"], column, y_test == c, test)
            points.append(_scored("auroc", *of_test, test, place | {"x": float(column), "control": "random"}))
    return points


def _of_class(
    order: SortedColumns, states: Mapping[str, Any], has: Flags, has_test: Flags, test: Resampler, place: dict[str, Any]
) -> list[Point]:
    """Return the numbers of the columns of one class."""
    areas, fired = order.areas(has), np.zeros(len(has), bool)
    f1, cuts = order.best_cuts(has, fired)
    main = _Rule(int(areas.argmax()), float(cuts[areas.argmax()]))
    points = _main(main, states["test"], has_test, test, len(order.active), float(areas.max()), place)
    if points[-1].value > LEVEL:
        return points  # what stands for nothing is not split either
    reached, fired = float(f1[main.column]), main.fires(states["train"])
    fired_test = main.fires(states["test"])
    for _ in range(MOST_OTHERS):
        f1, cuts = order.best_cuts(has, fired)
        column = int(f1.argmax())
        if f1[column] < reached + LEAST_GAIN:
            break
        rule, reached = _Rule(column, float(cuts[column])), float(f1[column])
        points += _other(rule, states["test"], has_test, fired_test, test, place)
        fired, fired_test = fired | rule.fires(states["train"]), fired_test | rule.fires(states["test"])
    return points


def _main(
    rule: _Rule, X: Any, has: Flags, test: Resampler, searched: int, on_train: float, place: dict[str, Any]
) -> list[Point]:
    place = place | {"x": float(rule.column)}
    value, samples = _area(X, rule.column, has, test)
    spread = replicates(samples[None, None], clusters=test.clusters, seed=test.seed)
    p = one_sided_p(value - 0.5, spread.samples - 0.5, df=spread.df)
    return [
        _scored("auroc", value, samples, test, place),
        *_counts(rule, X, has, test, place),
        Point("train_auroc", on_train, FRACTION, **place),
        Point("cut", rule.cut, "activation", **place),
        Point("searched", float(searched), "latents", **place),
        Point("p", min(1.0, p * searched), "p", **place),
    ]


def _counts(rule: _Rule, X: Any, has: Flags, test: Resampler, place: dict[str, Any]) -> list[Point]:
    """Return precision, recall and F1 of a rule on test."""
    fires = rule.fires(X)
    right, fired, own = (has & fires).astype(float), fires.astype(float), has.astype(float)
    return [
        _ratio("precision", right, fired, test, place),
        _ratio("recall", right, own, test, place),
        _ratio("f1", 2 * right, fired + own, test, place),
    ]


def _other(rule: _Rule, X: Any, has: Flags, fired: Flags, test: Resampler, place: dict[str, Any]) -> list[Point]:
    """Return the numbers of a further column: on all test rows, and on those on which no earlier one fires."""
    place, fires = place | {"x": float(rule.column)}, rule.fires(X)
    missed, silent = has & ~fired, ~has & ~fired
    return [
        *_counts(rule, X, has, test, place),
        _ratio("recovers", (missed & fires).astype(float), missed.astype(float), test, place),
        _ratio("false_alarms", (silent & fires).astype(float), silent.astype(float), test, place),
        Point("missed", float(missed.sum()), "rows", **place),
    ]


def _scored(quantity: str, value: float, samples: Floats, test: Resampler, place: dict[str, Any]) -> Point:
    return point(quantity, value, samples[None, None], FRACTION, test, **place)


def _ratio(quantity: str, top: Floats, bottom: Floats, test: Resampler, place: dict[str, Any]) -> Point:
    """Return the ratio of two sums over rows; 0 where there is nothing to divide by."""
    n = test.weights.shape[1]
    tops, bottoms = (test.weights @ np.bincount(test.groups, one, n) for one in (top, bottom))
    value = float(top.sum() / bottom.sum()) if bottom.sum() else 0.0
    samples = np.divide(tops, bottoms, out=np.full(len(tops), np.nan), where=bottoms > 0)
    return _scored(quantity, value, samples, test, place)


def _area(X: Any, column: int, has: Flags, test: Resampler) -> tuple[float, Floats]:
    """Return the area under the ROC curve of a column on test, and on every resample `(R,)`."""
    score, measure, y = X[:, [column]].toarray()[:, 0].astype(np.float64), measure_of("auroc"), has.astype(np.int64)
    prediction = Prediction(y, np.stack([np.zeros_like(score), score], axis=1))
    return float(measure.value(y, prediction)), resampled(measure, y, prediction, test)
