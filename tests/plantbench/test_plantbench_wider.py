"""The newer cases of tier 0 are what they are called, and one yardstick measures effects whatever the output."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from probing.contracts.edited_model import Place
from probing.plantbench import tier0
from probing.plantbench.case import Case, Joint, Truth, effective, groups_of, zipf_shares
from probing.plantbench.certifying import certify
from probing.plantbench.knobs import CI_SEEDS, Knobs, held_out
from probing.plantbench.plants import flipped
from probing.plantbench.tier0 import CASES
from probing.plantbench.yardstick import SignedMeans, Yardstick
from probing.seeds import generator
from probing.use.edited_models.arrays import ArrayInstrument

EFFECTS = dict(zip(range(32, 36), Knobs().multiples, strict=True))


@cache
def built(number: int, twin: str, seed: int = 0) -> tuple[Case, Truth]:
    return tier0.build(number, twin, seed)  # type: ignore[arg-type]


def only(number: int, twin: str, seed: int = 0) -> object:
    (found,) = built(number, twin, seed)[1].cells.values()
    return found.certificate


# ---- the yardstick


def linear(y: np.ndarray, groups: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Starts, goals and strata of as many rows as y, of two classes in equal numbers in each stratum."""
    n = len(y)
    strata = np.arange(n) % groups
    start = (np.arange(n) // groups) % 2
    return start, 1 - start, rng.permutation(groups)[strata]


@pytest.mark.parametrize("groups", [1, 3])
def test_of_an_output_of_one_dimension_it_is_the_share_of_its_sd(groups: int) -> None:
    rng = generator(0, "yardstick")
    y = rng.normal(size=(600, 1))
    start, goal, strata = linear(y, groups, rng)
    sign = np.where(start < goal, 1.0, -1.0)[:, None]
    stick = Yardstick.of(SignedMeans.of(start, goal, strata, n_classes=2), y, 0.7 * sign)
    found = stick(0.13 * y.std() * sign)
    assert found.s == pytest.approx(found.of_total) == pytest.approx(0.13)
    assert (found.along, found.off) == pytest.approx((0.13, 0.0), abs=1e-12)
    assert stick.s_c == pytest.approx(stick.s_y)


def test_an_effect_along_the_contrast_counts_in_sds_along_it_and_what_is_off_it_in_sds_of_the_whole() -> None:
    rng = generator(1, "yardstick")
    y = rng.normal(size=(900, 3)) * [3.0, 0.5, 1.0]
    start, goal, strata = linear(y, 3, rng)
    sign = np.where(start < goal, 1.0, -1.0)[:, None]
    stick = Yardstick.of(SignedMeans.of(start, goal, strata, n_classes=2), y, sign * np.array([0.0, 1.0, 0.0]))
    s_y = np.sqrt(y.var(0).sum())
    along, across = stick(sign * np.array([0.0, 0.2, 0.0])), stick(sign * np.array([0.3, 0.0, 0.4]))
    assert (along.along, along.off) == pytest.approx((0.2 / y[:, 1].std(), 0.0), abs=1e-9)
    assert (across.along, across.off) == pytest.approx((0.0, 0.5 / s_y), abs=1e-9)
    both = stick(sign * np.array([0.3, -0.2, 0.4]))
    assert both.along == pytest.approx(-along.s)
    assert both.s == pytest.approx(np.hypot(along.s, across.s))


def test_effects_that_differ_between_strata_are_off_the_contrast_though_the_output_has_one_dimension() -> None:
    y = generator(2, "yardstick").normal(size=(800, 1))
    start, strata = np.arange(800) % 2, np.arange(800) // 2 % 2
    sign = np.where(start == 0, 1.0, -1.0)[:, None]
    stick = Yardstick.of(SignedMeans.of(start, 1 - start, strata, n_classes=2), y, sign)
    found = stick(sign * np.where(strata == 0, 0.3, -0.3)[:, None])
    assert (found.along, found.off) == pytest.approx((0.0, 0.3 / y.std()), abs=1e-9)


def test_a_contrast_that_chance_alone_gives_is_none() -> None:
    rng = generator(3, "yardstick")
    y = rng.normal(size=(500, 4))
    start, goal, strata = linear(y, 1, rng)
    means = SignedMeans.of(start, goal, strata, n_classes=2)
    stick = Yardstick.of(means, y, rng.normal(size=(500, 4)))
    assert stick.s_c == 0
    found = stick(np.where(start < goal, 1.0, -1.0)[:, None] * np.full((500, 4), 0.1))
    assert found.along == 0
    assert found.s == found.off == found.of_total == pytest.approx(0.2 / np.sqrt(y.var(0).sum()))


def test_pairs_of_classes_weigh_as_their_rows_and_both_directions_alike() -> None:
    """Three classes of 600, 300 and 100 rows: pairs as 6·3, 6·1 and 3·1."""
    z = np.repeat([0, 1, 2], [600, 300, 100])
    goal = flipped(generator(4, "flips"), z, 3)
    means = SignedMeans.of(z, goal, np.zeros(1000, np.int64), n_classes=3)
    np.testing.assert_allclose(means.shares, np.array([18, 6, 3]) / 27)
    changes = np.where(z < goal, 1.0, -3.0)[:, None]
    np.testing.assert_allclose(means(changes), 2.0)
    assert means.rows.sum() == pytest.approx(1.0)
    for low, high, share in ((0, 1, 18), (0, 2, 6), (1, 2, 3)):
        for a, b in ((low, high), (high, low)):
            assert means.rows[(z == a) & (goal == b)].sum() == pytest.approx(share / 54)


def test_goals_are_drawn_by_the_frequency_of_the_other_classes() -> None:
    z = generator(5, "z").choice(4, 40_000, p=[0.6, 0.3, 0.1, 0.0])
    goal = flipped(generator(5, "flips"), z, 4)
    assert (goal != z).all()
    from_first = np.bincount(goal[z == 0], minlength=4) / (z == 0).sum()
    np.testing.assert_allclose(from_first, [0.0, 0.75, 0.25, 0.0], atol=0.01)
    of_one_class = flipped(generator(6, "flips"), np.zeros(3000, np.int64), 4)
    np.testing.assert_allclose(np.bincount(of_one_class, minlength=4) / 3000, [0, 1 / 3, 1 / 3, 1 / 3], atol=0.04)


def test_real_values_step_to_the_row_half_the_ranks_away() -> None:
    """Of normal values that is some 1.6 SD; a linear read of slope b in one dimension has S = b · step / SD."""
    rng = generator(7, "real")
    z = rng.standard_normal(20_000)
    goal = rng.standard_normal(20_000)
    y = 0.2 * z[:, None] + rng.normal(size=(20_000, 1))
    stick = Yardstick.of(SignedMeans.of(z, goal, np.zeros(20_000, np.int64), n_classes=0), y, 0.2 * (goal - z)[:, None])
    found = stick(0.05 * (goal - z)[:, None])
    order = np.argsort(z)
    step = np.sqrt(np.mean((z[np.roll(order, 10_000)] - z[order]) ** 2))
    assert step == pytest.approx(1.63, abs=0.03)
    assert found.of_total == pytest.approx(0.05 * step / y.std())
    assert found.s == pytest.approx(found.of_total, rel=0.02)


def test_rows_that_all_start_from_one_value_step_as_their_edits_do() -> None:
    """A stratum of one start has no ranks to step over; the other strata weigh as without it."""
    rng = generator(8, "one start")
    start = np.concatenate([np.full(40, 0.5), rng.normal(size=60)])
    goal, strata = rng.normal(size=100), np.repeat([0, 1], [40, 60])
    means = SignedMeans.of(start, goal, strata, n_classes=0)
    step = goal - start
    moved = means(3.0 * step[:, None])
    assert moved[0, 0] == pytest.approx(3.0 * np.sqrt(np.mean(step[:40] ** 2)))
    np.testing.assert_allclose(means.shares, [0.4, 0.6])
    assert means.rows.sum() == pytest.approx(1.0)
    alone = SignedMeans.of(start[40:], goal[40:], strata[40:], n_classes=0)
    assert moved[1, 0] == pytest.approx(alone(3.0 * step[40:, None])[0, 0])


def test_certificates_along_and_off_a_contrast_are_those_of_a_model_written_by_hand() -> None:
    """y = (3 c, z·a + ε): the property moves the second column alone, by 2 a of its own SD."""
    n = 2000
    rng = generator(8, "hand")
    z, c, rest = np.arange(n) % 2, rng.standard_normal(n), rng.standard_normal(n)
    sign = 2.0 * z - 1
    rows = np.concatenate([np.stack([sign, c, rest], 1), np.stack([-sign, c, rest], 1)]).astype(np.float32)
    reads = torch.tensor([[0.0, 0.06], [3.0, 0.0], [0.0, 1.0]])
    place = Place("layer")
    instrument = ArrayInstrument({place: rows}, lambda site, rows, given, frozen: given[""] @ reads)
    pairs = np.stack([np.arange(n), n + np.arange(n)], 1)
    values, strata = np.concatenate([z, 1 - z]), np.zeros(2 * n, np.int64)
    found = certify(instrument, place, pairs, values, strata, n_classes=2)
    assert found.along == pytest.approx(0.12 / rest.std(), rel=0.01)
    assert found.s_total == pytest.approx(0.12 / np.sqrt(9 * c.var() + rest.var()), rel=0.01)
    assert found.off == pytest.approx(0.0, abs=1e-6)
    assert (found.label, found.s_total < 0.05) == ("used", True)


# ---- effects near the smallest that counts


@pytest.mark.parametrize("seed", CI_SEEDS)
@pytest.mark.parametrize("number", EFFECTS)
def test_planted_effects_are_the_multiples_of_epsilon_that_they_are_called(number: int, seed: int) -> None:
    found = only(number, "used", seed)
    assert found.s == pytest.approx(0.1 * EFFECTS[number], rel=0.03)  # type: ignore[attr-defined]
    assert found.label == ("used" if EFFECTS[number] > 1 else "band")  # type: ignore[attr-defined]


@pytest.mark.parametrize("draw", range(3))
def test_planted_effects_hold_in_wider_configurations(draw: int) -> None:
    knobs = replace(held_out("a test, no release", draw), n=300)
    for number in EFFECTS:
        _, truth = tier0.build(number, "used", draw, knobs=knobs)
        (cell,) = truth.cells.values()
        assert cell.certificate.s == pytest.approx(0.1 * knobs.multiples[number - 32], rel=0.03)
    _, truth = tier0.build(36, "used", draw, knobs=knobs)
    for cell in truth.cells.values():
        assert cell.certificate.s == pytest.approx(0.1 * knobs.off_multiple, rel=0.05)


def test_small_opposed_effects_lie_off_the_contrast() -> None:
    _, truth = built(36, "used")
    for cell in truth.cells.values():
        assert cell.certificate.along == 0
        assert cell.certificate.off == pytest.approx(0.16, rel=0.03)


# ---- positions together


@pytest.mark.parametrize("seed", CI_SEEDS)
def test_a_majority_is_used_together_and_at_no_place_alone(seed: int) -> None:
    _, truth = built(31, "used", seed)
    assert len(truth.cells) == 3
    for cell, found in truth.cells.items():
        assert found.certificate.label == "unused"
        assert found.certificate.e < 1e-5
        assert found.decodable
        together = truth.joint(cell)
        assert together is not None
        assert together.label == "used"
        assert together.s == pytest.approx(1.8, abs=0.2)
        assert together.mf == pytest.approx(1.0, abs=1e-5)
    _, unread = built(31, "unused", seed)
    (joint,) = unread.joints.values()
    assert joint.label == "unused"
    assert joint.e < 1e-5


def test_joints_are_those_of_sites_with_several_positions() -> None:
    assert list(built(7, "used")[1].joints) == [Joint("B", "resid.0", ("first", "second"))]
    assert built(1, "used")[1].joints == {}
    opposed = next(iter(built(7, "used")[1].joints.values()))
    assert opposed.s < 0.1 < opposed.e  # rows change by their noise, which has no direction


# ---- classes, documents, groups, widths


@pytest.mark.parametrize("seed", CI_SEEDS)
def test_classes_are_as_many_and_as_frequent_as_they_are_called(seed: int) -> None:
    for number, k in zip(range(23, 29), (4, 4, 6, 6, 17, 17), strict=True):
        case, _ = built(number, "unused", seed)
        shares = np.bincount(case.labels["B"], minlength=k) / len(case.labels["B"])
        wanted = zipf_shares(k, 1.0) if number % 2 == 0 else np.full(k, 1 / k)
        assert case.n_classes["B"] == k
        assert len(case.groups) == 6000 // (1, 2, 4)[seed]
        np.testing.assert_allclose(shares, wanted, atol=4 * np.sqrt(0.5 / len(case.groups)))


@pytest.mark.parametrize("number", [29, 30])
def test_documents_are_uneven_have_one_label_and_share_noise_that_is_read(number: int) -> None:
    worth = []
    for seed in range(6):
        case, truth = built(number, "unused", seed)
        z, groups, y = case.labels["B"], case.groups, case.instrument.clean()
        assert all(len(np.unique(z[groups == g])) == 1 for g in range(groups.max() + 1))
        assert groups.max() + 1 == 150
        worth.append(effective(groups))
        cells = 2 * case.labels["A"] + case.labels["C"]
        rest = y - np.stack([y[cells == k].mean(0) for k in range(4)])[cells]
        assert intraclass(rest, groups) > 0.3
        assert max(t.certificate.e for t in truth.cells.values()) < 1e-5
    assert 8 < np.median(worth) < 40
    if number == 29:
        assert worth == pytest.approx([20.0] * 6, abs=3)


def intraclass(y: np.ndarray, groups: np.ndarray) -> float:
    """Share of the variance that rows of a group have in common, from one-way analysis of variance."""
    sizes = np.bincount(groups).astype(float)
    means = np.stack([np.bincount(groups, column) / sizes for column in y.T], 1)
    within = ((y - means[groups]) ** 2).sum() / (len(y) - len(sizes))
    between = (sizes[:, None] * (means - y.mean(0)) ** 2).sum() / (len(sizes) - 1)
    usual = (len(y) - (sizes**2).sum() / len(y)) / (len(sizes) - 1)
    return float((between - within) / usual / ((between - within) / usual + within))


def test_groups_are_of_the_sizes_they_are_called() -> None:
    for number, sizes in ((39, {1}), (40, {2}), (41, {7}), (42, set(range(1, 13))), (43, {6})):
        case, _ = built(number, "unused")
        assert set(np.bincount(case.groups)[:-1].tolist()) == sizes
    case, _ = built(43, "unused")
    halves = np.bincount(case.groups, case.labels["B"])[:-1]
    assert (halves == 3).all()


@pytest.mark.parametrize("grouping", ["equal", "mixed", "zipf", "lognormal"])
def test_groups_are_numbered_without_gaps_whatever_their_sizes(grouping: str) -> None:
    for n in (1, 7, 150, 151, 4000):
        groups = groups_of(Knobs(grouping=grouping), n, generator(0, "groups"))  # type: ignore[arg-type]
        assert len(groups) == n
        assert groups[0] == 0
        assert set(np.diff(groups).tolist()) <= {0, 1}


def test_effective_groups_count_equal_ones_once() -> None:
    assert effective(np.repeat(np.arange(30), 5)) == pytest.approx(30)
    assert effective(np.repeat([0, 1], [99, 1])) == pytest.approx(1.02, abs=0.01)


def test_wide_states_have_as_many_directions_as_rows_and_twice_as_many() -> None:
    for number, ratio in ((37, 1.0), (38, 0.5)):
        case, truth = built(number, "unused")
        (place,) = (cell.place for cell in case.cells)
        n, d = case.instrument.states(place).shape
        assert (n, n / d) == (600, ratio)
        assert all(t.probe_accuracy > 0.9 for t in truth.cells.values())


@pytest.mark.parametrize("number", [n for n in CASES if n > 22])
def test_rebuilding_gives_the_same_rows_and_the_same_truth(number: int) -> None:
    twin = CASES[number].twins[-1]
    small = Knobs(n=600, n_pairs=512)
    (one, true_one), (other, true_other) = (tier0.build(number, twin, 1, knobs=small) for _ in range(2))
    assert true_one == true_other
    np.testing.assert_array_equal(one.instrument.clean(), other.instrument.clean())
    np.testing.assert_array_equal(one.labels["B"], other.labels["B"])
    np.testing.assert_array_equal(one.groups, other.groups)
    one.instrument.check()
