"""Laws of interventions: LEACE's theorem, what erasers take and report, and the contract of every member."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from probing import registry
from probing.contracts.intervention import Edit, Intervention, Targets
from probing.errors import BadParameter, DegenerateDesign
from probing.recipes import build
from probing.use.interventions._edits import AffineEdit, columns_of
from probing.use.interventions.class_mean import ClassMean, ClassMeanEdit
from probing.use.interventions.inlp import Inlp
from probing.use.interventions.leace import Leace
from probing.use.interventions.random_subspace import RandomSubspace
from tests.samples.basis_dictionaries import basis, both_ways, dictionary

NAMES = registry.names("interventions")


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The recipe of every member for states of width 12."""
    folder = tmp_path_factory.mktemp("dictionary") / "d"
    dictionary(both_ways(basis(12)), bias=0.0, site="h").save(folder)
    return {name: f"latents:dictionary={folder},top=3" if name == "latents" else name for name in NAMES}


def planted(
    n: int = 1200, width: int = 12, k: int = 3, condition: float = 1.0, seed: int = 0, real: bool = False
) -> tuple[np.ndarray, Targets]:
    """States whose covariance has this condition number, with a code of a property; strata that shift its code."""
    rng = np.random.default_rng(seed)
    z = rng.standard_normal(n) if real else rng.choice(k, n, p=np.r_[0.5, np.full(k - 1, 0.5 / (k - 1))])
    strata = rng.integers(0, 2, n)
    codes = rng.standard_normal((1 if real else k, width))
    x = rng.standard_normal((n, width)) + (z[:, None] * codes if real else codes[z])
    x += (strata * (z if real else z == 1))[:, None] * rng.standard_normal(width)
    turned = np.linalg.qr(rng.standard_normal((width, width)))[0]
    scales = np.geomspace(1, condition**-0.5, width)
    return (x * scales) @ turned + 3, Targets(z, strata, 0 if real else k)


def covariance(x: np.ndarray, targets: Targets) -> float:
    z = columns_of(targets)
    return float(np.abs((x - x.mean(0)).T @ (z - z.mean(0))).max() / len(x))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("real", [False, True])
def test_every_intervention_keeps_the_contract(name: str, real: bool, recipes: dict[str, str]) -> None:
    x, targets = planted(real=real)
    states = x.astype(np.float32)
    kept, intervention = states.copy(), build("interventions", recipes[name])
    assert isinstance(intervention, Intervention) and type(intervention).__doc__
    recipe = dict(vars(intervention))
    edit, again = (intervention.fit(states, targets, seed=3) for _ in range(2))
    goals = np.roll(targets.z, 1)
    edited = edit.apply(states, targets, goals)
    assert isinstance(edit, Edit) and edited.shape == states.shape and edited.dtype == np.float32
    assert np.isfinite(edited).all() and edit.rank >= 0
    np.testing.assert_array_equal(edited, again.apply(states, targets, goals))
    np.testing.assert_array_equal(states, kept)
    assert vars(intervention) == recipe
    chosen = np.array([5, 2, 900])
    np.testing.assert_allclose(
        edit.apply(states[chosen], targets.take(chosen), goals[chosen]), edited[chosen], atol=1e-5
    )
    assert intervention.erases != intervention.decides or name in ("interchange", "latents")
    if intervention.erases and name != "random_subspace":
        before, after = covariance(states, targets), covariance(edited, targets)
        assert after < (0.25 if name == "inlp" else 1e-5) * before, f"{name}: before {before:.3g}, after {after:.3g}"


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("mean_ablation", "zero_ablation")])
def test_a_property_of_one_value_is_refused(name: str, recipes: dict[str, str]) -> None:
    states = planted()[0].astype(np.float32)
    one = Targets(np.zeros(len(states), np.int64), np.zeros(len(states), np.int64), 2)
    with pytest.raises(DegenerateDesign):
        build("interventions", recipes[name]).fit(states, one, seed=0)


@pytest.mark.parametrize("condition", [1.0, 1e3, 1e6])
@pytest.mark.parametrize("k", [2, 3, 5])
def test_leace_leaves_no_covariance_and_equal_class_means(k: int, condition: float) -> None:
    x, targets = planted(k=k, condition=condition)
    edit = Leace().fit(x, targets)
    after = edit.transform(x)
    before = covariance(x, targets)
    found = covariance(after, targets)
    assert found < 1e-8 * before, f"before {before:.3g}, after {found:.3g}"
    means, apart = (np.stack([v[targets.z == c].mean(0) for c in range(k)]) for v in (after, x))
    spread = float(np.ptp(apart, axis=0).max())
    assert float(np.ptp(means, axis=0).max()) < 1e-8 * spread, f"before {spread:.3g}"
    assert edit.rank == k - 1
    np.testing.assert_allclose(edit.transform(after), after, atol=1e-9)
    np.testing.assert_allclose(after.mean(0), x.mean(0), atol=1e-9)


@pytest.mark.parametrize("k", [2, 4])
def test_a_fresh_probe_after_leace_says_the_majority(k: int) -> None:
    x, targets = planted(k=k)
    after = Leace().fit(x, targets).transform(x)
    majority = np.bincount(targets.z).max() / len(x)

    def fitted(states: np.ndarray) -> LogisticRegression:
        return LogisticRegression(C=1e3, tol=1e-12, max_iter=10_000).fit(states - states.mean(0), targets.z)

    probe, before = fitted(after), fitted(x)
    assert before.score(x - x.mean(0), targets.z) > majority + 0.2
    assert probe.score(after - after.mean(0), targets.z) == pytest.approx(majority, abs=1e-12)
    assert float(np.abs(probe.coef_).max()) < 1e-6 < float(np.abs(before.coef_).max())


def test_leace_moves_states_least_of_all_projections_that_erase() -> None:
    x, targets = planted(k=2, condition=100.0)
    moved = np.square(Leace().fit(x, targets).transform(x) - x).sum()
    direction = columns_of(targets) - columns_of(targets).mean(0)
    cross = ((x - x.mean(0)).T @ direction)[:, 0]
    orthogonal = AffineEdit(*(2 * [(cross / np.linalg.norm(cross))[:, None]]), x.mean(0))
    assert covariance(orthogonal.transform(x), targets) < 1e-8 * covariance(x, targets)
    assert moved < np.square(orthogonal.transform(x) - x).sum()


def test_leace_of_fewer_rows_than_features_and_of_constant_features() -> None:
    x, targets = planted(n=40, width=90)
    x[:, 3] = 7.0
    after = Leace().fit(x, targets).transform(x)
    assert covariance(after, targets) < 1e-8 * covariance(x, targets)
    np.testing.assert_allclose(after[:, 3], 7.0)


def test_inlp_stops_at_the_majority_and_says_how_much_went() -> None:
    x, targets = planted(n=3000, width=20, k=2)
    edit = Inlp().fit(x.astype(np.float32), targets)
    assert edit.before > 0.2 and edit.after <= 0.01, f"before {edit.before}, after {edit.after}"
    assert 1 <= edit.rank <= 12 and edit.rounds >= 2
    np.testing.assert_allclose(edit.left.T @ edit.left, np.eye(edit.rank), atol=1e-9)
    noise = np.random.default_rng(1).standard_normal((3000, 20)).astype(np.float32)
    assert Inlp(tolerance=0.05).fit(noise, targets).rank == 0
    limited = Inlp(rounds=1).fit(x.astype(np.float32), targets)
    assert limited.rank == 1 and limited.rounds == 1
    with pytest.raises(BadParameter):
        Inlp(tolerance=1.0)


def test_random_subspaces_have_the_rank_and_lie_where_states_vary() -> None:
    x, targets = planted(k=4, condition=1e4)
    states = x.astype(np.float32)
    edits = [RandomSubspace().fit(states, targets, seed=seed) for seed in range(30)]
    assert {edit.rank for edit in edits} == {3} and RandomSubspace(rank=2).fit(states, targets).rank == 2
    assert not np.allclose(edits[0].left, edits[1].left)
    leading = np.linalg.eigh(np.cov(x.T))[1][:, -1]
    share = np.mean([np.square(edit.left.T @ leading).sum() for edit in edits])
    assert share > 2 * 3 / 12  # more than of directions without regard to Σ
    assert all(covariance(edit.transform(x), targets) > 0.01 * covariance(x, targets) for edit in edits)


def test_an_equal_displacement_is_that_of_leace() -> None:
    x, targets = planted(k=3)
    states = x.astype(np.float32)
    aim = np.square(Leace().fit(states, targets).transform(x) - x).sum(1).mean()
    own, equal = (RandomSubspace(displacement=d).fit(states, targets, seed=1) for d in ("own", "leace"))
    assert np.square(equal.transform(x) - x).sum(1).mean() == pytest.approx(aim, rel=1e-4)
    assert np.square(own.transform(x) - x).sum(1).mean() != pytest.approx(aim, rel=1e-2)
    with pytest.raises(BadParameter):
        RandomSubspace(displacement="inlp")


def test_class_means_are_exchanged_within_strata() -> None:
    x, targets = planted(k=3)
    edit = ClassMean().fit(x.astype(np.float32), targets)
    assert edit.means.shape == (3, 2, 12)
    goals = (targets.z + 1) % 3
    edited = edit.apply(x.astype(np.float32), targets, goals)
    for c in range(3):
        for w in range(2):
            inside = (targets.z == c) & (targets.strata == w)
            aim = x[(targets.z == (c + 1) % 3) & (targets.strata == w)].mean(0)
            np.testing.assert_allclose(edited[inside].mean(0), aim, atol=1e-4)
    double = ClassMean(dose=2.0).fit(x.astype(np.float32), targets).apply(x.astype(np.float32), targets, goals)
    np.testing.assert_allclose(double - x, 2 * (edited - x), atol=1e-4)
    np.testing.assert_allclose(edit.apply(x.astype(np.float32), targets, targets.z), x, atol=1e-5)


def test_a_shared_shift_is_the_weighted_mean_of_those_of_the_strata() -> None:
    x, targets = planted(k=2)
    each, shared = (ClassMean(shared=s).fit(x.astype(np.float32), targets) for s in (False, True))
    shares = np.bincount(targets.strata) / len(x)
    expected = shares @ (each.means[1] - each.means[0])
    np.testing.assert_allclose(shared.means[1, 0] - shared.means[0, 0], expected, atol=1e-6)
    assert shared.means.shape == (2, 1, 12)


def test_a_class_that_a_stratum_lacks_moves_as_it_does_overall() -> None:
    x, targets = planted(k=2)
    kept = ~((targets.z == 1) & (targets.strata == 1))
    edit = ClassMean().fit(x[kept].astype(np.float32), targets.take(np.flatnonzero(kept)))
    some, z = x[kept], targets.z[kept]
    expected = some[targets.strata[kept] == 1].mean(0) + some[z == 1].mean(0) - some.mean(0)
    np.testing.assert_allclose(edit.means[1, 1], expected, atol=1e-5)


def test_real_values_shift_by_slopes() -> None:
    rng = np.random.default_rng(0)
    z, strata, codes = rng.standard_normal(800), rng.integers(0, 2, 800), rng.standard_normal((2, 6))
    x = z[:, None] * codes[strata] + 1e-3 * rng.standard_normal((800, 6)) + 5 * strata[:, None]
    edit = ClassMean().fit(x.astype(np.float32), Targets(z, strata, 0))
    assert isinstance(edit, ClassMeanEdit)
    np.testing.assert_allclose(edit.means[0], codes, atol=1e-3)
    goals = np.roll(z, 1)
    expected = goals[:, None] * codes[strata] + 5 * strata[:, None]
    np.testing.assert_allclose(edit.apply(x.astype(np.float32), Targets(z, strata, 0), goals), expected, atol=0.02)
    with pytest.raises(BadParameter):
        ClassMean(dose=0.0)
