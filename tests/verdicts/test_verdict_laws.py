"""Laws of verdicts on other people's data: many classes, uneven groups, positions together, foreign states, words."""

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
from probing.errors import BadParameter, DegenerateDesign
from probing.plantbench import tier0
from probing.plantbench.baselines import Protocol
from probing.reporting.page import Contents, rendered
from probing.reporting.use_panels import uses
from probing.reporting.use_words import SHORT
from probing.use.contrasts import FromTo
from probing.use.edited_models.arrays import ArrayInstrument
from probing.use.effects import EditMeasurement, UseOptions
from probing.use.measure import Property, measure_property
from probing.use.pairing import allotted, exchanges
from probing.use.row_weights import RowWeights
from probing.use.strata import Shares
from probing.verdicts.judging import judge
from probing.verdicts.verdict import UseRun, Word
from scripts._bench_use import Planted, planted
from tests.conftest import some
from tests.samples.planted_verdicts import QUICK, is_as_rare_as_stated, verdict_of, words
from tests.samples.use_samples import sample

# 1.1: more than two classes


@pytest.mark.parametrize("sizes", [[100, 100, 100, 100], [300, 150, 100, 75, 60], [50, 10], [10] * 17, [400, 10, 10]])
def test_pairs_of_classes_are_as_many_as_their_rows_allow_for(sizes: list[int]) -> None:
    rows = np.array(sizes)
    counts = allotted(rows, np.random.default_rng(0))
    assert (counts == counts.T).all() and (counts % 2 == 0).all() and (np.diag(counts) == 0).all()
    assert (counts.sum(1) <= rows).all()
    wanted = np.outer(rows, rows) / (rows.sum() - rows.min())
    np.fill_diagonal(wanted, 0)
    assert np.abs(counts - wanted).max() <= 4
    assert counts[rows.argmin()].sum() >= 0.6 * rows.min()


@pytest.mark.parametrize(("k", "zipf"), [(2, False), (4, False), (4, True), (17, True)])
def test_exchanges_are_closed_sets_of_two_values_and_of_different_groups(k: int, zipf: bool) -> None:
    _, prop = planted(Planted(k=k, zipf=zipf, groups="fours"), 0)
    e = prop.plan(UseOptions())
    for fold in range(3):
        one = exchanges(e, e.fold(fold), seed=0)
        assert one.alike is not None and len(np.unique(one.own)) == len(one.own)
        assert (e.z[one.own] != e.z[one.donor]).all() and (e.z[one.own] == e.z[one.alike]).all()
        assert (e.groups[one.own] != e.groups[one.donor]).all() and (e.groups[one.own] != e.groups[one.alike]).all()
        for number in np.unique(one.sets):
            rows = one.own[one.sets == number]
            assert len(rows) == 4 and len(np.unique(e.z[rows])) == 2
            assert set(one.donor[one.sets == number]) == set(one.alike[one.sets == number]) == set(rows)


def test_a_cell_of_one_row_adds_to_the_error() -> None:
    sides = FromTo(np.zeros(9, np.int64), np.array([0] * 8 + [1]), np.array([1] * 8 + [2]))
    rows = RowWeights(sides, np.ones(1), 3)
    influence = rows.centred(np.arange(9.0))
    assert influence[-1] != 0


@pytest.mark.parametrize("k", [2, 4])
def test_an_interval_holds_zero_where_its_p_exceeds_the_level(k: int) -> None:
    for seed in range(12):
        for effect in (0.0, 0.1):
            result, _ = verdict_of(Planted(k=k, effect=effect, n=900), seed)
            for edit in (result.cells[0].subspace, result.cells[0].whole):
                assert (edit.effect_size_low <= 0 <= edit.effect_size_high) == (edit.p > 0.05)
                assert (edit.effect_size_low90 <= 0 <= edit.effect_size_high90) == (edit.p > 0.10)


@pytest.mark.parametrize("k", [4, 17])
def test_few_seeds_of_many_classes_are_rarely_called_used(k: int) -> None:
    assert words(Planted(k=k, n=1500), 30)["used"] <= binom.ppf(0.999, 30, 0.05)
    assert words(Planted(k=k, n=3000, effect=0.4), 5)["used"] == 5


@pytest.mark.slow
@pytest.mark.parametrize("n", [1500, 3000])
@pytest.mark.parametrize("zipf", [False, True])
@pytest.mark.parametrize("k", [2, 3, 4, 6, 17])
def test_unread_properties_are_called_used_no_oftener_than_stated(k: int, zipf: bool, n: int) -> None:
    assert is_as_rare_as_stated("used", Planted(k=k, zipf=zipf, n=n))


# 1.2: few or uneven groups


def test_effective_groups_are_their_number_where_even_and_fewer_where_not() -> None:
    even = Shares.of(np.zeros(60, np.int64), np.arange(60) // 4, 1)
    assert even.effective == pytest.approx([15]) and even.leverage == pytest.approx((15 / 14) ** 0.5)
    uneven = Shares.of(np.zeros(60, np.int64), np.minimum(np.arange(60) // 2, 14), 1)
    assert uneven.effective[0] < 4 and uneven.leverage[-1] > uneven.leverage[0] > 1
    assert even.df(np.ones(1)) == pytest.approx(14) and uneven.df(np.ones(1)) < 3


def test_a_few_documents_that_hold_most_rows_are_too_few_groups() -> None:
    result, verdict = verdict_of(Planted(groups="zipf"), 0)
    assert result.least_groups < 30 and verdict.word is Word.INCONCLUSIVE and "as over" in verdict.reason
    assert verdict_of(Planted(groups="documents"), 0)[0].least_groups > 60


@pytest.mark.slow
@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize("groups", ["documents", "zipf", "treebank"])
def test_unread_labels_of_documents_are_called_used_no_oftener_than_stated(groups: str, k: int) -> None:
    assert is_as_rare_as_stated("used", Planted(groups=groups, k=k, n=3000))


@pytest.mark.parametrize("groups", ["documents", "treebank"])
def test_intervals_of_documents_are_wide_enough(groups: str) -> None:
    """The label is constant within documents that share their noise; without edits' errors by document most fail."""
    tests = [verdict_of(Planted(groups=groups, k=4), seed)[0].cells[0] for seed in range(40)]
    rejected = [edit.p <= 0.05 for cell in tests for edit in (cell.subspace, cell.whole)]
    assert sum(rejected) <= binom.ppf(0.999, len(rejected), 0.05)


# 1.3: positions that act together


def majority(n: int = 2400, *, read: bool = True) -> tuple[ArrayInstrument, Property]:
    """Three positions carry the property; the output follows the majority of them, so that none does alone."""
    rng = np.random.default_rng(0)
    z = rng.integers(0, 2, n)
    names = ("first", "second", "third")
    states = {
        Place("h", name): np.concatenate([2.0 * z[:, None] - 1, rng.standard_normal((n, 7))], axis=1).astype(np.float32)
        for name in names
    }
    base = torch.from_numpy(0.5 * rng.standard_normal((n, 1)).astype(np.float32))

    def run_from(site: str, rows: NDArray[np.int64], given: Mapping[str, Tensor], frozen: bool) -> Tensor:
        votes = [given.get(name, torch.from_numpy(states[Place("h", name)][rows]))[:, :1] for name in names]
        pull = torch.tanh(4 * torch.stack([torch.tanh(4 * vote) for vote in votes]).sum(0))
        noise = [vote.new_zeros(()) for vote in votes]
        return base[torch.from_numpy(rows)] + (pull if read else sum(noise))

    return ArrayInstrument(states, run_from), Property("z", z, 2, np.arange(n), {})


def test_a_place_that_acts_only_with_others_is_said_to() -> None:
    instrument, prop = majority()
    result = measure_property(instrument, prop, options=QUICK)
    run = UseRun((result,), tuple(judge([result])))
    for verdict, row in zip(run.verdicts, run.rows(), strict=True):
        assert verdict.word is Word.NOT_ALONE and verdict.word.coarse == "decodable only"
        others = [name for name in ("first", "second", "third") if name != verdict.position]
        assert f"together with {others[0]} and {others[1]} it is used" in verdict.text == row["verdict"]
        assert "redundant" in verdict.flags and "Exchanged together" in verdict.reason
    page = rendered(Contents(uses=uses(run))).decode()
    assert "together with second and third it is used" in page and SHORT[Word.NOT_ALONE] in page


def test_a_place_beside_one_that_is_used_alone_is_not_said_to_be_used_together() -> None:
    """All positions together do what the one does, which says nothing of the other."""
    instrument, prop = majority()
    states = {place: instrument.states(place) for place in instrument.places[:2]}
    noise = torch.from_numpy(0.5 * np.random.default_rng(1).standard_normal((len(prop.z), 1)).astype(np.float32))

    def run_from(site: str, rows: NDArray[np.int64], given: Mapping[str, Tensor], frozen: bool) -> Tensor:
        read = given.get("first", torch.from_numpy(states[Place("h", "first")][rows]))
        return read[:, :1] + 0 * given.get("second", read)[:, :1] + noise[torch.from_numpy(rows)]

    first, second = judge([measure_property(ArrayInstrument(states, run_from), prop, options=QUICK)])
    assert first.word.coarse == "used" and second.word is Word.NO_MATERIAL_USE
    assert "Exchanged together with first" in second.reason and "first does so by itself" in second.reason


def test_positions_that_do_nothing_together_are_plainly_not_used() -> None:
    instrument, prop = majority(read=False)
    result = measure_property(instrument, prop, options=QUICK)
    assert all(cell.joint is not None for cell in result.cells)
    assert {verdict.word for verdict in judge([result])} == {Word.NO_MATERIAL_USE}


# 1.4: one yardstick


def test_the_whole_effect_is_that_along_the_contrast_where_outputs_have_one_dimension() -> None:
    result, _ = verdict_of(Planted(effect=0.4, answers=1), 0)
    for edit in (result.cells[0].subspace, result.cells[0].whole):
        assert edit.whole_effect_size == pytest.approx(abs(edit.effect_size)) and result.dimensions == 1


def test_an_effect_off_the_contrast_is_never_no_material_use() -> None:
    """Two paths cancel along the contrast: the property moves an output that it does not differ in by itself."""
    rng = np.random.default_rng(0)
    n = 6000
    z = rng.integers(0, 2, n)
    h = rng.normal(0, 0.5, (n, 6)).astype(np.float32)
    h[:, 0] += 2 * z - 1
    past = torch.from_numpy(np.stack([1.0 * z, -0.4 * (2 * z - 1), 0 * z], axis=1).astype(np.float32))
    reads = torch.zeros(6, 3)
    reads[0, 1], reads[1, 0], reads[2, 1], reads[3, 2] = 0.4, 1.0, 1.0, 1.0
    instrument = ArrayInstrument(
        {Place("h"): h}, lambda site, rows, given, frozen: given[""] @ reads + past[torch.from_numpy(rows)]
    )
    result = measure_property(instrument, Property("z", z, 2, np.arange(n), {}), options=QUICK)
    (verdict,) = judge([result])
    assert abs(result.cells[0].whole.effect_size) < 0.1 <= result.cells[0].whole.whole_effect_size
    assert verdict.word.coarse == "used" and "off-contrast" in verdict.flags and "off the natural" in verdict.reason


@pytest.mark.slow
@pytest.mark.parametrize("answers", [1, 3, 8])
@pytest.mark.parametrize("effect", [0.125, 0.16])
def test_effects_above_the_smallest_of_interest_are_not_bounded_away(effect: float, answers: int) -> None:
    assert is_as_rare_as_stated("decodable only", Planted(effect=effect, answers=answers, n=3000))


@pytest.mark.parametrize("number", [34, 35])
def test_an_effect_along_a_contrast_that_hardly_varies_is_not_bounded_away(number: int) -> None:
    """The fitted contrast lies where the output varies most, and does not show what lies along the true one."""
    for seed in range(4):
        case, truth = tier0.build(number, "used", seed)
        answers = Protocol()(case)
        assert all(truth.cells[cell].certificate.s > 0.12 for cell in case.cells)
        assert "unused" not in {answer.verdict for answer in answers.values()}


# 1.5: verdicts that turn


def test_a_verdict_that_other_deals_of_the_rows_contradict_is_none() -> None:
    result, verdict = verdict_of(Planted(effect=0.5, answers=1), 1)
    assert verdict.word is Word.USED_SUBSPACE and len(result.cells[0].subspace.deals) == QUICK.deals
    assert np.allclose(result.cells[0].subspace.deals, result.cells[0].subspace.effect_size, rtol=0.3)
    for deals in ((0.0,) * 4, (0.5, 0.5, 0.5, 0.0)):
        cell = dataclasses.replace(
            result.cells[0],
            subspace=dataclasses.replace(
                result.cells[0].subspace, effect_size_high90=0.52, effect_size_low90=0.48, deals=deals
            ),
            whole=dataclasses.replace(result.cells[0].whole, p_adjusted=1.0, whole_effect_p_adjusted=1.0),
        )
        (turned,) = judge([dataclasses.replace(result, cells=(cell,))])
        assert turned.word is Word.INCONCLUSIVE and "dealt out" in turned.reason


# 1.8: foreign states


def foreign(seed: int, *, read: bool = False, n: int = 2400) -> tuple[ArrayInstrument, Property]:
    """The output differs by the property, which is not read here; any foreign state shrinks the difference by half."""
    rng = np.random.default_rng(seed)
    z = rng.integers(0, 2, n)
    h = rng.standard_normal((n, 24)).astype(np.float32)
    h[:, 0] += 3 * z
    own, past = torch.from_numpy(h), torch.from_numpy((2.0 * z - 1 + 0.5 * rng.standard_normal(n)).astype(np.float32))

    def run_from(site: str, rows: NDArray[np.int64], given: Mapping[str, Tensor], frozen: bool) -> Tensor:
        at = torch.from_numpy(rows)
        distance = (given[""][:, 8:] - own[at, 8:]).square().mean(1)
        kept = 0.5 + 0.5 * torch.exp(-4 * distance)
        moved = 0.4 * (given[""][:, 0] - own[at, 0]) if read else 0.0
        return (past[at] * kept + moved)[:, None]

    return ArrayInstrument({Place("h"): h}, run_from), Property("z", z, 2, np.arange(n), {})


def test_a_place_that_only_suffers_from_foreign_states_is_not_used() -> None:
    covered, alike = 0, []
    for seed in range(20):
        result = measure_property(*foreign(seed), options=QUICK)
        edit = result.cells[0].whole
        assert judge([result])[0].word.coarse != "used"
        covered += edit.effect_size_low <= 0 <= edit.effect_size_high
        assert edit.alike is not None
        alike.append(edit.alike)
    assert covered >= binom.ppf(0.005, 20, 0.95) and min(alike) > 0.2  # what was taken off is told
    result = measure_property(*foreign(0, read=True), options=QUICK)
    assert judge([result])[0].word.coarse == "used"


# 1.9: words


def test_outputs_of_one_dimension_have_nothing_off_the_contrast() -> None:
    """The effect is opposite in two strata, and cancels in the mean: it differs between strata."""
    rng = np.random.default_rng(1)
    n = 4000
    z, w = rng.integers(0, 2, n), rng.integers(0, 2, n)
    h = rng.normal(0, 0.3, (n, 6)).astype(np.float32)
    h[:, 0] += 2 * z - 1
    h[:, 1] += 2 * w - 1
    past = torch.from_numpy(0.6 * z.astype(np.float32) + 0.5 * rng.standard_normal(n).astype(np.float32))

    def run_from(site: str, rows: NDArray[np.int64], given: Mapping[str, Tensor], frozen: bool) -> Tensor:
        return (0.3 * given[""][:, 0] * given[""][:, 1] + past[torch.from_numpy(rows)])[:, None]

    instrument = ArrayInstrument({Place("h"): h}, run_from)
    result = measure_property(instrument, Property("z", z, 2, np.arange(n), {"w": (w, 2)}), options=QUICK)
    (verdict,) = judge([result])
    if verdict.word.coarse == "used":
        assert "off-contrast" not in verdict.flags and "off the natural contrast" not in verdict.reason
    edit = result.cells[0].whole
    small = dataclasses.replace(
        edit, effect_size=0.01, whole_effect_size=0.3, whole_effect_p_adjusted=0.0, p_adjusted=1.0
    )
    cell = dataclasses.replace(result.cells[0], subspace=small, whole=small)
    (told,) = judge([dataclasses.replace(result, cells=(cell,), family_p=0.0)])
    assert "differs between strata" in told.flags and "differs between strata" in told.reason


def test_an_effect_that_is_shown_and_straddles_the_smallest_of_interest_is_said_to_be_shown() -> None:
    made = sample(2, gain=0.2, n=900)
    result = measure_property(made.instrument, made.prop, options=QUICK)
    edit = dataclasses.replace(
        result.cells[0].whole,
        effect_size=0.093,
        effect_size_low=0.080,
        effect_size_high=0.107,
        p_adjusted=5e-5,
        whole_effect_p_adjusted=1.0,
        equivalence_p=0.4,
        whole_effect_size=0.093,
        deals=(),
    )
    cell = dataclasses.replace(result.cells[0], subspace=edit, whole=edit, completeness=1.0)
    (verdict,) = judge([dataclasses.replace(result, cells=(cell,), family_p=5e-5)])
    assert verdict.word is Word.INCONCLUSIVE
    assert "is shown, 0.093 [0.080, 0.107]" in verdict.reason and "neither shown" not in verdict.reason


# Covariates of many values, found by independent hands


def confounded(seed: int, kind: str, n: int = 3000) -> tuple[ArrayInstrument, Property]:
    """The output reads a covariate that goes with the property, and not the property."""
    rng = np.random.default_rng(seed)
    c = rng.standard_normal(n)
    if kind == "values":
        z, k = (0.8 * c + 0.6 * rng.standard_normal(n)), 0
    else:
        z, k = (rng.random(n) < 1 / (1 + np.exp(-2 * c))).astype(np.int64), 2
    given = (c, 0) if kind != "many classes" else (np.searchsorted(np.linspace(-2, 2, 199), c), 200)
    h = 0.3 * rng.standard_normal((n, 10)).astype(np.float32)
    h[:, 0] += z
    h[:, 1] += c
    reads = torch.zeros(10, 1)
    reads[1], reads[2] = 1.0, 1.0
    instrument = ArrayInstrument({Place("h"): h}, lambda site, rows, states, frozen: states[""] @ reads)
    return instrument, Property("z", z, k, np.arange(n), {"c": given})


@pytest.mark.parametrize("kind", some(["values", "two classes", "many classes"], 2))
def test_a_read_covariate_of_many_values_is_not_taken_for_the_property(kind: str) -> None:
    said = []
    for seed in range(8):
        instrument, prop = confounded(seed, kind)
        try:
            (verdict,) = judge([measure_property(instrument, prop, options=QUICK)])
        except DegenerateDesign:  # so many values that no stratum has rows of both classes
            said.append("refused")
        else:
            said.append(verdict.word.coarse)
    assert said.count("used") <= 1, said


def test_outputs_beside_huge_ones_are_not_dropped_as_rounding() -> None:
    """An effect of one SD in an output counts as one SD, however large others are."""
    h = np.random.default_rng(0).standard_normal((900, 3)).astype(np.float32)
    scales = torch.tensor([1.0, 3e4, 3e4])
    instrument = ArrayInstrument({Place("h"): h}, lambda site, rows, states, frozen: states[""] * scales)
    prop = Property("z", np.arange(900) % 2, 2, np.arange(900), {})
    bench = EditMeasurement.of(instrument, prop.plan(UseOptions()), seed=0)
    assert bench.precision[0, 0] * bench.y[:, 0].var() == pytest.approx(1.0, rel=0.05)


def test_a_class_beyond_their_number_is_refused() -> None:
    instrument, prop = planted(Planted(), 0)
    with pytest.raises(BadParameter, match="beyond the number of classes"):
        measure_property(instrument, dataclasses.replace(prop, z=prop.z + 1), options=QUICK)
