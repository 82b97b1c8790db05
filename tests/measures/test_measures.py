"""Laws of measures: each is what its definition or scikit-learn says, also on resampled rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import log_softmax
from scipy.stats import norm, rankdata, spearmanr
from sklearn.metrics import (
    accuracy_score,
    brier_score_loss,
    f1_score,
    log_loss,
    r2_score,
    recall_score,
    roc_auc_score,
    roc_curve,
    root_mean_squared_error,
)

from probing import registry
from probing.contracts.measure import Measure, Prediction
from probing.errors import BadParameter
from probing.measures import _rows as one_vs_rest_file
from probing.measures import spearman as spearman_file
from probing.measures.accuracy import Accuracy
from probing.measures.auroc import AUROC
from probing.measures.brier import Brier
from probing.measures.calibration import Calibration
from probing.measures.log_loss import LogLoss
from probing.measures.macro_f1 import MacroF1
from probing.measures.r2 import R2
from probing.measures.recall_at_fpr import RecallAtFPR
from probing.measures.spearman import Spearman
from probing.measures.usable_information import UsableInformation
from probing.statistics.bootstrap import cluster_weights
from tests.samples.training_samples import labels_of

# Those of pairs and choices need the rows behind them: test_trees.py has their oracles.
EVERY: dict[str, Measure] = {name: registry.get("measures", name).MEMBER() for name in registry.names("measures")}
CLASSES = 6
PRIOR = np.array([5, 4, 3, 2, 1, 1]) / 16
TRAIN = labels_of(
    np.repeat(range(CLASSES), [5, 4, 3, 2, 1, 1]), ["train"] * 16, classes=tuple("ABCDEF")
)  # of which measures are told
MEASURES: dict[str, Measure] = {name: measure.informed(TRAIN) for name, measure in EVERY.items() if not measure.needs}


def by_class(score: Callable[[Any, Any], float]) -> Callable[[NDArray[Any], Prediction], float]:
    """Mean over the classes present of the score of each against the rest."""

    def oracle(y: NDArray[Any], prediction: Prediction) -> float:
        return float(np.mean([score(y == k, prediction.log_probabilities[:, k]) for k in np.unique(y)]))

    return oracle


def recall_of(y: NDArray[Any], score: NDArray[Any], fpr: float = 0.01) -> float:
    false, true, _ = roc_curve(y, score, drop_intermediate=False)
    return float(true[false <= fpr + 1e-12].max())


def brier_of(y: NDArray[Any], prediction: Prediction) -> float:
    p = np.exp(prediction.log_probabilities)
    return sum(float(brier_score_loss((y == k).astype(int), p[:, k], pos_label=1)) for k in range(p.shape[1]))


def calibration_of(y: NDArray[Any], prediction: Prediction) -> float:
    """Sorted by confidence, cut in 15 equal runs."""
    confidence = np.exp(prediction.log_probabilities)[np.arange(len(y)), prediction.values]
    runs = np.split(np.argsort(confidence), [math.ceil(k * len(y) / 15) for k in range(1, 15)])
    return float(sum(abs((confidence[r] - (y == prediction.values)[r]).sum()) for r in runs) / len(y))


ORACLES: dict[str, Callable[[NDArray[Any], Prediction], float]] = {
    "accuracy": lambda y, p: accuracy_score(y, p.values),
    "macro_f1": lambda y, p: f1_score(y, p.values, average="macro"),
    "log_loss": lambda y, p: log_loss(y, np.exp(p.log_probabilities), labels=range(CLASSES)) / math.log(2),
    "usable_information": lambda y, p: (
        (
            log_loss(y, np.tile(PRIOR, (len(y), 1)), labels=range(CLASSES))
            - log_loss(y, np.exp(p.log_probabilities), labels=range(CLASSES))
        )
        / math.log(2)
    ),
    "balanced_accuracy": lambda y, p: recall_score(y, p.values, average="macro", labels=np.unique(y)),
    "auroc": by_class(roc_auc_score),
    "recall_at_fpr": by_class(recall_of),
    "brier": brier_of,
    "calibration": calibration_of,
    "rmse": lambda y, p: root_mean_squared_error(y, p.values),
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


def tied(seed: int, classes: int, n: int = 120) -> tuple[NDArray[Any], Prediction]:
    """Classes and probabilities in a few steps only, so that most scores are tied."""
    random = np.random.default_rng(seed)
    y = np.r_[np.arange(classes), random.integers(0, classes, n - classes)]
    steps = np.round(random.random((n, classes)) + 0.3 * np.eye(classes)[y], 1) + 0.1
    logs = np.log(steps / steps.sum(1, keepdims=True)) if classes == 2 else np.log(steps / 20)
    return y, Prediction(logs.argmax(1), logs)


def taken(prediction: Prediction, rows: NDArray[Any]) -> Prediction:
    logs = prediction.log_probabilities
    return Prediction(prediction.values[rows], None if logs is None else logs[rows])


def one(*values: float) -> Prediction:
    return Prediction(np.array(values))


def test_every_registered_measure_has_an_oracle() -> None:
    missing, gone = sorted(set(MEASURES) - set(ORACLES)), sorted(set(ORACLES) - set(MEASURES))
    assert not missing and not gone, (
        f"give ORACLES in this file another way to compute {missing}; not registered: {gone}"
    )


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("seed", range(5))
def test_each_measure_is_its_oracle(name: str, seed: int) -> None:
    measure = MEASURES[name]
    y, prediction = sample(measure.kinds[0], seed)
    assert measure.value(y, prediction) == pytest.approx(ORACLES[name](y, prediction), rel=1e-9)


# Calibration keeps the bins of the full split and moves its resamples: it has laws of its own below.
@pytest.mark.parametrize("name", sorted(set(MEASURES) - {"calibration"}))
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


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("fpr", [0.01, 0.1, 0.29])
def test_ranks_with_ties_are_those_of_scikit_learn_also_in_resamples(classes: int, fpr: float) -> None:
    y, prediction = tied(classes, classes)
    groups, weights = np.arange(120) % 12, cluster_weights(12, resamples=40, seed=1)
    for measure, score in ((AUROC(), roc_auc_score), (RecallAtFPR(fpr=fpr), lambda a, b: recall_of(a, b, fpr))):
        found = measure.resampled(y, prediction, groups, weights)
        for weight, value in [(np.ones(12), measure.value(y, prediction)), *zip(weights, found, strict=True)]:
            rows = np.repeat(np.arange(120), weight[groups].astype(int))
            logs = prediction.log_probabilities[rows]
            odds = logs[:, 1] - logs[:, 0]
            known = [1] if classes == 2 else range(classes)
            each = [score(y[rows] == k, odds if classes == 2 else logs[:, k]) for k in known if (y[rows] == k).any()]
            assert value == pytest.approx(np.mean(each), rel=1e-9)
        assert found.std() > 0.001


def test_a_resample_without_one_of_two_classes_is_undefined_and_of_more_speaks_of_the_others() -> None:
    weights = np.array([[2.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
    for measure in (AUROC(), RecallAtFPR(fpr=0.5)):
        y, prediction = np.array([0, 0, 1, 1]), tied(0, 2, 4)[1]
        assert np.isnan(measure.resampled(y, prediction, np.array([0, 0, 1, 1]), weights)).tolist() == [
            True,
            False,
            True,
        ]
        assert math.isnan(measure.value(np.zeros(4, int), prediction))
        assert np.isnan(measure.resampled(np.zeros(4, int), prediction, np.array([0, 0, 1, 1]), weights)).all()
        y, prediction = np.array([0, 1, 1, 2]), tied(0, 3, 4)[1]
        assert np.isfinite(measure.resampled(y, prediction, np.array([0, 0, 1, 1]), weights)).all()


def test_ranks_in_small_blocks_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    y, prediction = sample("classes", 5)
    groups, weights = np.arange(200) // 10, cluster_weights(20, resamples=23, seed=0)
    whole = [m.resampled(y, prediction, groups, weights) for m in (AUROC(), RecallAtFPR())]
    monkeypatch.setattr(one_vs_rest_file, "_BLOCK", 1000)
    parts = [m.resampled(y, prediction, groups, weights) for m in (AUROC(), RecallAtFPR())]
    assert np.array_equal(whole, parts) and len(whole[0]) == 23


def test_auroc_of_two_gaussians_is_what_theory_says_and_chance_without_difference() -> None:
    random, n = np.random.default_rng(0), 40000
    y = np.arange(n) % 2
    for delta in (0.0, 1.0, 2.0):
        odds = random.normal(size=n) + delta * y
        logs = -np.logaddexp(0, np.stack([odds, -odds], axis=1))
        assert AUROC().value(y, Prediction(y, logs)) == pytest.approx(norm.cdf(delta / math.sqrt(2)), abs=0.01)
        theory = norm.sf(norm.isf(0.05) - delta)
        assert RecallAtFPR(fpr=0.05).value(y, Prediction(y, logs)) == pytest.approx(theory, abs=0.015)


def test_no_more_than_the_allowed_share_of_others_is_flagged() -> None:
    odds, y = np.array([5.0, 4, 3, 2, 1, 0]), np.array([1, 0, 1, 0, 1, 0])
    logs = -np.logaddexp(0, np.stack([odds, -odds], axis=1))
    found = [RecallAtFPR(fpr=fpr).value(y, Prediction(y, logs)) for fpr in (0.33, 0.34, 0.67)]
    assert found == pytest.approx([1 / 3, 2 / 3, 1.0])
    for bad in (0.0, 1.0):
        with pytest.raises(BadParameter, match="fpr"):
            RecallAtFPR(fpr=bad)


def test_usable_information_of_the_prior_is_nought_of_certainty_the_entropy_and_needs_to_be_told() -> None:
    y = np.repeat(range(CLASSES), [5, 4, 3, 2, 1, 1])
    measure, entropy = UsableInformation().informed(TRAIN), -(PRIOR * np.log2(PRIOR)).sum()
    prior = Prediction(np.zeros(16, int), np.log(np.tile(PRIOR, (16, 1))))
    with np.errstate(divide="ignore"):
        certain = Prediction(y, np.log(np.eye(CLASSES)[y]))
    assert measure.value(y, prior) == pytest.approx(0.0, abs=1e-12)
    assert measure.value(y, certain) == pytest.approx(entropy)
    assert measure.value(y, certain) + LogLoss().value(y, certain) == pytest.approx(LogLoss().value(y, prior))
    with pytest.raises(BadParameter, match="label frequencies"):
        UsableInformation().value(y, prior)


def test_bits_are_bits_and_no_other_measure_counts_them() -> None:
    # A probe that says 1/4 everywhere on four equally frequent labels: 2 bits, 1.386 nats.
    y, labels = np.arange(8) % 4, labels_of(np.arange(8) % 4, ["train"] * 8, classes=tuple("ABCD"))
    uniform, sure = np.full((8, 4), math.log(0.25)), np.log(np.full((8, 4), 0.25) + 0.25 * np.eye(4)[y])
    sure = sure - np.log(np.exp(sure).sum(1, keepdims=True))
    expected = {"log_loss": (2.0, math.log2(2.5)), "usable_information": (0.0, 2 - math.log2(2.5))}
    in_bits = {name: m for name, m in MEASURES.items() if m.unit == "bits"}
    assert set(in_bits) == set(expected)
    for name, measure in in_bits.items():
        told = measure.informed(labels)
        found = [told.value(y, Prediction(y, logs)) for logs in (uniform, sure)]
        assert found == pytest.approx(expected[name], abs=1e-9)
    assert not any("nat" in measure.unit.split() for measure in MEASURES.values())


def test_brier_of_two_classes_is_twice_the_binary_score() -> None:
    y, prediction = tied(3, 2)
    binary = brier_score_loss(y, np.exp(prediction.log_probabilities)[:, 1])
    assert Brier().value(y, prediction) == pytest.approx(2 * binary)


def test_calibration_sees_over_confidence_and_not_honest_doubt() -> None:
    random, n = np.random.default_rng(0), 60000
    p = random.uniform(0.5, 1.0, n)
    y = (random.random(n) > p).astype(int)  # class 0 with probability p
    said = np.zeros(n, int)
    honest, certain = (Prediction(said, np.log(np.stack([q, 1 - q], axis=1))) for q in (p, 0.5 + 0.999 * (p > 0) / 2))
    assert Calibration().value(y, honest) < 0.01
    assert Calibration().value(y, certain) == pytest.approx(0.25, abs=0.01)
    assert Calibration(bins=1).value(y, honest) < Calibration(bins=1000).value(y, honest)


def test_calibration_of_equal_confidences_is_one_bin_and_its_interval_holds_the_score() -> None:
    y = np.arange(600) % 3 == 0
    same = Prediction(np.zeros(600, int), np.log(np.tile([0.7, 0.3], (600, 1))))
    assert Calibration().value(y.astype(int), same) == pytest.approx(abs(0.7 - 2 / 3))
    y, prediction = sample("classes", 1, 900)
    samples = Calibration().resampled(y, prediction, np.arange(900) % 90, cluster_weights(90, resamples=500))
    value = Calibration().value(y, prediction)
    assert samples.mean() == pytest.approx(value, abs=1e-3) and samples.min() >= 0 and samples.std() > 0.001


@pytest.mark.parametrize("name", [name for name, m in MEASURES.items() if m.reads_probabilities])
def test_measures_of_probabilities_refuse_a_probe_without_them(name: str) -> None:
    with pytest.raises(BadParameter, match="probabilities"):
        MEASURES[name].value(np.array([0, 1]), Prediction(np.array([0, 1])))


@pytest.mark.parametrize("name", [name for name, m in MEASURES.items() if "classes" in m.kinds])
def test_renaming_labels_and_permuting_rows_changes_no_score(name: str) -> None:
    y, prediction = sample("classes", 6)
    measure, rows = MEASURES[name], np.random.default_rng(1).permutation(200)
    new = np.array([3, 5, 1, 0, 2, 4])  # the new code of each class
    logs = prediction.log_probabilities[:, np.argsort(new)]
    labels = labels_of(new[TRAIN.y], ["train"] * 16, classes=TRAIN.classes)
    renamed = measure.informed(labels).value(new[y], Prediction(new[prediction.values], logs))
    assert renamed == pytest.approx(measure.value(y, prediction), rel=1e-12)
    assert measure.value(y[rows], taken(prediction, rows)) == pytest.approx(measure.value(y, prediction), rel=1e-12)
