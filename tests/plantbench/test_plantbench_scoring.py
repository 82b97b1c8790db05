"""Scores: the rule that knows scores 1, silence claims nothing, and every count is the one that its name says."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import probing
from probing.cli.commands import app
from probing.contracts.edited_model import Place
from probing.contracts.intervention import Intervention
from probing.errors import BadParameter, TooFewGroups, UnknownName
from probing.plantbench import baselines, scorecard, tier0
from probing.plantbench.case import Answer, Case, Cell, CellTruth, Certificate, Said, Truth
from probing.plantbench.knobs import Knobs, held_out_version
from probing.plantbench.scorecard import Scorecard, run
from probing.plantbench.scoring import (
    SWEEPS,
    Rule,
    Scored,
    answers,
    oracle_rule,
    power_curve,
    power_table,
    rates,
    score,
)
from probing.plantbench.suite import Suite, development, held_out_suite, vectors
from probing.use.interventions.inlp import Inlp
from probing.use.interventions.leace import Leace
from probing.use.nulls import rate_interval
from tests.conftest import ROOT

SMALL = Knobs(n=1200, n_pairs=1024)


@cache
def suite() -> tuple[tuple[Case, Truth], ...]:
    return tuple(tier0.cases(0, knobs=SMALL, numbers=(1, 2, 5, 11, 18, 19)))


def scored(
    label: str,
    verdict: Said,
    *,
    decodable: bool = True,
    effect: float = math.nan,
    mf: float | None = None,
    s: float = 0.5,
    joint: str = "",
    together: str = "",
    cell: str = "B at x",
) -> Scored:
    truth = CellTruth("", certificate(label, s, mf), 0.9 if decodable else 0.5, 0.5)
    answer = Answer(verdict, effect=effect, together=together)  # type: ignore[arg-type]
    others = certificate(joint, s, mf) if joint else None
    return Scored("0.01.used.0", 0, 1, "plain", cell, truth, answer, 0.25, "", others)


def certificate(label: str, s: float, mf: float | None) -> Certificate:
    return Certificate(label, "subspace" if label == "used" else "", s, s, mf, None, None, 9)  # type: ignore[arg-type]


def test_the_rule_that_knows_scores_one() -> None:
    found = score(oracle_rule(suite()), suite())
    assert [found.precision_used, found.recall_used, found.f1_used] == [1.0] * 3
    assert [found.precision_unused, found.recall_unused, found.f1_unused] == [1.0] * 3
    assert (found.abstention, found.fpr, found.false_unused, found.false_not_decodable) == (0.0, 0.0, 0.0, 0.0)
    assert found.mf_slope == pytest.approx(1.0)
    assert found.cells == found.used + found.unused == 13


def test_always_abstaining_recalls_nothing_and_claims_nothing() -> None:
    for rule in (lambda case: {}, lambda case: {cell: Answer("abstain") for cell in case.cells}):
        found = score(rule, suite())
        assert (found.recall_used, found.recall_unused, found.abstention) == (0.0, 0.0, 1.0)
        assert (found.fpr, found.false_unused) == (0.0, 0.0)
        assert found.precision_used is None
        assert found.precision_unused is None


def test_always_saying_used_has_every_false_positive() -> None:
    found = score(lambda case: {cell: Answer("used") for cell in case.cells}, suite())
    assert (found.recall_used, found.fpr, found.recall_unused) == (1.0, 1.0, 0.0)
    assert found.precision_used == pytest.approx(6 / 13)
    assert found.fpr_high == 1.0


def test_counts_are_those_of_a_table_made_by_hand() -> None:
    cells = [
        *[scored("used", "used")] * 6,
        *[scored("used", "unused")] * 2,
        scored("used", "abstain"),
        scored("used", "not_decodable"),
        *[scored("unused", "unused")] * 5,
        *[scored("unused", "used")] * 2,
        scored("unused", "not_decodable"),
        scored("unused", "not_decodable", decodable=False),
        scored("unused", "abstain"),
        *[scored("band", "used")] * 7,
    ]
    found = rates(cells)
    assert (found.cells, found.used, found.unused) == (20, 10, 10)
    assert (found.precision_used, found.recall_used) == (6 / 8, 6 / 10)
    assert (found.precision_unused, found.recall_unused) == (6 / 8, 6 / 10)
    assert found.f1_used == pytest.approx(2 / 3)
    assert (found.abstention, found.fpr, found.false_unused) == (2 / 20, 2 / 10, 2 / 10)
    assert found.false_not_decodable == 2 / 19
    assert (found.fpr_low, found.fpr_high) == pytest.approx((0.0252, 0.5561), abs=1e-4)  # Clopper and Pearson's table
    assert found.seconds == pytest.approx(27 * 0.25)


def test_errors_on_effects_well_above_epsilon_and_words_on_the_band_are_counted_apart() -> None:
    cells = [
        scored("used", "unused", s=0.11),
        *[scored("used", "unused", s=0.126)] * 2,
        *[scored("used", "used", s=0.2)] * 6,
        *[scored("band", "used", s=0.08)] * 3,
        scored("band", "unused", s=0.08),
        scored("band", "abstain", s=0.08),
    ]
    found = rates(cells)
    assert (found.false_unused, found.material, found.material_unused) == (3 / 9, 8, 2)
    assert (found.material_rate, found.false_used) == (0.25, 0)
    assert (found.material_low, found.material_high) == pytest.approx((0.0319, 0.6509), abs=1e-4)
    assert (found.band, found.band_used, found.band_unused) == (5, 3, 1)
    lines = Scorecard({"mine": cells}).case_tables().splitlines()
    assert lines[0].startswith("mine, by case")
    assert "2 of 8 [0.032, 0.651]" in lines[2]
    assert lines[2].endswith("3, 1, 5")


def test_places_that_are_used_only_together_have_a_score_of_their_own() -> None:
    cells = [
        *[scored("unused", "unused", joint="used", together="used")] * 3,
        scored("unused", "unused", joint="used"),
        *[scored("unused", "unused", joint="unused")] * 4,
        scored("unused", "unused", joint="unused", together="used"),
        scored("unused", "unused", joint="band", together="used"),
        # A place beside one that is used alone: what they do together tells nothing of it.
        scored("used", "used", joint="used", cell="B at y@a"),
        scored("unused", "unused", joint="used", cell="B at y@b"),
    ]
    found = rates(cells)
    assert (found.joint_recall, found.joint_fpr) == (3 / 4, 1 / 5)
    assert found.recall_unused == found.recall_used == 1.0
    assert rates([scored("used", "used")]).joint_recall is None
    majority = tuple(tier0.cases(0, knobs=SMALL, numbers=(31,)))
    known = score(oracle_rule(majority), majority)
    assert (known.joint_recall, known.joint_fpr, known.recall_unused) == (1.0, 0.0, 1.0)


def test_a_rule_is_asked_only_about_its_tiers() -> None:
    found = answers({"all": lambda case: {}, "none": lambda case: {}}, suite()[:2], tiers={"none": (1, 2)})
    assert (len(found["all"]), len(found["none"])) == (2, 0)
    card = Scorecard(found)
    assert [set(cell["answers"]) for cell in json.loads(card.to_json())["cells"]] == [{"all"}, {"all"}]
    assert list(card.by(lambda s: s.name)["plain"]) == ["all"]


def test_the_chart_of_a_scorecard_draws_its_rates_and_refuses_an_empty_one() -> None:
    card = Scorecard(answers({"oracle": oracle_rule(suite()), "silent": lambda case: {}}, suite()))
    (rows,) = card.plot().to_dict()["datasets"].values()
    drawn = {(row["series"], row["at"]): row["value"] for row in rows}
    for rule, one in card.rates().items():
        assert drawn["unused, called used", rule] == one.fpr
        assert drawn["used, called unused", rule] == one.false_unused
        assert drawn["no answer", rule] == one.abstention
    with pytest.raises(BadParameter, match="without answers"):
        Scorecard({"silent": []}).plot()


def test_bare_heldout_runs_what_the_documentation_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tier 0 in ten draws with all rules, tier 1 in one and tier 2 with three models by the protocol alone."""
    asked: dict[str, object] = {}

    def made(version: str, *, tiers: Sequence[int], draws: int) -> Suite:
        asked.update(version=version, tiers=list(tiers), suite=held_out_suite(version, tiers=tiers, draws=draws))
        return Suite((), {})

    def heard(
        rules: Mapping[str, Rule], cases: object, *, tiers: Mapping[str, tuple[int, ...]]
    ) -> dict[str, list[Scored]]:
        asked.update(rules=list(rules), limited=dict(tiers))
        return {name: [] for name in rules}

    monkeypatch.setattr(scorecard, "held_out_suite", made)
    monkeypatch.setattr(scorecard, "answers", heard)
    monkeypatch.setattr(
        scorecard, "field_rules", lambda suite: {name: lambda case: {} for name in baselines.FIELD_RULES}
    )
    result = CliRunner().invoke(app, ["plantbench", "--heldout", "--quiet"])
    assert result.exit_code == 0, result.output
    whole = asked["suite"]
    assert isinstance(whole, Suite)
    assert asked["tiers"] == [0, 1, 2, 3]
    assert {tier: len(whole.few.get(tier, whole.seeds)) for tier in (0, 1, 2, 3)} == {0: 10, 1: 1, 2: 3, 3: 1}
    assert asked["rules"] == ["protocol", *baselines.FIELD_RULES]
    assert asked["limited"] == dict.fromkeys(baselines.FIELD_RULES, (0,))
    assert asked["version"] == held_out_version(probing.__version__) != probing.__version__
    page = (ROOT / "docs" / "plantbench.md").read_text(encoding="utf-8")
    assert (
        "`probing plantbench --heldout`: tier 0 in ten draws by all rules, tier 1 in one draw and three\ntrained"
        in page
    )


def test_the_slope_is_through_zero_over_cells_that_have_both() -> None:
    cells = [
        scored("used", "used", effect=0.8, mf=1.0),
        scored("used", "used", effect=0.4, mf=0.5),
        scored("used", "used", mf=1.0),
        scored("used", "used", effect=9.0),
    ]
    assert rates(cells).mf_slope == pytest.approx(0.8)
    assert rates(cells[2:]).mf_slope is None


@pytest.mark.parametrize(
    ("found", "n", "low", "high"),
    [(0, 0, 0.0, 1.0), (0, 10, 0.0, 0.3085), (10, 10, 0.6915, 1.0), (1, 1, 0.025, 1.0), (5, 10, 0.1871, 0.8129)],
)
def test_clopper_pearson_at_its_edges(found: int, n: int, low: float, high: float) -> None:
    assert rate_interval(found, n) == pytest.approx((low, high), abs=1e-4)


def test_nothing_scored_gives_no_rates() -> None:
    found = rates([scored("band", "used")])
    assert found.cells == 0
    assert found.precision_used is found.recall_used is found.fpr is found.abstention is None


def test_rules_see_blind_cases_and_a_refusal_is_an_abstention() -> None:
    seen: list[Case] = []

    def refuses(case: Case) -> Mapping[Cell, Answer]:
        seen.append(case)
        raise TooFewGroups("too few")

    found = answers({"refuses": refuses}, suite()[:2])["refuses"]
    assert {(case.number, case.name, case.twin) for case in seen} == {(0, "", "")}
    assert {(s.answer.verdict, s.refusal) for s in found} == {("abstain", "TooFewGroups: too few")}


def test_strange_answers_and_bugs_of_rules_are_not_swallowed() -> None:
    with pytest.raises(BadParameter):
        score(lambda case: {Cell(Place("elsewhere"), "B"): Answer("used")}, suite()[:1])
    with pytest.raises(BadParameter):
        score(lambda case: {cell: Answer("perhaps") for cell in case.cells}, suite()[:1])  # type: ignore[arg-type]
    with pytest.raises(ZeroDivisionError):
        score(lambda case: {cell: Answer("used", score=1 / 0) for cell in case.cells}, suite()[:1])


def test_a_scorecard_is_json_that_holds_every_rule_and_cell(tmp_path: Path) -> None:
    card = Scorecard(answers({"oracle": oracle_rule(suite()), "silent": lambda case: {}}, suite()))
    card.write(tmp_path / "scorecard.json")
    found = json.loads((tmp_path / "scorecard.json").read_text())
    assert set(found["rules"]) == {"oracle", "silent"}
    assert {
        "precision_used",
        "recall_used",
        "precision_unused",
        "recall_unused",
        "abstention",
        "fpr",
        "fpr_low",
        "fpr_high",
        "mf_slope",
        "seconds",
    } <= set(found["rules"]["oracle"])
    assert found["rules"]["oracle"]["recall_used"] == 1.0
    assert len(found["cells"]) == 13
    assert {cell["answers"]["oracle"]["verdict"] for cell in found["cells"]} == {"used", "unused", "not_decodable"}
    assert "0.05 correlated" in found["by_case"]
    assert found["by_sub_label"]["subspace"]["silent"]["recall_used"] == 0.0
    assert card.table().splitlines()[0].split()[0] == "rule"
    assert card.table(lambda s: s.name).count("oracle") == 6


def test_suites_are_made_anew_by_frozen_seeds() -> None:
    def tier(seed: int) -> Iterator[tuple[Case, Truth]]:
        return tier0.cases(seed, knobs=SMALL, numbers=(1,))

    both = Suite((0, 1), {0: tier})
    assert [case.instrument.n_rows for case, _ in vectors(replace(SMALL, n=300), seeds=[0], numbers=[4])] == [300, 300]
    assert [case.key for case, _ in both] == [f"0.01.{t}.{s}" for s in (0, 1) for t in ("unused", "used")]
    assert [case.key for case, _ in both] == [case.key for case, _ in both]
    assert development().seeds == tuple(range(20))
    with pytest.raises(BadParameter):
        development(seeds=[20])
    with pytest.raises(BadParameter):
        development(tiers=[7])
    case, _ = next(iter(held_out_suite("a test, no release", tiers=[0], draws=1)))
    assert case.seed not in development().seeds


def case_of(number: int, twin: str) -> Case:
    return next(case for case, _ in suite() if (case.number, case.twin) == (number, twin))


def verdict(rule: object, case: Case) -> str:
    (found,) = rule(case).values()  # type: ignore[operator]
    return str(found.verdict)


@pytest.mark.parametrize("eraser", [Leace(), Inlp()], ids=["leace", "inlp"])
def test_erasure_calls_a_read_code_used_and_is_misled_by_a_correlated_one(eraser: Intervention) -> None:
    rule = baselines.Amnesic(eraser)
    assert verdict(rule, case_of(1, "used")) == "used"
    assert verdict(rule, case_of(1, "unused")) == "unused"
    plain = case_of(5, "unused")
    assert verdict(rule, plain) == "used"


def test_attribution_estimates_the_share_of_a_linear_read_and_is_nothing_where_nothing_is_read() -> None:
    used, unused = case_of(1, "used"), case_of(1, "unused")
    value, effect = baselines.attribution(used, used.cells[0])
    assert value > 0.3
    assert effect == pytest.approx(1.0, abs=0.1)
    assert baselines.attribution(unused, unused.cells[0])[0] < 0.1
    copies = case_of(11, "unused")
    assert baselines.attribution(copies, copies.cells[1])[0] == 0.0


def test_probe_accuracy_cannot_tell_twins_apart() -> None:
    used, unused = case_of(1, "used"), case_of(1, "unused")
    one, other = (baselines.accuracy_above_chance(case, case.cells[0])[0] for case in (used, unused))
    assert one == other > 0.8
    absent = case_of(2, "unused")
    assert baselines.accuracy_above_chance(absent, absent.cells[0])[0] < 0.15
    for number in (18, 19):
        assert baselines.accuracy_above_chance(case_of(number, "used"), case_of(number, "used").cells[0])[0] > 0.5


def test_a_fitted_direction_finds_a_read_code_and_is_silent_where_nothing_is_read() -> None:
    rule = baselines.FittedDirection()
    (found,) = rule(case_of(1, "used")).values()
    assert found.verdict == "used"
    assert found.effect > 0.5
    copies = case_of(11, "unused")
    assert rule(copies)[copies.cells[1]].verdict == "unused"


def test_thresholds_are_those_that_part_the_labels_best() -> None:
    values, used = np.array([0.1, 0.2, 0.7, 0.3, 0.8, 0.9]), np.array([False, False, False, True, True, True])
    assert baselines.best_threshold(values, used) == pytest.approx(0.75)
    rules = baselines.field_rules(suite())
    assert set(rules) == {"probe_accuracy", "attribution_patching", "amnesic_leace", "amnesic_inlp", "fitted_direction"}
    fitted = rules["attribution_patching"]
    assert isinstance(fitted, baselines.Threshold)
    found = score(fitted, suite())
    assert found.recall_used is not None
    assert found.recall_used > 0.8
    silent = replace(fitted, threshold=math.inf)
    assert score(silent, suite()).fpr == 0.0


@pytest.mark.slow
def test_the_command_writes_a_card_of_the_protocol_and_prints_its_rates(tmp_path: Path) -> None:
    card = tmp_path / "cards" / "card.json"
    command = ["plantbench", "--tier", "0", "--seeds", "1", "--rule", "protocol", "--json", str(card), "--quiet"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "precision used" in result.output
    told = json.loads(card.read_text())["rules"]["protocol"]
    wanted = {
        "precision_used",
        "recall_used",
        "precision_unused",
        "recall_unused",
        "abstention",
        "fpr",
        "fpr_low",
        "fpr_high",
        "mf_slope",
        "seconds",
    }
    assert wanted <= set(told)
    assert told["precision_used"] >= 0.9 and told["recall_used"] >= 0.9 and told["precision_unused"] >= 0.9
    assert CliRunner().invoke(app, [*command[:2], "7", *command[3:]]).exit_code == 1


def test_power_holds_a_rule_against_the_truth_at_every_value_of_a_knob() -> None:
    """Two rules: one that says "used" of all, and one that does so where rows are many."""

    def eager(case: Case) -> dict[Cell, Answer]:
        return dict.fromkeys(case.cells, Answer("used"))

    def patient(case: Case) -> dict[Cell, Answer]:
        return eager(case) if len(case.groups) >= 2000 else {}

    curve = power_curve({"eager": eager, "patient": patient}, "n", seeds=[0])
    assert list(curve) == [250, 500, 1000, 2000, 4000, 8000]
    for value, row in curve.items():
        assert (row["eager"].used, row["eager"].recall_used, row["eager"].fpr) == (3, 1.0, 1.0)
        assert row["patient"].recall_used == (1.0 if value >= 2000 else 0.0)
    card = json.loads(Scorecard({}, {"n": curve}).to_json())
    assert [point["value"] for point in card["power"]["n"]] == list(curve)
    assert card["power"]["n"][0]["rules"]["patient"]["abstention"] == 1.0
    *_, found, wrong = Scorecard({}, {"n": curve}).plot().to_dict()["concat"]
    for chart, share in ((found, "recall_used"), (wrong, "fpr")):
        drawn = {(row["series"], row["x"]): row["value"] for row in chart["data"]["values"]}
        assert drawn == {(rule, n): getattr(r, share) for n, row in curve.items() for rule, r in row.items()}
    assert power_table("n", curve).splitlines()[2].split() == [
        "250",
        "3,",
        "3",
        "1.00",
        "/",
        "1.00",
        "0.00",
        "/",
        "0.00",
    ]
    with pytest.raises(UnknownName):
        power_curve({"eager": eager}, "rows", seeds=[0])
    with pytest.raises(BadParameter):
        run(tiers=[0], power=["rows"])


@pytest.mark.parametrize("knob", SWEEPS)
def test_every_value_of_a_knob_is_one_of_it(knob: str) -> None:
    sweep = SWEEPS[knob]
    drawn = [sweep.knobs(value) for value in sweep.values]
    assert len(set(drawn)) == len(sweep.values)
    changed = {name for one in drawn for name, value in vars(one).items() if value != vars(Knobs())[name]}
    assert len(changed) == 1
