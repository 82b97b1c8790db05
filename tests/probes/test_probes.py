"""Laws of every probe, held on planted data."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils.estimator_checks import check_estimator

from probing import registry
from probing.errors import BadParameter, DegenerateDesign, UnsupportedFormat
from probing.measures._rows import predict
from probing.probes._estimator import load_probe
from probing.probes._rows import moments
from probing.probes.linear import LinearProbe
from probing.probes.mlp import MLPProbe, MLPRegressorProbe
from probing.probes.prior import MeanProbe, PriorProbe
from probing.probes.ridge import RidgeProbe
from probing.probes.sklearn import SklearnProbe, SklearnRegressorProbe
from probing.probes.word_type import WordTypeMeanProbe, WordTypeProbe
from tests.samples.training_samples import labels_of

ALL = [
    getattr(registry.get("probes", name), role)
    for name in registry.names("probes")
    for role in ("MEMBER", "REGRESSION_MEMBER")
    if hasattr(registry.get("probes", name), role)
]
SAVED = [kind for kind in ALL if kind not in (SklearnProbe, SklearnRegressorProbe)]


def blobs(n=400, k=4, d=6, seed=0, spread=1.0):
    rng = np.random.default_rng(seed)
    y = rng.integers(k, size=n)
    centres = 2 * np.random.default_rng(99).normal(size=(k, d))
    return (centres[y] + spread * rng.normal(size=(n, d))).astype(np.float32), y


def texts_of(y):
    """Sentences as baselines get them, `(N, 1)`: the label's word among others, and as many words as the label."""
    return np.array([" ".join(["Le", f"Mot{label}é", *["x"] * (label * 3)]) for label in y], dtype=object)[:, None]


def data_for(kind, seed=0):
    X, y = blobs(seed=seed)
    X = y[:, None] * 3 + np.arange(len(y))[:, None] % 3 if kind.input not in ("states", "pieces") else X
    if kind.input == "text":
        return texts_of(y), np.array(["noun", "verb", "Ärger", "x"])[y] if "classes" in kind.kinds else y * 2.0
    if "real" in kind.kinds:
        return X, X[:, 0] * 2.0 + 1
    return X, np.array(["noun", "verb", "Ärger", "x"])[y]


# What the checks ask of an estimator shows after few epochs; at defaults they would fit for minutes.
FEW_EPOCHS = {
    "AttentionPoolingProbe": {"max_epochs": 5},
    "BilinearProbe": {"max_epochs": 2, "rank": 8, "learning_rate": 0.01},
    "MLPProbe": {"max_epochs": 10},
    "MLPRegressorProbe": {"max_epochs": 10},
    "SoftmaxPoolingProbe": {"max_epochs": 5},
    "StructuralProbe": {"max_epochs": 3, "learning_rate": 0.01},
}


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
@pytest.mark.filterwarnings("ignore")
def test_every_member_is_a_scikit_learn_estimator(kind, monkeypatch):
    monkeypatch.setenv("SCIPY_ARRAY_API", "1")  # without it scikit-learn skips the check of its array dispatch
    probe = kind(**FEW_EPOCHS.get(kind.__name__, {}))
    statuses = {check["check_name"]: check["status"] for check in check_estimator(probe, on_skip=None)}
    assert set(statuses.values()) == {"passed"}, statuses


@pytest.mark.parametrize("kind", SAVED, ids=lambda kind: kind.__name__)
def test_a_saved_probe_loads_bit_equal(kind, tmp_path):
    X, y = data_for(kind)
    probe = kind(**FEW_EPOCHS.get(kind.__name__, {})).fit(X, y)
    probe.save(tmp_path / "deep" / "probe.v1")
    loaded = load_probe(tmp_path / "deep" / "probe.v1")
    assert type(loaded) is kind and loaded.get_params() == probe.get_params()
    np.testing.assert_array_equal(loaded.predict(X), probe.predict(X))
    if hasattr(probe, "classes_"):
        assert loaded.predict(X).dtype.kind == "U"
        np.testing.assert_array_equal(loaded.predict_log_proba(X), probe.predict_log_proba(X))


def test_integer_classes_survive_saving(tmp_path):
    X, y = blobs()
    LinearProbe().fit(X, y * 7 - 3).save(tmp_path / "p")
    loaded = load_probe(tmp_path / "p.json")
    assert loaded.classes_.dtype == np.int64 and loaded.classes_.tolist() == [-3, 4, 11, 18]


@pytest.mark.parametrize(
    "module, name", [("os", "system"), ("probing.probes.linear", "ClassifierProbe"), ("x.linear", "LinearProbe")]
)
def test_a_card_cannot_name_an_unregistered_class(module, name, tmp_path):
    X, y = blobs()
    LinearProbe().fit(X, y).save(tmp_path / "p")
    card = json.loads((tmp_path / "p.json").read_text())
    (tmp_path / "p.json").write_text(json.dumps({**card, "probe": module, "class": name}))
    with pytest.raises(UnsupportedFormat, match="not registered"):
        load_probe(tmp_path / "p")


def test_damaged_and_missing_probes_are_refused(tmp_path):
    with pytest.raises(BadParameter, match="no saved probe"):
        load_probe(tmp_path / "p")
    X, y = blobs()
    LinearProbe().fit(X, y).save(tmp_path / "p")
    arrays = (tmp_path / "p.safetensors").read_bytes()
    (tmp_path / "p.safetensors").write_bytes(arrays[:50])
    with pytest.raises(UnsupportedFormat):
        load_probe(tmp_path / "p")
    (tmp_path / "p.safetensors").write_bytes(arrays)
    card = json.loads((tmp_path / "p.json").read_text())
    (tmp_path / "p.json").write_text(json.dumps({**card, "parameters": {"evil": 1}}))
    with pytest.raises(UnsupportedFormat):
        load_probe(tmp_path / "p")


def test_a_saved_probe_whose_parts_do_not_fit_is_refused_when_it_is_read(tmp_path):
    X, y = blobs()
    LinearProbe().fit(X, np.array(["a", "b", "c", "d"])[y]).save(tmp_path / "p")
    card = json.loads((tmp_path / "p.json").read_text())
    assert card["text"]["classes"] == ["a", "b", "c", "d"]
    for classes in (["a", "b", "c"], ["a", "b", "c", "d", "e"], []):
        (tmp_path / "p.json").write_text(json.dumps({**card, "text": {"classes": classes}}))
        with pytest.raises(UnsupportedFormat):
            load_probe(tmp_path / "p")


@pytest.mark.parametrize("delta", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("probe", [LinearProbe(), MLPProbe(hidden=8)], ids=["linear", "mlp"])
def test_two_gaussians_delta_apart_are_told_apart_as_often_as_theory_says(probe, delta):
    rng = np.random.default_rng(3)
    y = rng.integers(2, size=24_000)
    X = rng.normal(size=(len(y), 4)).astype(np.float32)
    X[:, 0] += delta * y
    fitted = probe.fit(X[:4000], y[:4000])
    assert fitted.score(X[4000:], y[4000:]) == pytest.approx(norm.cdf(delta / 2), abs=0.012)


def test_xor_is_chance_to_linear_and_plain_to_mlp():
    rng = np.random.default_rng(0)
    X = rng.choice([-1.0, 1.0], size=(4000, 2)) + 0.2 * rng.normal(size=(4000, 2))
    y = (X[:, 0] * X[:, 1] > 0).astype(int)
    train, test = slice(0, 2000), slice(2000, 4000)
    assert LinearProbe().fit(X[train], y[train]).score(X[test], y[test]) < 0.6
    assert MLPProbe(hidden=32, random_state=1).fit(X[train], y[train]).score(X[test], y[test]) > 0.97


def test_renaming_labels_and_permuting_rows_changes_no_linear_prediction():
    X, y = blobs(spread=2.0)
    probe = LinearProbe(tolerance=1e-6).fit(X, y)
    order = np.random.default_rng(1).permutation(len(y))
    names = np.array(["d", "a", "c", "b"])
    other = LinearProbe(tolerance=1e-6).fit(X[order], names[y[order]])
    columns = [list(other.classes_).index(name) for name in names]
    np.testing.assert_allclose(other.predict_proba(X)[:, columns], probe.predict_proba(X), atol=2e-3)
    np.testing.assert_array_equal(other.predict(X), names[probe.predict(X)])


def test_a_constant_feature_has_scale_one_and_blows_nothing_up():
    X, y = blobs()
    constant = np.full((len(X), 1), 0.1, np.float32)
    mean, scale = moments(np.hstack([X, constant * 1e3]))
    assert scale[-1] == 1.0 and mean[-1] == pytest.approx(100.0)
    plain = LinearProbe(tolerance=1e-6).fit(X, y)
    padded = LinearProbe(tolerance=1e-6).fit(np.hstack([X, constant]), y)
    np.testing.assert_allclose(padded.predict_proba(np.hstack([X, constant + 1e-4])), plain.predict_proba(X), atol=2e-3)


@pytest.mark.parametrize("kind", [LinearProbe, MLPProbe, PriorProbe, SklearnProbe])
def test_fit_many_leaves_the_recipe_unfitted_and_gives_one_fit_per_label_set_and_seed(kind):
    X, y = blobs()
    recipe = kind()
    fits = recipe.fit_many(X, [y, y[::-1] // 2], [0, 1])
    assert [[len(fit.classes_) for fit in row] for row in fits] == [[4, 4], [2, 2]]
    with pytest.raises(NotFittedError):
        recipe.predict(X)


def test_batched_mlps_are_as_good_as_one_by_one():
    X, y = blobs(n=1500, spread=2.5)
    X_test, y_test = blobs(n=3000, spread=2.5, seed=5)
    recipe, seeds = MLPProbe(hidden=16), [0, 1, 2]
    fits = recipe.fit_many(X, [y, y % 2], seeds, dev=(X_test[:500], [y_test[:500], y_test[:500] % 2]))
    for m, (labels, truth) in enumerate([(y, y_test), (y % 2, y_test % 2)]):
        alone = [recipe.with_seed(s).fit(X, labels, dev=(X_test[:500], truth[:500])) for s in seeds]
        batched = np.mean([fit.score(X_test, truth) for fit in fits[m]])
        assert batched == pytest.approx(np.mean([fit.score(X_test, truth) for fit in alone]), abs=0.015)
        assert len({fit.score(X_test, truth) for fit in fits[m]}) > 1 or batched == 1.0
        assert all(fit.random_state == seed for fit, seed in zip(fits[m], seeds, strict=True))


def test_mlp_starts_from_its_own_seed_and_repeats_exactly():
    X, y = blobs()
    first, again, other = (MLPProbe(hidden=8, random_state=s).fit(X, y).predict_log_proba(X) for s in (4, 4, 5))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_mlp_keeps_a_copy_of_its_best_epoch():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(300, 20)).astype(np.float32), rng.integers(2, size=300)
    dev = (rng.normal(size=(300, 20)).astype(np.float32), rng.integers(2, size=300))
    probe = MLPProbe(hidden=64, learning_rate=1e-2, patience=5).fit(X, y, dev=dev)
    assert probe.converged_ and probe.dev_losses_[-1] > min(probe.dev_losses_)
    assert probe.best_epoch_ == 1 + int(np.argmin(probe.dev_losses_))
    kept = -probe.predict_log_proba(dev[0])[np.arange(300), dev[1]].mean()
    assert kept == pytest.approx(min(probe.dev_losses_), rel=1e-4)


def test_mlp_says_when_it_ran_out_of_epochs():
    X, y = blobs()
    assert not MLPProbe(max_epochs=2).fit(X, y).converged_


def test_mlp_with_dropout_and_two_layers_learns():
    X, y = blobs(n=1500)
    assert MLPProbe(layers=2, dropout=0.3).fit(X, y).score(X, y) > 0.9


def test_mlp_refuses_a_dev_set_it_cannot_score_and_bad_options():
    X, y = blobs()
    with pytest.raises(DegenerateDesign):
        MLPProbe().fit(X, y, dev=(X, y + 100))
    for options in ({"hidden": 0}, {"layers": 3}, {"dropout": 1.0}, {"patience": 0}):
        with pytest.raises(BadParameter):
            MLPProbe(**options).fit(X, y)


def test_mlp_regresses_a_product_that_ridge_cannot():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(4000, 3)).astype(np.float32)
    y = 1000 + 50.0 * X[:, 0] * X[:, 1]
    probes = MLPRegressorProbe(hidden=32, max_epochs=60).fit_many(X[:3000], [y[:3000]], [0, 1])
    assert all(probe.score(X[3000:], y[3000:]) > 0.9 for probe in probes[0])
    assert RidgeProbe().fit(X[:3000], y[:3000]).score(X[3000:], y[3000:]) < 0.1


def test_ridge_is_the_closed_form_and_shares_it_over_targets():
    from sklearn.linear_model import Ridge

    X, _ = blobs()
    rng = np.random.default_rng(2)
    targets = [X @ rng.normal(size=6) + rng.normal(size=400) for _ in range(3)]
    mean, scale = moments(X)
    fits = RidgeProbe(l2=5.0).fit_many(X, targets, [0, 1])
    for row, y in zip(fits, targets, strict=True):
        oracle = Ridge(alpha=5.0).fit((X - mean) / scale, y)
        np.testing.assert_allclose(row[1].predict(X), oracle.predict((X - mean) / scale), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(row[0].predict(X), RidgeProbe(l2=5.0).fit(X, y).predict(X), atol=1e-9)


def test_ridge_survives_more_columns_than_rows_without_penalty():
    X = np.random.default_rng(0).normal(size=(20, 50))
    y = X[:, 0]
    np.testing.assert_allclose(RidgeProbe(l2=0.0).fit(X, y).predict(X), y, atol=1e-4)


def test_prior_says_the_training_frequencies():
    probe = PriorProbe().fit(np.zeros((4, 1)), ["a", "b", "b", "b"])
    assert probe.predict(np.ones((2, 1))).tolist() == ["b", "b"]
    np.testing.assert_allclose(probe.predict_proba(np.ones((1, 1))), [[0.25, 0.75]])
    assert MeanProbe().fit(np.zeros((4, 1)), [1.0, 2, 3, 6]).predict([[9.0]]).tolist() == [3.0]


def test_word_type_gives_the_commonest_label_of_the_type_and_the_prior_elsewhere():
    X = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2])[:, None]
    y = np.array(["a", "a", "b", "c", "b", "b", "b", "b", "b"])
    probe = WordTypeProbe().fit(X, y)
    assert probe.predict([[0], [1], [2], [77]]).tolist() == ["a", "b", "b", "b"]
    np.testing.assert_allclose(probe.predict_proba([[77]]), [[2 / 9, 6 / 9, 1 / 9]])
    np.testing.assert_allclose(probe.predict_proba([[0]])[0, 0], (2 + 0.5 * 2 / 9) / 3.5)
    assert WordTypeMeanProbe().fit(X, np.arange(9.0)).predict([[1], [5]]).tolist() == [3.5, 4.0]


def test_one_class_is_refused_by_probes_that_learn():
    X = np.random.default_rng(0).normal(size=(10, 2))
    for probe in (LinearProbe(), MLPProbe(), SklearnProbe()):
        with pytest.raises(DegenerateDesign, match="one class"):
            probe.fit(X, np.zeros(10, int))


def test_a_wrapped_estimator_is_cloned_seeded_and_not_saved(tmp_path):
    X, y = blobs()
    tree = DecisionTreeClassifier(max_features=2)
    probe = SklearnProbe(tree)
    fits = clone(probe).fit_many(X, [y], [3, 4])[0]
    assert not hasattr(tree, "tree_") and [fit.estimator_.random_state for fit in fits] == [3, 4]
    with pytest.raises(BadParameter, match="cannot be saved"):
        fits[0].save(tmp_path / "p")
    assert not list(tmp_path.iterdir())
    assert SklearnProbe(SVC()).fit(X, y).score(X, y) > 0.9


class Says(PriorProbe):
    """Gives what it is told as log probabilities of two classes."""

    def __init__(self, what: str = "") -> None:
        self.what = what

    def predict_log_proba(self, X):
        logs = np.log(np.full((len(X), 2), 0.5))
        return {"wide": logs[:, :1], "short": logs[1:], "nan": logs * np.nan, "zero": logs * 0, "none": None}[self.what]


@pytest.mark.parametrize("what", ["wide", "short", "nan", "zero", "none"])
def test_a_probe_that_gives_no_log_probabilities_is_refused_and_not_scored(what):
    labels = labels_of(np.array([0, 1] * 4), ["train", "test"] * 4)
    probe = Says(what).fit(np.zeros((8, 3)), labels.y)
    with pytest.raises(BadParameter, match=r"Says\.predict_log_proba gives no log probabilities"):
        predict(probe, np.zeros((8, 3)), labels)
