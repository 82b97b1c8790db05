"""Laws of MLP probes trained in stacks: each network is the one it would be alone, and the one plain torch trains."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from torch import nn

from probing.errors import BadParameter
from probing.probes._stacked_networks import Data, Networks, NetworkSettings, _Draws, train
from probing.probes.mlp import MLPProbe, MLPRegressorProbe


def planted(n=400, width=7, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, width)).astype(np.float32)
    y = (X[:, 0] * X[:, 1] > 0).astype(int) + 2 * (X[:, 2] > 0.5)
    return X, y


@settings(max_examples=12, deadline=None)
@given(
    hidden=st.integers(1, 9),
    layers=st.integers(1, 2),
    dropout=st.sampled_from([0.0, 0.3]),
    factor=st.sampled_from([1.0, 0.5]),
    decay=st.sampled_from([0.0, 0.1]),
    patience=st.integers(1, 3),
    seeds=st.lists(st.integers(0, 99), min_size=1, max_size=3, unique=True),
)
def test_every_network_of_a_stack_is_the_one_it_would_be_alone(hidden, layers, dropout, factor, decay, patience, seeds):
    X, y = planted()
    targets = [y, y % 2, np.random.default_rng(1).integers(3, size=len(y))]
    recipe = MLPProbe(
        hidden=hidden,
        layers=layers,
        dropout=dropout,
        learning_rate=0.02,
        learning_rate_factor=factor,
        weight_decay=decay,
        patience=patience,
        batch_size=64,
        max_epochs=5,
    )
    dev = (X[300:], [labels[300:] for labels in targets])
    fits = recipe.fit_many(X[:300], [labels[:300] for labels in targets], seeds, dev=dev)
    for row, labels in zip(fits, targets, strict=True):
        for fit, seed in zip(row, seeds, strict=True):
            alone = recipe.with_seed(seed).fit(X[:300], labels[:300], dev=(X[300:], labels[300:]))
            assert (fit.n_iter_, fit.best_epoch_, fit.converged_) == (
                alone.n_iter_,
                alone.best_epoch_,
                alone.converged_,
            )
            np.testing.assert_allclose(fit.predict_log_proba(X), alone.predict_log_proba(X), atol=2e-3)


def test_networks_of_parts_know_the_labels_of_their_part_alone():
    X, y = planted(1500, seed=2)
    y = y % 2
    parts = [np.arange(1500) % 3 != k for k in range(3)]
    recipe = MLPProbe(learning_rate=0.01, random_state=4)
    fits = recipe.fit_parts(X, y, parts)
    for k, (fit, part) in enumerate(zip(fits, parts, strict=True)):
        assert (fit.predict(X[~part]) == y[~part]).mean() > 0.85
        other = recipe.fit_parts(X, np.where(part, y, 1 - y), parts)[k]
        np.testing.assert_allclose(fit.predict_log_proba(X), other.predict_log_proba(X), atol=2e-3)


def test_the_network_of_a_part_that_is_everything_is_the_one_of_fit():
    X, y = planted()
    recipe = MLPProbe(hidden=8, learning_rate=0.02, max_epochs=5, random_state=1)
    whole = np.ones(len(X), bool)
    for fit in (recipe.fit_parts(X, y, [whole])[0], recipe.fit_parts(X, y, [whole, np.arange(len(X)) < 250])[0]):
        np.testing.assert_allclose(fit.predict_log_proba(X), recipe.fit(X, y).predict_log_proba(X), atol=2e-3)


@pytest.mark.parametrize("kind", ["classes", "real"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_a_stack_follows_plain_torch_step_by_step(kind, layers, dropout):
    X, codes = planted(width=5)
    y = codes if kind == "classes" else X[:, 0].astype(np.float32) * 2
    outputs = 4 if kind == "classes" else 1
    recipe = NetworkSettings(6, layers, dropout, 0.01, 1.0, 0.02, 64, 4, 9, low=False)
    rows, targets = torch.from_numpy(X), torch.from_numpy(np.stack([y, y[::-1].copy()]))
    fits = train(Data(rows, targets, rows, targets), [outputs] * 2, [3], recipe)
    for m in range(2):
        network = plain(Networks.start(5, [6] * layers, [outputs] * 2, 3, low=False).arrays(m, outputs))
        found = losses_of_plain_torch(network, rows, targets[m], recipe, seed=3)
        np.testing.assert_allclose(fits[m][0].dev_losses, found, rtol=2e-4)


def plain(arrays):
    layers = []
    for weights, bias in zip(arrays[::2], arrays[1::2], strict=True):
        layer = nn.Linear(*weights.shape)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(weights.T))
            layer.bias.copy_(torch.from_numpy(bias))
        layers.append(layer)
    return nn.ModuleList(layers)


def losses_of_plain_torch(network, X, y, recipe, *, seed):
    rule = nn.MSELoss() if y.dtype.is_floating_point else nn.CrossEntropyLoss()
    adam = torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    draws, losses = _Draws(len(X), seed, recipe), []

    def forward(rows, masks=()):
        for place, layer in enumerate(network[:-1]):
            rows = torch.relu(layer(rows)) * (masks[place].T if masks else 1)
        return network[-1](rows).squeeze(1)

    for _ in range(recipe.max_epochs):
        for picked, masks in draws.epoch():
            adam.zero_grad()
            rule(forward(X[picked], masks), y[picked]).backward()
            adam.step()
        with torch.no_grad():
            losses.append(rule(forward(X), y).item())
    return losses


def test_the_rate_falls_after_an_epoch_without_a_lower_dev_loss():
    X, y = planted()
    noise = np.random.default_rng(2).integers(2, size=len(y))
    common = {"learning_rate": 0.05, "patience": 6, "max_epochs": 12}
    steady = MLPProbe(**common).fit(X[:300], noise[:300], dev=(X[300:], noise[300:]))
    falling = MLPProbe(**common, learning_rate_factor=0.1).fit(X[:300], noise[:300], dev=(X[300:], noise[300:]))
    first = next(i for i, (a, b) in enumerate(zip(steady.dev_losses_, steady.dev_losses_[1:], strict=False)) if b >= a)
    assert falling.dev_losses_[: first + 2] == steady.dev_losses_[: first + 2]
    assert abs(np.diff(falling.dev_losses_[-3:])).max() < abs(np.diff(steady.dev_losses_[-3:])).max()


@pytest.mark.slow
def test_bfloat16_products_cost_no_more_than_seeds_do():
    X, y = planted(n=3000)
    dev = (X[2000:], y[2000:])
    losses = {
        precision: [
            min(fit.dev_losses_)
            for fit in MLPProbe(hidden=16, precision=precision).fit_many(
                X[:2000], [y[:2000]], [0, 1, 2], dev=(dev[0], [dev[1]])
            )[0]
        ]
        for precision in ("float32", "bfloat16")
    }
    assert losses["float32"] != losses["bfloat16"]
    assert abs(np.mean(losses["float32"]) - np.mean(losses["bfloat16"])) < 2 * np.std(losses["float32"], ddof=1) + 0.005


@pytest.mark.parametrize("kind", [MLPProbe, MLPRegressorProbe])
def test_every_option_is_a_parameter_that_clones_carry(kind):
    options = {
        "hidden": 3,
        "layers": 2,
        "dropout": 0.1,
        "learning_rate": 0.5,
        "learning_rate_factor": 0.5,
        "weight_decay": 0.2,
        "batch_size": 9,
        "max_epochs": 2,
        "patience": 8,
        "precision": "bfloat16",
        "random_state": 4,
    }
    assert clone(kind().set_params(**options)).get_params() == options


@pytest.mark.parametrize(
    "options", [{"learning_rate_factor": 0.0}, {"learning_rate_factor": 2.0}, {"precision": "int8"}]
)
def test_options_of_the_wrong_form_are_refused(options):
    X, y = planted()
    with pytest.raises(BadParameter):
        MLPProbe(**options).fit(X, y)


def test_the_number_of_threads_changes_no_network_beyond_rounding():
    X, y = planted()
    before, found = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            fits = MLPProbe(max_epochs=3).fit_many(X, [y, y % 2], [0, 1])
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(before)
        found.append([fit.predict_log_proba(X) for row in fits for fit in row])
    for one, two in zip(*found, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-3)
