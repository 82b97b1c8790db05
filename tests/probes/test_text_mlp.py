"""A label of two words at once is known to the baseline `text_mlp`, which stands beside probes that are not linear."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression

import probing as pb
from probing import registry
from probing.probes._each_label import EachLabelProbe
from probing.probes.mlp import MLPProbe
from probing.probes.sklearn import SklearnProbe
from probing.probes.text_mlp import TextMLPProbe, TextMLPRegressorProbe
from probing.reporting.findings import finding, judge
from probing.reporting.task_results import by_task

FILLERS = [f"w{i}" for i in range(40)]
NOT_LINEAR = {
    *("mlp", "k_nearest", "bilinear", "structural", "attention_pooling", "softmax_pooling"),
    *("nearest_text", "text_mlp"),
}


def two_words(n, seed=0):
    """Texts of 12 words in which either, both or neither of two words are, and which of them are, `(n, 2)`."""
    rng = np.random.default_rng(seed)
    has = rng.integers(2, size=(n, 2))
    texts = []
    for row in has:
        words = list(rng.choice(FILLERS, 12))
        for word, here in zip(("apple", "brick"), row, strict=True):
            if here:
                words[rng.integers(12)] = word
        has[len(texts)] = [word in words for word in ("apple", "brick")]
        texts.append(" ".join(words))
    return np.array(texts, dtype=object), has


def states_of(has, seed=1):
    """States that hold which words are there, as mean-pooled states of any model do, and nothing else."""
    rng = np.random.default_rng(seed)
    return ((2.0 * has - 1) @ rng.standard_normal((2, 12)) + 0.1 * rng.standard_normal((len(has), 12))).astype("f4")


def statuses(states, y, texts, probes, **options):
    results = pb.probe(states, y, texts=texts, probes=probes, controls=[], progress=False, **options)
    (task,) = by_task(results)
    judged = {one.probe: judge(task, one) for one in task.results}
    return {name: outcome.status for name, outcome in judged.items() if outcome}, task


@pytest.mark.parametrize("kind", ["classes", "labels", "real"])
def test_a_label_of_two_words_at_once_is_not_beyond_the_baselines_of_texts(kind):
    texts, has = two_words(600)
    y = has[:, 0] ^ has[:, 1]
    if kind == "real":
        y = y + 0.1 * np.random.default_rng(2).standard_normal(len(y))
    if kind == "labels":
        y = np.array(['["odd", "x"]' if odd else '["x"]' for odd in y], dtype=object)
    probes = [MLPProbe(), "k_nearest"] if kind == "classes" else ["mlp", "k_nearest"]
    found, task = statuses(states_of(has), y, texts, probes)
    assert len(found) == 2 and all(status.startswith(("not beyond", "not shown")) for status in found.values()), found
    best = next(one for one in task.results if one.probe == "mlp").judged(task.primary)
    assert best.score.value > (0.8 if kind == "real" else 0.95)  # the states do hold it
    assert all(gain.is_shown for gain in best.gains if gain.baseline != "text_mlp")  # no other baseline knows it


def test_what_words_cannot_tell_stays_decodable_and_the_finding_says_what_the_baseline_combines():
    texts, has = two_words(600)
    rng = np.random.default_rng(3)
    hidden = rng.integers(2, size=(len(texts), 2))
    y = hidden[:, 0] ^ hidden[:, 1]
    found, task = statuses(states_of(np.hstack([has, hidden])[:, 2:]), y, texts, ["mlp", "k_nearest"])
    assert found == {"mlp": "decodable", "k_nearest": "decodable"}
    assert any("combines only the commonest words" in reason for reason in finding(task).overturned_by)


def test_linear_probes_are_fitted_and_judged_as_if_no_other_probe_were_beside_them():
    texts, has = two_words(300)
    alone, of_linear = statuses(states_of(has), has[:, 0], texts, ["linear"])
    both, of_both = statuses(states_of(has), has[:, 0], texts, ["linear", "mlp"])
    assert "text_mlp" not in {one.probe for one in of_linear.baselines}
    assert {one.probe for one in of_both.baselines} - {one.probe for one in of_linear.baselines} == {"text_mlp"}
    (linear,), (beside,) = of_linear.results, [one for one in of_both.results if one.probe == "linear"]
    assert alone["linear"] == both["linear"]
    for name in ("unit", "run", "recipe"):
        assert linear.provenance[name] == beside.provenance[name]
    for one, other in zip(linear.measures, beside.measures, strict=True):
        assert one.score == other.score
        assert [gain.gain for gain in one.gains] == [gain.gain for gain in other.gains]
    assert "text_mlp" in {gain.baseline for one in of_both.results[-1].measures for gain in one.gains}


def test_every_probe_says_whether_it_is_linear():
    members = {name: registry.get("probes", name).MEMBER for name in registry.names("probes")}
    assert {name for name, member in members.items() if not member.is_linear} == NOT_LINEAR
    wrapped = SklearnProbe(LogisticRegression()), SklearnProbe(RandomForestClassifier())
    assert [one.is_linear for one in wrapped] == [True, False]
    assert [EachLabelProbe(one).is_linear for one in wrapped] == [True, False]


@pytest.mark.parametrize("kind", [TextMLPProbe, TextMLPRegressorProbe])
def test_a_saved_probe_gives_the_same_and_a_second_fit_too(kind, tmp_path):
    texts, has = two_words(300)
    y = has[:, 0] ^ has[:, 1]
    train, test = texts[:200, None], texts[200:, None]
    first, second = (kind(hidden=8).fit(train, y[:200], dev=(texts[:50], y[:50])) for _ in range(2))
    first.save(tmp_path / "probe")
    loaded = pb.load_probe(tmp_path / "probe")
    for method in ("predict", "predict_log_proba") if kind is TextMLPProbe else ("predict",):
        expected = getattr(first, method)(test)
        assert (getattr(second, method)(test) == expected).all()
        assert (getattr(loaded, method)(test) == expected).all()
    many = kind(hidden=8).fit_many(train, [y[:200]], [3, 4], dev=(texts[:50], [y[:50]]))
    assert all((fit.predict(test) == first.predict(test)).all() for fit in many[0])


def test_of_many_texts_some_are_learned_from_and_every_class_is_among_them():
    texts, has = two_words(400)
    y = np.where(np.arange(400) == 7, 2, has[:, 0])
    probe = TextMLPProbe(most_texts=50).fit(texts, y)
    assert probe.classes_.tolist() == [0, 1, 2]
    assert {7, 399} <= set(probe._chosen(400, [y]).tolist()) and len(probe._chosen(400, [y])) <= 53
