"""Laws of measures: each is what its definition or scikit-learn says, also on resampled rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import log_softmax
from scipy.stats import rankdata, spearmanr
from sklearn.metrics import accuracy_score, f1_score, log_loss, r2_score

from probing import registry
from probing.contracts import Measure, Prediction
from probing.errors import BadParameter
from probing.measures import spearman as spearman_file
from probing.measures.accuracy import Accuracy
from probing.measures.log_loss import LogLoss
from probing.measures.macro_f1 import MacroF1
from probing.measures.r2 import R2
from probing.measures.spearman import Spearman
from probing.statistics import cluster_weights

# Those of pairs and choices need the rows behind them: test_trees.py has their oracles.
EVERY: dict[str, Measure] = {name: registry.get("measures", name).MEMBER() for name in registry.names("measures")}
MEASURES = {name: measure for name, measure in EVERY.items() if not measure.needs}
CLASSES = 6
ORACLES: dict[str, Callable[[NDArray[Any], Prediction], float]] = {
    "accuracy": lambda y, p: accuracy_score(y, p.values),
    "macro_f1": lambda y, p: f1_score(y, p.values, average="macro"),
    "log_loss": lambda y, p: log_loss(y, np.exp(p.log_probabilities), labels=range(CLASSES)) / math.log(2),
    "r2": lambda y, p: r2_score(y, p.values),
    "spearman": lambda y, p: spearmanr(y, p.values).statistic,
}


def sample(kind: str, seed: int, n: int = 200) -> tuple[NDArray[Any], Prediction]:
    """Targets and a fair prediction. Classes: 4 is rare, 5 never true, 3 never predicted. Real: with ties."""
    random = np.random.default_rng(seed)
    if kind == "real":
        y = random.normal(5, 2, n).round(1)
        return y, Prediction((0.7 * y + random.normal(0, 1, n)).round(1))
    y = random.choice(5, n, p=[0.4, 0.3, 0.18, 0.1, 0.02])
    y[:5] = range(5)
    logits = random.normal(size=(n, CLASSES)) + 1.5 * np.eye(CLASSES)[y]
    logits[:, 3] -= 20
    logs = log_softmax(logits, axis=1)
    return y, Prediction(logs.argmax(1), logs)


def taken(prediction: Prediction, rows: NDArray[Any]) -> Prediction:
    logs = prediction.log_probabilities
    return Prediction(prediction.values[rows], None if logs is None else logs[rows])


def one(*values: float) -> Prediction:
    return Prediction(np.array(values))


def test_every_registered_measure_has_an_oracle() -> None:
    assert set(ORACLES) == set(MEASURES)


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("seed", range(5))
def test_each_measure_is_its_oracle(name: str, seed: int) -> None:
    measure = MEASURES[name]
    y, prediction = sample(measure.kinds[0], seed)
    assert measure.value(y, prediction) == pytest.approx(ORACLES[name](y, prediction), rel=1e-9)


@pytest.mark.parametrize("name", MEASURES)
def test_a_resample_scores_what_its_rows_repeated_would(name: str) -> None:
    measure = MEASURES[name]
    y, prediction = sample(measure.kinds[0], 7)
    groups = np.random.default_rng(1).permutation(
        np.r_[np.arange(20), np.random.default_rng(2).geometric(0.2, 180) % 20]
    )
    weights = cluster_weights(20, resamples=60, seed=3)
    scores = measure.resampled(y, prediction, groups, weights)
    rows = [np.repeat(np.arange(200), weight[groups].astype(int)) for weight in weights]
    assert scores == pytest.approx([ORACLES[name](y[r], taken(prediction, r)) for r in rows], rel=1e-9)
    assert len({len(r) for r in rows}) > 10 and scores.std() > 0.001
    whole = measure.resampled(y, prediction, groups, np.ones((1, 20)))
    assert whole == pytest.approx([measure.value(y, prediction)], rel=1e-9)


@pytest.mark.parametrize("name", MEASURES)
def test_totals_of_any_leading_shape_are_scored_each_by_itself(name: str) -> None:
    measure = MEASURES[name]
    y, prediction = sample(measure.kinds[0], 2)
    rows = measure.row_statistics(y, prediction)
    assert rows.ndim == 2 and len(rows) == 200 and rows.dtype == np.float64
    totals = np.stack([rows[i * 30 : 30 * i + 30].sum(0) for i in range(6)])
    assert measure.from_totals(totals.reshape(2, 3, -1)) == pytest.approx(
        np.array([measure.from_totals(total) for total in totals]).reshape(2, 3)
    )


@pytest.mark.parametrize("name", MEASURES)
def test_better_predictions_score_in_the_direction_the_measure_says(name: str) -> None:
    measure = MEASURES[name]
    y, fair = sample(measure.kinds[0], 4)
    logs = None if fair.log_probabilities is None else np.log(0.99 * np.eye(CLASSES)[y] + 0.01 / CLASSES)
    good, bad = Prediction(y, logs), taken(fair, np.random.default_rng(0).permutation(200))
    scores = [measure.value(y, prediction) for prediction in (bad, fair, good)]
    assert scores == sorted(scores, reverse=not measure.higher_is_better) and len(set(scores)) == 3


def test_macro_f1_is_the_mean_over_classes_present_counted_by_hand() -> None:
    # Class 0: 2·1/(2+1); class 1: 2·1/(1+3); class 2: 0; class 3 occurs nowhere; class 4 is predicted only: 0.
    y, values = np.array([0, 0, 1, 2, 2]), np.array([0, 1, 1, 1, 4])
    assert MacroF1().value(y, Prediction(values)) == pytest.approx((2 / 3 + 1 / 2) / 4)
    assert Accuracy().value(y, Prediction(values)) == pytest.approx(2 / 5)


def test_a_class_that_a_resample_lacks_does_not_count_in_its_macro_f1() -> None:
    y, groups = np.array([0, 1, 1, 2]), np.array([0, 0, 1, 2])
    scores = MacroF1().resampled(y, Prediction(np.array([0, 1, 1, 0])), groups, np.array([[2.0, 1.0, 0.0], [0, 0, 3]]))
    assert scores == pytest.approx([1.0, 0.0])


def test_log_loss_is_in_bits_and_a_certain_mistake_costs_fifty() -> None:
    uniform = np.full((8, CLASSES), -math.log(CLASSES))
    y = np.arange(8) % CLASSES
    assert LogLoss().value(y, Prediction(y, uniform)) == pytest.approx(math.log2(CLASSES))
    quarter = np.log([[0.25, 0.75], [0.5, 0.5]])
    assert LogLoss().value(np.array([0, 1]), Prediction(y[:2], quarter)) == pytest.approx(1.5)
    certain = np.array([[0.0, -np.inf]])
    assert LogLoss().value(np.array([1]), Prediction(np.array([0]), certain)) == 50.0
    assert LogLoss().value(np.array([0]), Prediction(np.array([0]), certain)) == 0.0
    assert (LogLoss.unit, LogLoss.higher_is_better, LogLoss.reads_probabilities) == ("bits", False, True)


def test_log_loss_of_the_label_frequencies_is_the_label_entropy() -> None:
    y = np.repeat([0, 1, 2], [8, 4, 4])
    logs = np.tile(np.log([0.5, 0.25, 0.25]), (16, 1))
    assert LogLoss().value(y, Prediction(y, logs)) == pytest.approx(1.5)


def test_log_loss_without_probabilities_is_refused() -> None:
    with pytest.raises(BadParameter, match="probabilities"):
        LogLoss().value(np.array([0]), Prediction(np.array([0])))


def test_r2_is_one_for_the_truth_nought_for_the_mean_and_below_for_worse() -> None:
    y = np.array([1.0, 2.0, 6.0])
    assert R2().value(y, one(1, 2, 6)) == 1.0
    assert R2().value(y, one(3, 3, 3)) == pytest.approx(0.0)
    assert R2().value(y, one(3, 2, 3)) == pytest.approx(1 - 13 / 14)
    assert R2().value(y, one(6, 2, 1)) == pytest.approx(1 - 50 / 14)


def test_r2_of_far_off_targets_loses_no_digits() -> None:
    y, prediction = sample("real", 0)
    far = R2().value(y + 1e7, Prediction(prediction.values + 1e7))
    assert far == pytest.approx(R2().value(y, prediction), rel=1e-6)


def test_spearman_sees_order_alone() -> None:
    y, prediction = sample("real", 3)
    rho = Spearman().value(y, prediction)
    assert Spearman().value(np.exp(y), Prediction(prediction.values**3)) == pytest.approx(rho)
    assert Spearman().value(y, Prediction(-prediction.values)) == pytest.approx(-rho)
    assert Spearman().value(y, Prediction(10 * y)) == pytest.approx(1.0)


def test_midranks_under_weights_are_those_of_repeated_rows() -> None:
    values, weights = np.array([3.0, 1.0, 3.0, 2.0]), np.array([2, 1, 1, 3])
    ranks = spearman_file._Order(values).midranks(weights[:, None].astype(float))[:, 0]
    assert np.repeat(ranks, weights) == pytest.approx(rankdata(np.repeat(values, weights)))


def test_spearman_in_small_blocks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    y, prediction = sample("real", 5)
    groups, weights = np.arange(200) // 10, cluster_weights(20, resamples=23, seed=0)
    whole = Spearman().resampled(y, prediction, groups, weights)
    monkeypatch.setattr(spearman_file, "_BLOCK", 1000)
    assert (Spearman().resampled(y, prediction, groups, weights) == whole).all() and len(whole) == 23


@pytest.mark.parametrize("measure", [R2(), Spearman()])
def test_constant_targets_are_undefined_also_in_single_resamples(measure: Measure) -> None:
    assert math.isnan(measure.value(np.full(3, 0.1), one(1, 2, 3)))
    y, groups = np.array([0.1, 0.1, 0.3, 0.9]), np.array([0, 0, 1, 1])
    scores = measure.resampled(y, one(0, 1, 2, 3), groups, np.array([[2.0, 0.0], [1.0, 1.0], [0.0, 2.0]]))
    assert np.isnan(scores).tolist() == [True, False, False]


def test_constant_predictions_have_no_rank_correlation() -> None:
    assert Spearman().value(np.array([1.0, 2.0, 3.0]), one(4, 4, 4)) == 0.0
