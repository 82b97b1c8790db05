"""Tier 0: what do-interventions certify is what was built, twins match, and pairs differ in the property alone."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from probing.contracts.edited_model import Place
from probing.errors import BadParameter, BadTwin, PlantFailed, UnknownName
from probing.plantbench import certifying, tier0
from probing.plantbench.case import Case, Cell, CellTruth, Truth
from probing.plantbench.knobs import CI_SEEDS, Knobs, held_out, holdout_seed
from probing.plantbench.plants import SITE, flipped
from probing.plantbench.tier0 import CASES
from probing.plantbench.vectors import World, drawn
from probing.seeds import generator
from tests.conftest import some

TWINS = [number for number, spec in CASES.items() if len(spec.twins) == 2]
IN_THE_BAND = {32, 33}
SMALL = Knobs(n=600, n_pairs=1024)


@cache
def made(seed: int) -> dict[str, tuple[Case, Truth]]:
    return {case.key: (case, truth) for case, truth in tier0.cases(seed)}


def cells(seed: int) -> list[tuple[Case, Cell, CellTruth]]:
    return [(case, cell, truth.cells[cell]) for case, truth in made(seed).values() for cell in case.cells]


def world(number: int, seed: int = 0) -> World:
    plant = CASES[number].build(True, SMALL, seed)
    return World.of(plant, SMALL, drawn(plant, SMALL, SMALL.n_pairs, number, seed), number, seed)


@pytest.mark.parametrize("seed", some(CI_SEEDS, 1))
def test_every_cell_is_certified_as_it_was_intended(seed: int) -> None:
    found = cells(seed)
    assert {case.number for case, _, _ in found} == set(range(1, 44)) - {14, 15}
    for case, cell, truth in found:
        certified = truth.certificate
        assert certified.label == truth.intended or truth.intended == "", (case.key, cell, certified)
        assert (certified.label == "band") == (case.number in IN_THE_BAND), (case.key, certified)
        assert certified.n_pairs == (2048 if case.number in (37, 38) else 4096)


@pytest.mark.parametrize("seed", some(CI_SEEDS, 1))
def test_unread_codes_do_exactly_nothing(seed: int) -> None:
    unused = [(case, truth) for case, _, truth in cells(seed) if case.twin == "unused"]
    for case, truth in unused:
        assert truth.certificate.e < (0.02 if case.number == 22 else 1e-5), case.key


@pytest.mark.parametrize("seed", some(CI_SEEDS, 1))
def test_twins_match_in_what_a_probe_and_class_means_can_see(seed: int) -> None:
    for number in TWINS:
        (one, true_one), (other, true_other) = (
            made(seed)[f"0.{number:02d}.{twin}.{seed}"] for twin in ("unused", "used")
        )
        for cell in one.cells:
            assert abs(true_one.cells[cell].probe_accuracy - true_other.cells[cell].probe_accuracy) <= 0.005, one.key
            assert shift(one, cell) == pytest.approx(shift(other, cell), rel=0.05), one.key
        for name in ("A", "C"):
            assert correlation(one, name) == pytest.approx(correlation(other, name), abs=1e-9), one.key


def shift(case: Case, cell: Cell) -> float:
    """|D| of the first two classes, or the slope on a real value."""
    h, z = case.instrument.states(cell.place).astype(np.float64), case.labels["B"]
    if not case.n_classes["B"]:
        return float(np.linalg.norm(np.cov(z, h.T)[0, 1:]))
    return float(np.linalg.norm(h[z == 1].mean(0) - h[z == 0].mean(0)))


def correlation(case: Case, name: str) -> float:
    return float(np.corrcoef(case.labels["B"], case.labels[name])[0, 1])


def test_sub_labels_tell_how_a_property_is_used() -> None:
    found = {
        (case.number, cell.place.position): truth.certificate
        for case, cell, truth in cells(0)
        if truth.certificate.label == "used"
    }
    assert found[4, ""].sub_label == "norm-mediated"
    assert found[4, ""].s_frozen is not None
    assert found[4, ""].s_frozen < 1e-5
    assert found[10, ""].sub_label == "site only"
    assert {c.sub_label for (number, _), c in found.items() if number not in (4, 10)} == {"subspace"}


def test_mediated_fractions_are_those_of_the_construction() -> None:
    found = {
        (case.number, cell.place.position): truth.certificate for case, cell, truth in cells(0) if case.twin == "used"
    }
    for copy in ("first", "second"):
        assert found[11, copy].mf == pytest.approx(0.5, abs=0.03)
        assert found[7, copy].mf is None
        assert found[7, copy].s > 0.5
    assert found[12, "first"].mf + found[12, "second"].mf == pytest.approx(1.0, abs=0.02)
    assert found[8, ""].mf == pytest.approx(1.0, abs=1e-5)
    assert 0.1 <= found[8, ""].s_total < 0.35 < found[1, ""].s_total
    single = [c.mf for (number, position), c in found.items() if position == "" and number not in range(32, 36)]
    assert single == pytest.approx([1.0] * len(single), abs=1e-5)


def test_only_the_absent_property_is_not_decodable() -> None:
    assert {case.number for case, _, truth in cells(0) if not truth.decodable} == {2}


@pytest.mark.parametrize("number", CASES)
def test_minimal_pairs_differ_in_the_property_alone(number: int) -> None:
    """Back in the model's basis only B's slots move; and but for case 4 the length stays."""
    w = world(number)
    rows = drawn(w.plant, SMALL, 200, number, "pairs")
    other = flipped(generator(0, "flips"), rows.z, w.plant.n_classes)
    assert (other != rows.z).all()
    own = np.zeros(SMALL.width, bool)
    own[3 : 3 + w.plant.slots] = True
    for position, h in w.written(rows, rows.z).items():
        g = w.written(rows, other)[position]
        moved = np.abs((g - h) @ w.rotation.T.astype(np.float32))
        assert moved[:, ~own].max() < 1e-4
        if number != 2:
            assert np.linalg.norm(moved[:, own], axis=1).mean() > 0.5
        if number != 4:
            np.testing.assert_allclose(np.linalg.norm(g, axis=1), np.linalg.norm(h, axis=1), rtol=1e-4)


def test_the_twins_track_pairs_each_row_with_its_flip() -> None:
    case, _ = tier0.build(18, "used", 0, knobs=replace(SMALL, twins=True))
    assert case.twins is not None
    assert (case.twins[case.twins] == np.arange(600)).all()
    assert (case.labels["B"] != case.labels["B"][case.twins]).all()
    for name in ("A", "C"):
        assert (case.labels[name] == case.labels[name][case.twins]).all()
    assert (case.groups == case.groups[case.twins]).all()


def test_rebuilding_gives_the_same_rows_and_the_same_truth() -> None:
    for number in (5, 10, 21):
        (one, true_one), (other, true_other) = (tier0.build(number, "used", 1, knobs=SMALL) for _ in range(2))
        assert true_one == true_other
        np.testing.assert_array_equal(one.instrument.clean(), other.instrument.clean())
        np.testing.assert_array_equal(one.labels["B"], other.labels["B"])


def test_other_seeds_are_other_models() -> None:
    one, other = (tier0.build(1, "used", seed, knobs=SMALL)[0] for seed in (0, 1))
    assert np.abs(one.instrument.clean() - other.instrument.clean()).max() > 1


def test_instruments_pass_their_own_checks_and_the_truth_is_not_in_the_case() -> None:
    for case, _ in tier0.cases(0, knobs=SMALL, numbers=(4, 7, 10, 17)):
        case.instrument.check()
        blind = case.blind()
        assert (blind.number, blind.name, blind.twin) == (0, "", "")
        assert not any(isinstance(value, Truth | CellTruth) for value in vars(blind).values())


def test_correlations_and_shares_are_those_of_the_knobs() -> None:
    for seed, rho in zip(CI_SEEDS, Knobs().rhos, strict=True):
        assert correlation(tier0.build(5, "used", seed)[0], "A") == pytest.approx(rho, abs=0.04)
    assert made(0)["0.20.used.0"][0].labels["B"].mean() == pytest.approx(0.02, abs=0.006)
    types, z = made(0)["0.21.used.0"][0].types, made(0)["0.21.used.0"][0].labels["B"]
    assert types is not None
    assert all(len(np.unique(z[types == one])) == 1 for one in range(96))


def test_the_held_out_configuration_is_drawn_by_version_and_certified() -> None:
    assert holdout_seed("1") != holdout_seed("2")
    assert held_out("1", 0) == held_out("1", 0) != held_out("1", 1)
    for draw in range(3):
        knobs = replace(held_out("a test, no release", draw), n=300, n_pairs=1024)
        for case, truth in tier0.cases(draw, knobs=knobs):
            for cell in truth.cells.values():
                assert cell.certificate.label in (cell.intended or "band", "band") or not cell.intended, case.key


def test_a_contradicted_intention_fails_loudly() -> None:
    _, truth = tier0.build(1, "used", 0, knobs=SMALL)
    (cell, known), *_ = truth.cells.items()
    with pytest.raises(PlantFailed, match="not what it was built to be"):
        certifying.truth_of(cell, known.certificate, "unused", 1.0, 2, where="a test")
    with pytest.raises(PlantFailed, match="otherwise"):
        certifying.truth_of(cell, known.certificate, "used", 1.0, 2, where="a test", sub_label="site only")


def test_pairs_that_are_not_minimal_are_refused() -> None:
    case, _ = tier0.build(1, "used", 0, knobs=replace(SMALL, twins=True))
    assert case.twins is not None
    pairs = np.stack([np.arange(300), case.twins[:300]], axis=1)
    place, z = Place(SITE), case.labels["B"]
    one_stratum = np.zeros(600, np.int64)
    assert certifying.certify(case.instrument, place, pairs, z, one_stratum, n_classes=2).label == "used"
    with pytest.raises(BadTwin):
        certifying.certify(case.instrument, place, pairs[:, [0, 0]], z, one_stratum, n_classes=2)
    with pytest.raises(BadTwin):
        certifying.certify(case.instrument, place, pairs, z, np.arange(600) // 300, n_classes=2)


def test_unknown_cases_and_impossible_knobs_are_refused() -> None:
    with pytest.raises(UnknownName):
        tier0.build(14, "used", 0)
    with pytest.raises(UnknownName):
        tier0.build(2, "used", 0)
    with pytest.raises(BadParameter):
        Knobs(width=16)
    with pytest.raises(BadParameter):
        Knobs(n=5, twins=True)
