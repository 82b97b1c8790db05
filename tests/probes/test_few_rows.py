"""Laws of training on fewer rows than coordinates: bits agree with accuracy, and all else stays as it was fitted."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression

from probing.contracts.measure import Prediction
from probing.labels import Labels
from probing.measures._rows import Tempers, calibrating, temperature, tempers_from
from probing.probes._estimator import load_probe
from probing.probes.linear import LinearProbe
from probing.reporting.findings import finding
from probing.results.probe import Gain, MeasureResult, ProbeResult, Score
from probing.text.corpus import Corpus
from probing.training import ProbeResults, train
from probing.verdicts.decodability import NOT_SHOWN, clears_frequencies, judged
from scripts._bench_gate import noise
from scripts._bench_train import Planted, example, forms, sentence_store
from tests.conftest import some

SPLITS = {"train": 400, "dev": 100, "test": 400}
MEASURES = ["accuracy", "log_loss", "usable_information", "brier"]
PROBES = ("linear", "linear:l2=0.001", "mlp")


@cache
def wide(k: int, width: int, strength: float, seed: int) -> tuple[Planted, Corpus]:
    """Sentences of k even classes, whose states differ along as many directions (two classes: along one)."""
    rng = np.random.default_rng([seed, k, width])
    n = sum(SPLITS.values())
    z = rng.permutation(np.arange(n) % k)
    codes = rng.normal(size=(k, width))
    codes = np.stack([codes[0], -codes[0]]) if k == 2 else codes
    codes *= strength / 2 / np.linalg.norm(codes, axis=1, keepdims=True)
    splits = [split for split, count in SPLITS.items() for _ in range(count)]
    examples = [
        dataclasses.replace(example(i, forms(rng), columns={"label": "abcd"[c]}), split=split)
        for i, (c, split) in enumerate(zip(z.tolist(), splits, strict=True))
    ]
    corpus = Corpus(tuple(examples))
    return sentence_store(corpus, noise(rng, n, width) + codes[z]), corpus


def run(k: int, width: int, strength: float, seed: int = 0, **options: Any) -> ProbeResults:
    store, corpus = wide(k, width, strength, seed)
    given: dict[str, Any] = {"probes": list(PROBES), "controls": [], "measures": MEASURES, "progress": False}
    return train(store, corpus, task="column:label", **(given | options))  # type: ignore[arg-type]


def of_states(results: ProbeResults) -> list[ProbeResult]:
    return [one for one in results if one.site != "(none)"]


# Bits and accuracy


@pytest.mark.parametrize(
    ("k", "width", "strength"),
    some([(2, 576, 2.5), (4, 576, 3.0), (2, 100, 1.5), (2, 576, 2.0), (2, 576, 4.0), (2, 1600, 4.0), (4, 576, 6.0)], 3),
)
def test_probes_that_are_right_more_often_than_the_prior_have_information(k: int, width: int, strength: float) -> None:
    right = 0
    for result in of_states(run(k, width, strength)):
        accuracy, bits = (result.measure(name).score for name in ("accuracy", "usable_information"))
        (gain,) = [one for one in result.measure("usable_information").gains if one.baseline == "prior"]
        if accuracy.value >= 1 / k + 0.1:
            assert bits.value > 0 and gain.gain.value > 0, (result.probe, accuracy, bits)
            right += 1
        assert bits.value > -0.06, (result.probe, bits)  # what one number chosen on 100 rows can cost
    assert right >= 2


@pytest.mark.parametrize(("k", "strength", "least"), [(2, 4.0, 0.86), (4, 7.0, 0.84)])
def test_information_is_not_negative_where_accuracy_is_about_nine_in_ten(k: int, strength: float, least: float) -> None:
    (result,) = of_states(run(k, 576, strength, probes=["linear"]))
    assert result.measure("accuracy").score.value >= least
    assert result.measure("usable_information").score.low > 0.5 * np.log2(k)


def test_the_analysis_of_information_says_the_same_as_the_measure() -> None:
    results = run(2, 576, 2.0, probes=["linear"], analyses=["information"])
    (result,) = of_states(results)
    (point,) = results.analyses[0].of("usable_information")
    assert point.value == pytest.approx(result.measure("usable_information").score.value) and point.value > 0


# What stays


def test_all_that_does_not_count_bits_is_the_probe_as_it_was_fitted(tmp_path: Path) -> None:
    (result,) = of_states(run(2, 576, 2.0, probes=["linear"], to=tmp_path))
    store, corpus = wide(2, 576, 2.0, 0)
    split = np.array([e.split for e in corpus.examples])
    y = np.array([e.columns["label"] == "b" for e in corpus.examples]).astype(np.int64)
    fit = LinearProbe().fit(store.states[split == "train"], y[split == "train"])
    saved = load_probe(tmp_path / result.provenance["saved"])
    X, truth = store.states[split == "test"], y[split == "test"]
    np.testing.assert_array_equal(saved.predict_proba(X), fit.predict_proba(X))
    np.testing.assert_array_equal(saved.coef_, fit.coef_)
    wanted = LogisticRegression(C=1.0, max_iter=2000, tol=1e-8).fit(
        (store.states[split == "train"] - fit.mean_) / fit.scale_, y[split == "train"]
    )
    np.testing.assert_allclose(fit.predict_proba(X), wanted.predict_proba((X - fit.mean_) / fit.scale_), atol=0.02)
    p = fit.predict_proba(X)
    assert result.measure("accuracy").score.value == np.mean(p.argmax(1) == truth)
    assert result.measure("brier").score.value == pytest.approx(np.mean(((p - np.eye(2)[truth]) ** 2).sum(1)))
    raw = -np.mean(np.log2(p[np.arange(len(p)), truth]))
    ((t,),) = result.provenance["temperatures"]
    logs = log_softmax(t * np.log(p), axis=1)[np.arange(len(p)), truth] / np.log(2)  # even classes: the prior is flat
    assert result.measure("log_loss").score.value == pytest.approx(raw)
    assert result.measure("usable_information").score.value == pytest.approx(1 + logs.mean(), abs=1e-3)
    assert -logs.mean() < raw - 0.1


def test_nothing_is_tempered_where_no_measure_counts_bits() -> None:
    (result,) = of_states(run(2, 100, 2.0, probes=["linear"], measures=["accuracy", "brier"]))
    assert "temperatures" not in result.provenance


# One number


def logs_of(rng: np.random.Generator, n: int, k: int, sure: float) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Log probabilities that are right when `sure` is 1, and labels drawn by them."""
    scores = rng.normal(size=(n, k))
    p = np.exp(log_softmax(scores, axis=1))
    y = (p.cumsum(1) < rng.random((n, 1))).sum(1).clip(max=k - 1)
    return log_softmax(sure * scores, axis=1), y


@pytest.mark.parametrize("k", [2, 5])
@pytest.mark.parametrize("sure", [0.3, 1.0, 4.0, 30.0])
def test_the_temperature_undoes_how_sure_a_probe_is(k: int, sure: float) -> None:
    logs, y = logs_of(np.random.default_rng(k), 4000, k, sure)
    assert temperature(logs, y, np.full(k, 1 / k)) * sure == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("seed", range(20))
def test_the_temperature_minimises_the_penalised_loss(seed: int) -> None:
    rng = np.random.default_rng(seed)
    k, n = int(rng.integers(2, 6)), int(rng.integers(1, 80))
    prior = rng.dirichlet(np.ones(k))
    logs, y = log_softmax(rng.normal(size=(n, k)) * np.exp(2 * rng.normal()), axis=1), rng.choice(k, n, p=prior)

    def loss(t: float) -> float:
        said = log_softmax(np.log(prior) + t * (logs - np.log(prior)), axis=1)
        return float(-said[np.arange(n), y].mean() + (t - 1) ** 2 / 2 / n)

    found = minimize_scalar(loss, bounds=(0, 200), method="bounded", options={"xatol": 1e-9})
    assert loss(temperature(logs, y, prior)) <= found.fun + 1e-7


def test_a_reader_of_nothing_says_the_label_frequencies_and_a_perfect_one_stays_finite() -> None:
    rng, prior = np.random.default_rng(0), np.array([0.8, 0.2])
    y = rng.choice(2, 500, p=prior)
    wrong = log_softmax(8.0 * (1 - np.eye(2)[y]), axis=1)
    none = Tempers(np.array([temperature(wrong, y, prior)]), prior[None])
    assert none.temperatures[0] < 1e-3
    said = none.applied(Prediction(wrong.argmax(1), wrong))
    assert said.tempered is not None and said.log_probabilities is wrong and (said.values == wrong.argmax(1)).all()
    np.testing.assert_allclose(np.exp(said.tempered), np.tile(prior, (500, 1)), atol=0.01)
    right = log_softmax(8.0 * np.eye(2)[y], axis=1)
    assert 0.5 < temperature(right, y, prior) < 10 and temperature(wrong[:0], y[:0], prior) == 1.0


def test_a_class_that_train_has_not_and_certain_zeros_stay_finite_where_they_are() -> None:
    with np.errstate(divide="ignore"):
        logs = np.log(np.array([[0.7, 0.3, 0.0], [1.0, 0.0, 0.0], [0.2, 0.8, 0.0]]))
    prior = np.array([0.5, 0.5, 0.0])
    t = temperature(logs, np.array([0, 1, 2]), prior)
    said = Tempers(np.array([t]), prior[None]).applied(Prediction(logs.argmax(1), logs)).tempered
    assert np.isfinite(t) and said is not None and np.isfinite(said[:, :2]).all() and np.isneginf(said[:, 2]).all()
    np.testing.assert_allclose(np.exp(said).sum(1), 1)


def labels(y: NDArray[np.int64], split: NDArray[np.str_], **more: Any) -> Labels:
    rows = np.arange(len(y))
    given: dict[str, Any] = {"kind": "classes", "classes": ("a", "b")} | more
    return Labels(task="z", y=y, split=split, groups=rows, example=rows, word=np.full(len(y), -1), row=rows, **given)


def test_dev_rows_that_train_knows_do_not_say_how_sure_a_probe_may_be() -> None:
    """A probe that knows its training rows by heart is right and sure of them, and of new ones knows nothing."""
    rng = np.random.default_rng(3)
    y = rng.integers(0, 2, 900)
    split = np.repeat(np.array(["train", "dev", "test"]), 300)
    fresh = np.arange(900) % 2 == 0
    right = np.where(fresh[300:600], rng.integers(0, 2, 300), y[300:600])
    logs = log_softmax(6.0 * np.eye(2)[right], axis=1)
    some, all_rows = labels(y, split, fresh=fresh), labels(y, split)
    whole = Prediction(right, logs)
    t, careless = (tempers_from(whole.take(calibrating(one)), one).temperatures[0] for one in (some, all_rows))
    assert t < 0.05 < 0.1 < careless


def test_each_of_several_labels_has_its_own_temperature() -> None:
    rng = np.random.default_rng(4)
    scores = rng.normal(size=(3000, 2))
    y = (rng.random((3000, 2)) < 1 / (1 + np.exp(-scores))).astype(np.int64)
    split = np.repeat(np.array(["train", "dev", "test"]), 1000)
    sure = np.array([5.0, 0.5])
    logs = log_softmax(np.stack([np.zeros_like(scores), sure * scores], axis=2), axis=2)
    values = (scores > 0).astype(np.int64)
    tempers = tempers_from(Prediction(values[1000:2000], logs[1000:2000]), labels(y, split, kind="labels"))
    np.testing.assert_allclose(tempers.temperatures * sure, 1, atol=0.2)
    said = tempers.applied(Prediction(values, logs)).tempered
    assert said is not None and said.shape == logs.shape and ((said[..., 1] > said[..., 0]) == values).mean() > 0.97


def test_tempered_predictions_keep_their_rows() -> None:
    rng = np.random.default_rng(5)
    logs = log_softmax(rng.normal(size=(20, 3)), axis=1)
    whole = Tempers(np.array([0.4]), np.full((1, 3), 1 / 3)).applied(Prediction(logs.argmax(1), logs))
    part = whole.take(np.array([3, 1, 7]))
    assert whole.believed is not None and part.believed is not None
    np.testing.assert_array_equal(part.believed, whole.believed[[3, 1, 7]])
    assert Prediction(logs.argmax(1), logs).believed is logs


# Words


def any_result(rng: np.random.Generator) -> tuple[ProbeResult, MeasureResult]:
    """An accuracy with any interval, and gains over the label frequencies or over words as well, shown or not."""
    n, prior = int(rng.integers(30, 3000)), float(rng.uniform(0.1, 0.9))
    value = float(np.clip(prior + rng.normal(scale=0.08), 0, 1))
    half = float(1.96 * np.sqrt(value * (1 - value) / n))
    gains = []
    for name, other in [("prior", prior), ("bag_of_words", prior + 0.05)][: int(rng.integers(1, 3))]:
        score = Score(value - other, value - other - 1.4 * half, value - other + 1.4 * half, n, "fraction")
        p = float(rng.choice([0.001, 0.2])) if score.low > 0.02 else 0.2
        gains.append(Gain(name, score, 0.02, p, p, family=int(rng.integers(1, 30))))
    measured = MeasureResult(
        "accuracy", "test", Score(value, value - half, value + half, n, "fraction"), True, gains=tuple(gains)
    )
    dev = dataclasses.replace(measured, split="dev")
    facts = {"sentences": {"test": n}, "rows": {"test": n}, "majority": prior}
    return ProbeResult(
        "column:label",
        "classes",
        "resid.0",
        "linear",
        (dev, measured),
        1,
        0,
        1,
        ("a", "b"),
        ((1, 0), (0, 1)),
        True,
        facts,
        {},
    ), measured


def test_no_sentence_says_not_decodable_and_one_that_shows_no_gain_tells_what_is_clear_of_the_prior() -> None:
    clear = 0
    for seed in range(400):
        result, measured = any_result(np.random.default_rng(seed))
        outcome = judged(result, measured)
        said = finding([result])
        assert "not decodable" not in " ".join([said.sentence, said.does_not_show, *said.evidence, *said.overturned_by])
        assert outcome.gain is not None
        is_clear = clears_frequencies(measured, outcome.gain)
        assert is_clear == (outcome.gain.baseline == "prior" and measured.score.low > result.facts["majority"])
        told = "the interval of the score by itself" in said.sentence
        assert told == (is_clear and said.status == NOT_SHOWN)
        clear += told
    assert 20 <= clear <= 300


def test_gains_in_bits_and_in_accuracy_do_not_contradict_each_other_where_rows_are_few() -> None:
    """Judged by information alone, a task is decodable that is so by its accuracy."""
    for strength in (2.5, 4.0):
        statuses = [
            finding(list(run(2, 576, strength, probes=["linear"], measures=[name]))).status
            for name in ("accuracy", "usable_information")
        ]
        assert statuses == ["decodable", "decodable"]
