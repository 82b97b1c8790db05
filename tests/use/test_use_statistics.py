"""Laws of the statistics of use: error rates on planted truths, and what must not change any number."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import binom
from torch import Tensor

from probing.contracts.edited_model import Place
from probing.results.use import UseResult
from probing.use.effects import EditMeasurement, UseOptions
from probing.use.inference import Effect, effect
from probing.use.measure import Property, measure_property
from probing.use.nulls import null_error, permuted
from probing.use.swapping import interchanged, swapped
from probing.verdicts.judging import judge
from probing.verdicts.verdict import Word
from tests.samples.counting import at_most
from tests.samples.use_samples import HERE, Past, Sample, Vectors, sample

QUICK = UseOptions(curve=False, details=False)
SEEDS = 200


def bench(made: Sample, seed: int = 0) -> EditMeasurement:
    return EditMeasurement.of(made.instrument, made.prop.plan(UseOptions(seed=seed)), seed=seed)


def measured(made: Sample, seed: int = 0) -> tuple[Effect, Effect]:
    on = bench(made, seed)
    spread = float(np.sqrt(((on.y - on.y.mean(0)) ** 2).sum(1).mean()))
    return tuple(effect(t, on.experiment, spread) for t in (swapped(on, HERE), interchanged(on, HERE)))  # type: ignore[return-value]


def within_binomial(rejected: NDArray[np.bool_], *, least: float = 0.025) -> bool:
    """Whether a count of rejections at 5 % lies below the upper end of its 95 % interval (a test may be mild)."""
    return int(rejected.sum()) <= binom.ppf(1 - least, len(rejected), 0.05)


@pytest.mark.slow
@pytest.mark.parametrize(("rho", "code"), [(0.0, 1.0), (0.8, 1.0), (0.0, 6.0)], ids=["plain", "correlated", "long"])
def test_inert_properties_are_rejected_no_oftener_than_stated(rho: float, code: float) -> None:
    t_values = []
    for seed in range(SEEDS):
        swap, site = measured(sample(seed, rho=rho, code=code, n=3000 if rho else 1500), seed)
        assert swap.u is not None and site.u is not None
        t_values.append([abs(swap.tau.t), abs(site.tau.t), swap.u.t, site.u.t])
    rejected = np.array(t_values) > np.array([1.96, 1.96, 1.645, 1.645])
    for column, name in zip(rejected.T, ["τ swap", "τ site", "U swap", "U site"], strict=True):
        assert within_binomial(column), (name, column.mean())
    assert rejected.mean() > 0.02  # and the tests are no dead letters


@pytest.mark.slow
def test_used_is_never_said_of_inert_properties_oftener_than_stated() -> None:
    def is_called_used(seed: int) -> bool:
        made, options = sample(seed, rho=0.5, n=3000), dataclasses.replace(QUICK, seed=seed)
        return judge([measure_property(made.instrument, made.prop, options=options)])[0].word.coarse == "used"

    assert at_most(binom.ppf(0.975, SEEDS, 0.05), is_called_used, range(SEEDS))


def test_no_material_use_is_found_where_the_behaviour_goes_with_the_property_past_the_place() -> None:
    """Of eight outputs the direction of the contrast is then known, and only along it can an effect hide.

    Where the behaviour has nothing to do with the property any of the directions may be its contrast, and few rows tell
    of none: that is said less often (one in ten of these samples with rho = 0.5 and no gain).
    """
    words = [
        judge([measure_property(s.instrument, s.prop, options=dataclasses.replace(QUICK, seed=k))])[0].word
        for k in range(20)
        for s in [sample(k, rho=0.5, n=3000, gain=0.8, mediated=0.0)]
    ]
    assert np.mean([word is Word.NO_MATERIAL_USE for word in words]) > 0.5
    assert not [word for word in words if word.coarse == "used"]


@pytest.mark.slow
def test_computed_and_permuted_nulls_have_one_spread_on_inert_cells() -> None:
    ratios = []
    for seed in range(12):
        on = bench(sample(seed, n=1500), seed)
        found = effect(swapped(on, HERE), on.experiment, 1.0)
        ratios.append(null_error(on, HERE, dose=1.0) / permuted(on, HERE, found.tau.value, dose=1.0, draws=60).sd)
    assert 0.9 <= np.mean(ratios) <= 1.1, ratios


@pytest.mark.slow
@pytest.mark.parametrize("mediated", [0.2, 0.5, 0.8])
def test_intervals_of_the_mediated_fraction_cover_it(mediated: float) -> None:
    covered = []
    for seed in range(SEEDS):
        made = sample(seed, gain=0.8, mediated=mediated, norm=False, n=1500)
        for one in measured(made, seed):
            interval = one.mediated_fraction_interval()
            assert interval is not None
            covered.append(interval[0] <= mediated <= interval[1])
    assert binom.ppf(0.005, len(covered), 0.95) <= sum(covered), np.mean(covered)


@pytest.mark.parametrize("n_classes", [2, 3, 0])
def test_a_read_property_moves_the_output_as_far_as_nature_does(n_classes: int) -> None:
    rng = np.random.default_rng(3)
    n, k = 3000, n_classes or 2
    z = rng.integers(0, k, n) if n_classes else rng.normal(size=n)
    codes = rng.normal(size=(k, 6))
    h = rng.normal(0, 0.5, (n, 6)) + (codes[z] if n_classes else z[:, None] * codes[0])
    made = Sample(Vectors(h, rng.normal(size=(5, 6)), norm=False), Property("z", z, n_classes, np.arange(n), {}))
    result = measure_property(made.instrument, made.prop, options=QUICK)
    assert judge([result])[0].word is Word.USED_SUBSPACE
    for edit in (result.cells[0].subspace, result.cells[0].whole):
        share, low, high = edit.mediated_fraction, edit.mediated_fraction_low, edit.mediated_fraction_high
        assert share is not None and low is not None and high is not None
        assert low <= 1 <= high and abs(share - 1) < 0.1


def test_a_product_with_a_hidden_bit_is_used_at_the_site_and_not_in_the_class_mean_subspace() -> None:
    class Product(Vectors):
        def run_from(self, site, rows, states, *, frozen_norms=False):  # type: ignore[no-untyped-def]
            x = states[""]
            return (x[:, :1] * x[:, 1:2]) * 2 + x[:, 2:4]

    rng = np.random.default_rng(0)
    n = 3000
    x, bit = rng.integers(0, 2, n), rng.integers(0, 2, n)
    h = rng.normal(0, 0.3, (n, 8))
    h[:, 0] += 2 * x - 1
    h[:, 1] += 2 * bit - 1
    prop = Property("xor", np.asarray(x ^ bit), 2, np.arange(n), {})
    result = measure_property(Product(h, np.zeros((1, 8)), norm=False), prop, options=QUICK)
    assert result.decodability["h"].passes and result.decodability["h"].accuracy > 0.9  # by the MLP
    assert judge([result])[0].word is Word.USED_SITE


def relabelled(made: Sample, order: NDArray[np.int64]) -> Sample:
    """The same rows in another order."""
    inner = made.instrument
    prop = made.prop
    covariates = {k: (v[order], c) for k, (v, c) in prop.covariates.items()}
    return Sample(
        Vectors(inner.h[order], inner.reads, norm=inner.norm),
        Property(prop.name, prop.z[order], 2, prop.groups[order], covariates),
    )


def plain(seed: int, gain: float) -> Sample:
    made = sample(seed, gain=gain, rho=0.3, n=900)
    return Sample(Vectors(made.instrument.h, made.instrument.reads, norm=True), made.prop)


def numbers(result: UseResult) -> NDArray[np.float64]:
    cell = result.cells[0]
    found = [
        v
        for edit in (cell.subspace, cell.whole)
        for k, v in vars(edit).items()
        if k not in ("p_adjusted", "whole_effect_p_adjusted")
    ]
    return np.hstack([v for v in found if v is not None]).astype(np.float64)


@pytest.mark.parametrize("gain", [0.0, 1.0])
def test_rotating_states_and_reader_together_changes_no_number(gain: float) -> None:
    made = plain(1, gain)
    turn = np.linalg.qr(np.random.default_rng(5).normal(size=(24, 24)))[0]
    turned = Sample(Vectors(made.instrument.h @ turn, made.instrument.reads @ turn, norm=True), made.prop)
    one, two = (measure_property(s.instrument, s.prop, options=QUICK) for s in (made, turned))
    np.testing.assert_allclose(numbers(one), numbers(two), rtol=1e-6, atol=1e-6)
    assert [v.word for v in judge([one])] == [v.word for v in judge([two])]


def test_renaming_labels_changes_no_number() -> None:
    made = plain(2, 1.0)
    renamed = dataclasses.replace(made.prop, covariates={k: (1 - v, c) for k, (v, c) in made.prop.covariates.items()})
    shifted = dataclasses.replace(made.prop, z=made.prop.z * 3 + 1, n_classes=5)
    base = measure_property(made.instrument, made.prop, options=QUICK)
    for other in (renamed, shifted):
        found = measure_property(made.instrument, other, options=QUICK)
        assert judge([found])[0].word is judge([base])[0].word
    np.testing.assert_allclose(
        numbers(measure_property(made.instrument, shifted, options=QUICK)), numbers(base), rtol=1e-6, atol=1e-6
    )


def test_the_same_seed_gives_the_same_record() -> None:
    made = plain(3, 0.5)
    lines = {measure_property(made.instrument, made.prop, options=QUICK).to_json() for _ in range(2)}
    assert len(lines) == 1
    line = lines.pop()
    assert UseResult.from_json(line).to_json() == line


def test_a_norm_that_a_code_acts_through_is_told() -> None:
    rng = np.random.default_rng(0)
    n = 3000
    z = rng.integers(0, 2, n)
    h = rng.normal(0, 0.3, (n, 16))
    h[:, 1] += 3.0
    h[:, 0] += np.where(z == 1, 6.0, 0.0)  # never read, but it makes the state longer
    reads = np.zeros((4, 16))
    reads[:, 1:4] = rng.normal(size=(4, 3))
    instrument = Vectors(h, reads, norm=True)
    result = measure_property(instrument, Property("z", z, 2, np.arange(n), {}), options=UseOptions(curve=False))
    verdict = judge([result])[0]
    assert verdict.word.coarse == "used" and "norm-mediated" in verdict.flags
    share = result.cells[0].frozen_share
    assert share is not None and share > 0.9


def test_no_word_of_use_without_an_intervention_record() -> None:
    from probing.verdicts.verdict import Verdict

    with pytest.raises(ValueError, match="intervention record"):
        Verdict("z", "", "", "h", "", Word.USED_SITE, (), "", "", None, None)


def test_an_unknown_place_is_named() -> None:
    made = plain(0, 0.0)
    with pytest.raises(Exception, match="unknown place"):
        measure_property(made.instrument, made.prop, places=[Place("resid.9")])


def test_erasers_stand_beside_random_subspaces_and_a_control_task() -> None:
    made = plain(4, 1.5)
    options = dataclasses.replace(QUICK, comparisons=("leace", "mean_ablation"))
    found = measure_property(made.instrument, made.prop, options=options).cells[0].comparisons
    assert set(found) == {"random_subspace", "leace", "mean_ablation", "control_task"}
    # Directions of the states' own covariance touch other codes that are read: a used code need not exceed them.
    assert all(0.1 < one["change"] < 3 for one in found.values())
    assert found["leace"]["accuracy"] < 0.7 < 0.9 < found["control_task"]["accuracy"]
    assert found["leace"]["rank"] == found["random_subspace"]["rank"] == 1


class TwoPositions(Past):
    """The state at position `a` is read, that at `b` with a fiftieth of the gain."""

    @property
    def places(self) -> tuple[Place, ...]:
        return (Place("h", "a"), Place("h", "b"))

    def clean(self) -> NDArray[np.float64]:
        return self.run_from("h", np.arange(len(self.h)), {}).numpy()

    def run_from(
        self, site: str, rows: NDArray[np.int64], states: Mapping[str, Tensor], *, frozen_norms: bool = False
    ) -> Tensor:
        h = torch.from_numpy(self.h[rows])
        read = states.get("a", h) + 0.02 * states.get("b", h)
        return super().run_from(site, rows, {"": read}, frozen_norms=frozen_norms)


def test_redundancy_is_over_the_largest_position_and_of_effects_that_matter() -> None:
    for mediated, expected in ((1.0, pytest.approx(1.02)), (0.03, None)):
        made = sample(2, gain=1.0, n=600, mediated=mediated, noise=0.05)
        inner = made.instrument
        both = TwoPositions(inner.h, inner.reads, inner.past, norm=False)
        a, b = measure_property(both, made.prop, options=UseOptions(null=False, curve=False)).cells
        assert a.whole.p_adjusted < 0.05 and a.whole.effect_size > 20 * abs(b.whole.effect_size)
        assert a.joint_over_largest == expected
        if expected is not None:
            assert b.whole.p_adjusted < 0.05 and b.joint_over_largest == expected
