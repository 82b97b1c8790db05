"""Edits of latents: what is not chosen and what the dictionary leaves unexplained stays; planted latents mediate what
they carry.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from probing.contracts.intervention import Targets
from probing.dictionaries.dictionary import Dictionary
from probing.errors import BadParameter, DegenerateDesign, ProvenanceMismatch, UnsupportedFormat
from probing.recipes import build
from probing.results.use import NEVER_ACTIVE, UseResult
from probing.use.effects import EditMeasurement, UseOptions
from probing.use.inference import effect
from probing.use.interventions.latents import LatentEdit, Latents
from probing.use.measure import Property, measure_property
from probing.use.mediating import edited_effect, fitted_edits, targets_of
from probing.use.state_checks import compared
from probing.use.swapping import swapped
from tests.samples.basis_dictionaries import WIDTH, basis, both_ways, dictionary
from tests.samples.use_samples import HERE, Past, Sample, Vectors, sample

AXES = basis()
QUICK = UseOptions(curve=False, details=False, deals=0, null=False)


def planted(n: int = 1500, *, classes: int = 2, real: bool = False, seed: int = 0) -> Sample:
    """States in which axis 0 carries the property (the first three, for three classes), and a model that reads them."""
    random = np.random.default_rng(seed)
    z = random.normal(size=n) if real else random.integers(0, classes, n)
    codes = random.normal(size=(classes, 3)) if classes > 2 else np.array([[-1.0, 0, 0], [1.0, 0, 0]])
    h = 0.5 * random.standard_normal((n, WIDTH))
    h[:, :3] += z[:, None] * codes[1] if real else codes[z]
    weights = np.zeros((4, WIDTH))
    weights[:, : 3 if classes > 2 else 1] = random.normal(size=(4, 3 if classes > 2 else 1))
    prop = Property("z", z, 0 if real else classes, np.arange(n), {})
    return Sample(Vectors(h @ AXES, weights @ AXES, norm=False), prop)


def saved(folder: Path, directions: Any, **options: Any) -> Path:
    dictionary(both_ways(directions), **{"bias": 0.0, "site": "h"} | options).save(folder)
    return folder


@pytest.fixture(scope="module")
def holding(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("holding") / "d", AXES)


@pytest.fixture(scope="module")
def lacking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("lacking") / "d", AXES[1:])


@cache
def bench_of(made: Any = planted) -> EditMeasurement:
    one = made()
    return EditMeasurement.of(one.instrument, one.prop.plan(QUICK), seed=0)


def rows_of(bench: EditMeasurement) -> tuple[Any, Targets, Any]:
    f1 = bench.folds(0)[0]
    targets = targets_of(bench, f1)
    return bench.states(HERE)[f1], targets, 1 - targets.z


def share(bench: EditMeasurement, recipe: str, name: str = "share_of_swap") -> tuple[float, float, float]:
    swap = effect(swapped(bench, HERE, with_u=False), bench.experiment, bench.spread)
    numbers = compared(bench, HERE, [recipe], draws=2, swap=swap)[recipe]
    return numbers[name], numbers[f"{name}_low"], numbers[f"{name}_high"]


def test_without_latents_nothing_changes(holding: Path) -> None:
    states, targets, goals = rows_of(bench_of())
    edit = Latents(dictionary=str(holding), top=0).fit(states, targets)
    np.testing.assert_array_equal(edit.apply(states, targets, goals), states)
    numbers = compared(bench_of(), HERE, [f"latents:dictionary={holding},top=0"], draws=2)
    assert numbers[f"latents:dictionary={holding},top=0"]["change"] == 0


def test_the_latents_that_were_chosen_are_recorded(holding: Path) -> None:
    for options, chosen in (("top=2", {"latent_0", "latent_24"}), ("latents=3|7", {"latent_3", "latent_7"})):
        numbers = compared(bench_of(), HERE, [f"latents:dictionary={holding},{options}"], draws=2)
        found = numbers[f"latents:dictionary={holding},{options}"]
        assert {name for name in found if name.startswith("latent_")} == chosen
        assert all(found[name] == 1 for name in chosen)


@pytest.mark.parametrize("to", ["mean", "zero"])
@pytest.mark.parametrize("normalization", ["none", "layer_norm"])
def test_the_reconstruction_error_stays_in_the_state(tmp_path: Path, to: str, normalization: str) -> None:
    states, targets, goals = rows_of(bench_of())
    few = saved(tmp_path / "few", AXES[:5], normalization=normalization)  # explains five of 24 directions
    edit = Latents(dictionary=str(few), top=3, to=to).fit(states, targets)
    assert isinstance(edit, LatentEdit)
    edited = edit.apply(states, targets, goals)
    made = Dictionary.load(few)
    before = made.encode(states)
    after = before.tolil()
    wanted = edit._fitted[goals, targets.strata] if to == "mean" else np.zeros((len(states), 3))
    after[:, edit.chosen] = wanted
    after = type(before)(after)
    expected = made.decode(after, states=states) + (states - made.decode(before, states=states))
    np.testing.assert_allclose(edited, expected, atol=2e-5)
    assert np.abs(edited - states).max() > 0.1


def test_what_the_latents_hold_is_the_mean_of_the_other_class(holding: Path) -> None:
    states, targets, goals = rows_of(bench_of())
    edit = Latents(dictionary=str(holding), latents="0|24").fit(states, targets)  # axis 0, both ways
    edited = edit.apply(states, targets, goals)
    means = [(states[targets.z == z] @ AXES[0]).mean() for z in (0, 1)]
    np.testing.assert_allclose(edited @ AXES[0], np.array(means)[goals], atol=1e-5)
    np.testing.assert_allclose(edited @ AXES[1:].T, states @ AXES[1:].T, atol=1e-5)


def test_a_dictionary_that_holds_the_planted_direction_mediates_all_and_another_nothing(
    holding: Path, lacking: Path
) -> None:
    for name in ("share_of_swap", "mediated_fraction"):
        value, low, high = share(bench_of(), f"latents:dictionary={holding},top=2", name)
        assert low - 1e-6 <= value <= high + 1e-6 and abs(value - 1) < 0.05, name
        assert low <= 1.02 and high >= 0.98, name
        value, low, high = share(bench_of(), f"latents:dictionary={lacking},top=16", name)
        assert abs(value) < 0.02 and low < 0.02, name


def test_half_of_what_is_read_past_the_chosen_latents_is_not_mediated(holding: Path) -> None:
    """The model reads axes 0 and 1, which both carry the property; the chosen latents are those of axis 0 alone."""
    random = np.random.default_rng(0)
    z = random.integers(0, 2, 1500)
    h = 0.5 * random.standard_normal((1500, WIDTH))
    h[:, :2] += (2 * z - 1)[:, None]
    weights = np.zeros((1, WIDTH))
    weights[0, :2] = [0.3, 0.9]
    made = Sample(Vectors(h @ AXES, weights @ AXES, norm=False), Property("z", z, 2, np.arange(1500), {}))
    bench = EditMeasurement.of(made.instrument, made.prop.plan(QUICK), seed=0)
    value, low, high = share(bench, f"latents:dictionary={holding},latents=0|24")
    assert low <= 0.25 <= high and high - low < 0.1, value


@pytest.mark.parametrize(("classes", "real"), [(3, False), (2, True)])
def test_more_classes_and_real_values_are_moved_as_far_as_the_swap_moves_them(
    holding: Path, classes: int, real: bool
) -> None:
    made = planted(classes=classes, real=real)
    bench = EditMeasurement.of(made.instrument, made.prop.plan(QUICK), seed=0)
    value, low, high = share(bench, f"latents:dictionary={holding},top=6")
    assert abs(value - 1) < (0.25 if real else 0.05), (value, low, high)  # of reals a latent is never below 0


def test_the_class_mean_swap_as_a_comparison_is_the_swap_itself() -> None:
    bench = bench_of()
    swap = effect(swapped(bench, HERE, with_u=False), bench.experiment, bench.spread)
    again = edited_effect(bench, HERE, fitted_edits(bench, HERE, build("interventions", "class_mean"), name="swap"))
    assert again.tau.value == pytest.approx(swap.tau.value, rel=1e-5)
    assert again.total.value == swap.total.value
    assert share(bench, "class_mean")[0] == pytest.approx(1, abs=1e-5)


def test_latents_that_no_row_activates_are_counted(tmp_path: Path) -> None:
    """Latent 48 reads axis 0 far above any state; latent 0 is planted."""
    path = tmp_path / "d"
    directions = np.concatenate([both_ways(AXES), AXES[:1]])
    dictionary(directions, site="h", encoder_bias=np.r_[np.zeros(2 * WIDTH), -1e6]).save(path)
    for latents, silent in (("0", None), ("48", 1.0), ("0|48", 1.0)):
        recipe = f"latents:dictionary={path},latents={latents}"
        assert compared(bench_of(), HERE, [recipe], draws=2)[recipe].get(NEVER_ACTIVE) == silent


def test_random_latents_and_directions_move_states_as_far(holding: Path) -> None:
    states, targets, goals = rows_of(bench_of())
    moved = {}
    for instead in ("", "latents", "directions"):
        edit = Latents(dictionary=str(holding), top=2, instead=instead).fit(states, targets, seed=4)
        shifts = edit.apply(states, targets, goals).astype(float) - states
        moved[instead] = np.sqrt((shifts**2).sum(1).mean())
        again = Latents(dictionary=str(holding), top=2, instead=instead).fit(states, targets, seed=4)
        np.testing.assert_array_equal(again.apply(states, targets, goals), edit.apply(states, targets, goals))
        if instead == "latents":
            assert isinstance(edit, LatentEdit) and not set(edit.chosen) & {0, 24}
    assert moved["latents"] == pytest.approx(moved[""], rel=1e-3)
    assert moved["directions"] == pytest.approx(moved[""], rel=1e-3)


def test_random_latents_do_less_than_the_planted_ones(holding: Path) -> None:
    recipe = f"latents:dictionary={holding},top=2"
    numbers = compared(bench_of(), HERE, [recipe], draws=2)
    assert numbers[recipe]["above_random_latents"] == 1.0
    by_lot = numbers[f"random latents for {recipe}"]
    assert by_lot["along_high"] < 0.5 * numbers[recipe]["along"]
    assert numbers[f"random directions for {recipe}"]["draws"] == by_lot["draws"] == 16


@pytest.mark.parametrize("real", [False, True])
def test_influence_is_what_leaving_a_row_out_changes(holding: Path, real: bool) -> None:
    made = planted(900, real=real)
    bench = EditMeasurement.of(made.instrument, made.prop.plan(QUICK), seed=0)
    f1, f3 = bench.folds(0)[0], bench.folds(0)[2][:60]
    states, own, edited = bench.states(HERE), targets_of(bench, f1), targets_of(bench, f3)
    goals = 1 - edited.z
    edit = Latents(dictionary=str(holding), latents="0|3|24").fit(states[f1], own)
    assert isinstance(edit, LatentEdit)
    sensitivity = np.random.default_rng(1).standard_normal((60, WIDTH))
    found = edit.influence(states[f3], edited, goals, sensitivity)
    whole = (sensitivity * edit.shifts(states[f3], edited, goals)).sum()
    changes = []
    for left in range(40):
        kept = np.delete(np.arange(len(f1)), left)
        without = LatentEdit(edit.dictionary, edit.chosen, edit.values[kept], own.take(kept))
        changes.append(whole - (sensitivity * without.shifts(states[f3], edited, goals)).sum())
    assert np.corrcoef(found[:40], changes)[0, 1] > 0.99  # but for the row's own leverage
    if not real:  # where a latent meets 0 a real value has no derivative
        np.testing.assert_allclose(found[:40], changes, rtol=0.05, atol=1e-6)
    assert found.sum() == pytest.approx(0, abs=1e-8)


@pytest.mark.slow
def test_intervals_of_the_mediated_fraction_cover_it(holding: Path) -> None:
    """Half of what the property does comes through the state, the other half past it."""
    covered = []
    for seed in range(200):
        random = np.random.default_rng(seed)
        z = random.integers(0, 2, 900)
        h = 0.5 * random.standard_normal((900, WIDTH))
        h[:, 0] += 2 * z - 1
        weights, direction = np.zeros((4, WIDTH)), random.normal(size=4)
        weights[:, 0], weights[:, 10:20] = 0.5 * direction, 0.5 * random.normal(size=(4, 10))
        past = 0.5 * np.outer(2 * z - 1, direction)
        made = Sample(Past(h @ AXES, weights @ AXES, past, norm=False), Property("z", z, 2, np.arange(900), {}))
        bench = EditMeasurement.of(made.instrument, made.prop.plan(QUICK), seed=seed)
        edit = Latents(dictionary=str(holding), latents="0|24")
        ends = edited_effect(bench, HERE, fitted_edits(bench, HERE, edit, name="latents")).mediated_fraction_interval()
        assert ends is not None
        covered.append(ends[0] <= 0.5 <= ends[1])
    assert binom.ppf(0.005, len(covered), 0.95) <= sum(covered), np.mean(covered)


def test_the_verdict_is_the_same_beside_edits_of_latents_and_they_are_kept(holding: Path) -> None:
    made, recipe = planted(), f"latents:dictionary={holding},top=2"
    plain = measure_property(made.instrument, made.prop, options=QUICK)
    options = UseOptions(**vars(QUICK) | {"comparisons": (recipe,)})
    beside = measure_property(made.instrument, made.prop, options=options)
    assert beside.cells[0].subspace == plain.cells[0].subspace
    assert beside.cells[0].whole == plain.cells[0].whole
    assert beside.cells[0].notes == ()
    again = UseResult.from_json(beside.to_json())
    assert again.cells[0].comparisons[recipe] == beside.cells[0].comparisons[recipe]
    assert beside.cells[0].comparisons[recipe]["share_of_swap"] == pytest.approx(1, abs=0.05)


def test_a_dictionary_of_another_site_is_left_out(tmp_path: Path) -> None:
    recipe = f"latents:dictionary={saved(tmp_path / 'd', AXES, site='resid.3')}"
    assert recipe not in compared(bench_of(), HERE, [recipe], draws=2)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ("top=-1", BadParameter),
        ("to=median", BadParameter),
        ("instead=rows", BadParameter),
        ("latents=1|1", BadParameter),
        ("latents=a", BadParameter),
    ],
)
def test_options_out_of_range_are_refused(options: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        build("interventions", f"latents:dictionary=nowhere,{options}")
    with pytest.raises(BadParameter, match="dictionary"):
        build("interventions", "latents")


def test_what_does_not_fit_is_refused_before_any_edit(tmp_path: Path, holding: Path) -> None:
    made = sample(0, gain=0.8, n=600)

    def measured(recipe: str) -> None:
        measure_property(made.instrument, made.prop, options=UseOptions(comparisons=(recipe,)))

    narrow = saved(tmp_path / "narrow", basis(8))
    with pytest.raises(ProvenanceMismatch, match="width"):
        measured(f"latents:dictionary={narrow}")
    with pytest.raises(BadParameter, match="no such latent"):
        measured(f"latents:dictionary={holding},latents=48")
    with pytest.raises(BadParameter, match="no such latent"):
        measured(f"latents:dictionary={holding},top=49")
    coder = Dictionary(
        architecture="transcoder",
        encoder=AXES.T,
        encoder_bias=np.zeros(WIDTH),
        decoder=AXES,
        decoder_bias=np.zeros(WIDTH),
        site="h",
    )
    coder.save(tmp_path / "coder")
    with pytest.raises(UnsupportedFormat, match="transcoder"):
        measured(f"latents:dictionary={tmp_path / 'coder'}")
    states, targets, _ = rows_of(bench_of())
    with pytest.raises(DegenerateDesign):
        Latents(dictionary=str(holding)).fit(states, Targets(0 * targets.z, targets.strata, 2))
