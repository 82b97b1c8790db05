"""Presets: published settings by name, overridden by what is given, and probes inside scikit-learn's tools."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from probing.errors import BadParameter, UnknownName
from probing.probes.linear import LinearProbe
from probing.probes.mlp import MLPProbe
from probing.recipes import PRESETS, build, full_recipe, normalised
from probing.training import train
from tests.samples.training_samples import vector_of, word_corpus, word_store


def test_the_published_settings_are_the_papers():
    default = build("probes", "mlp:preset=hewitt-liang-default").get_params()
    wanted = {"hidden": 1000, "dropout": 0.0, "learning_rate": 1e-3, "learning_rate_factor": 0.5, "patience": 4}
    assert {name: default[name] for name in wanted} == wanted
    designed = build("probes", "mlp:preset=hewitt-liang-designed").get_params()
    dropped = build("probes", "mlp:preset=dropout-0.4").get_params()
    assert designed == default | {"hidden": 45} and dropped == default | {"dropout": 0.4}


def test_parameters_given_override_the_preset_in_either_order():
    for spec in ("mlp:preset=hewitt-liang-designed,hidden=64", "mlp:hidden=64,preset=hewitt-liang-designed"):
        probe = build("probes", spec)
        assert (probe.hidden, probe.patience) == (64, 4)
        assert normalised("probes", spec) == "mlp:preset=hewitt-liang-designed,hidden=64"
        assert full_recipe(probe)["hidden"] == "64"


def test_a_class_of_a_script_is_called_the_same_in_the_workers_that_the_script_starts():
    """There its module is `__mp_main__`; by another name what a worker did would never be found."""

    def of(module):
        probe = type("Own", (LinearProbe,), {"__module__": module, "__qualname__": "Own"})()
        return full_recipe(probe)["class"]

    assert of("__mp_main__") == of("__main__") == "__main__.Own" != of("other")


def test_an_option_without_a_default_is_asked_for(monkeypatch):
    class Needs(LinearProbe):
        def __init__(self, k: int, l2: float = 1.0):
            self.k, self.l2 = k, l2

    monkeypatch.setattr("probing.probes.linear.MEMBER", Needs)
    assert build("probes", "linear:k=2").k == 2
    with pytest.raises(BadParameter, match="linear needs k"):
        build("probes", "linear:l2=2")


def test_the_regression_form_takes_the_preset_too():
    assert build("probes", "mlp:preset=hewitt-liang-designed", kind="real").hidden == 45


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("probe", ["linear", "mlp"])
def test_every_preset_fills_its_probe_or_is_refused_by_type(name, probe):
    given = PRESETS[name].get(probe)
    spec = f"{probe}:preset={name}"
    if given is None:
        with pytest.raises(UnknownName, match="preset of"):
            build("probes", spec)
    elif set(given) <= set(build("probes", probe).get_params()):
        built = build("probes", spec).get_params()
        assert {key: built[key] for key in given} == dict(given)
    else:
        with pytest.raises(BadParameter, match="cannot take the preset"):
            build("probes", spec)


def test_a_misspelt_preset_is_answered_with_the_nearest_and_probes_without_presets_refuse():
    with pytest.raises(UnknownName, match="hewitt-liang-default"):
        build("probes", "mlp:preset=hewit-liang-default")
    with pytest.raises(BadParameter, match="unknown parameter of ridge"):
        build("probes", "ridge:preset=dropout-0.4")


@pytest.mark.parametrize(
    "probe, grid",
    [
        (LinearProbe(), {"linearprobe__l2": [0.1, 1e6]}),
        (MLPProbe(max_epochs=15), {"mlpprobe__hidden": [1, 16], "mlpprobe__layers": [1, 2]}),
    ],
    ids=["linear", "mlp"],
)
def test_a_grid_search_over_a_pipeline_finds_the_better_setting(probe, grid):
    rng = np.random.default_rng(0)
    y = rng.integers(4, size=600)
    X = 2 * rng.normal(size=(4, 6))[y] + rng.normal(size=(600, 6))
    X[:, 0] *= 1e3
    search = GridSearchCV(make_pipeline(StandardScaler(), probe), grid, cv=3, scoring="neg_log_loss").fit(X, y)
    scores = search.cv_results_["mean_test_score"]
    assert np.isfinite(scores).all() and search.score(X, y) > -0.35
    best = next(iter(grid))
    worst = max(grid[best]) if isinstance(probe, LinearProbe) else min(grid[best])
    assert search.best_params_[best] != worst and not hasattr(probe, "classes_")


def test_results_show_the_name_of_the_preset_and_the_nearest_rows_find_what_they_carry():
    corpus = word_corpus(ambiguous=0.3)
    noise = np.random.default_rng(1)
    store = word_store(corpus, lambda form, tag: vector_of(tag, 6) + 0.3 * noise.standard_normal(6))
    spec = "mlp:preset=hewitt-liang-designed,max_epochs=3"
    results = train(store, corpus, task="upos", probes=[spec, "k_nearest:k=5"], controls=["word_type:draws=1"], seeds=1)
    found = {result.probe: result for result in results}
    assert found[spec].provenance["recipe"]["probe"]["hidden"] == "45"
    assert found["k_nearest:k=5"].measure("accuracy").score.value > 0.9
