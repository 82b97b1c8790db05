"""Scores rules: a rule answers for every property and place (cell) of a case, and its answers are compared with the
truth.

A rule is any function `rule(case) -> {cell: Answer}`; it is given cases without their name and twin (`Case.blind`).
Cells in the band between used and unused are not scored. An abstention counts as a miss, never as a false claim. For a
cell that is not decodable, and thus unused, both `not_decodable` and `unused` are right; for a decodable cell
`not_decodable` is a miss, which is also counted separately.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from probing.errors import BadParameter, ProbingError, unknown_name
from probing.plantbench.case import Answer, Case, Cell, CellTruth, Certificate, Said, Truth
from probing.plantbench.certifying import USED
from probing.plantbench.knobs import Knobs
from probing.plantbench.suite import vectors
from probing.use.nulls import rate_interval

Rule = Callable[[Case], Mapping[Cell, Answer]]
VERDICTS = ("used", "unused", "not_decodable", "abstain")
MATERIAL = 1.25 * USED  # S from which "unused" counts as an error that intervals are to exclude


@dataclass(frozen=True)
class Scored:
    """Holds one cell, its truth and the answer of one rule.

    Attributes:
        case: key of the case.
        tier, number, name: tier, number and name of the case.
        cell: names of the property and the place.
        truth: truth about the cell.
        answer: answer of the rule.
        seconds: the rule's time for the case, divided by its number of cells.
        refusal: why the rule gave no answer; "" if it did.
        joint: certificate of all positions of the site together; None if the site has only one position.
    """

    case: str
    tier: int
    number: int
    name: str
    cell: str
    truth: CellTruth
    answer: Answer
    seconds: float
    refusal: str = ""
    joint: Certificate | None = None

    @property
    def label(self) -> str:
        """The label of the cell's certificate: `used`, `unused`, or `band` for cells between the two."""
        return self.truth.certificate.label


@dataclass(frozen=True)
class Rates:
    """Holds how often one rule is right and wrong over cells (a property at a place of a case). A share is None if
    there is nothing to count; all intervals are 95 % Clopper-Pearson intervals.

    Attributes:
        cells: number of scored cells, which are those outside the band between used and unused.
        used: number of scored cells that are used.
        unused: number of scored cells that are unused.
        precision_used, recall_used, f1_used: precision, recall and F1 of the answer "used".
        precision_unused, recall_unused, f1_unused: the same for the answer "unused" (or "not decodable", where it is
            right).
        abstention: share of the scored cells without an answer.
        false_used: number of unused cells that are called used.
        fpr: share of the unused cells that are called used.
        fpr_low, fpr_high: ends of its interval.
        false_unused: share of the used cells that are called unused.
        false_unused_low, false_unused_high: ends of its interval.
        material: number of used cells with an effect S of at least 0.125 SD.
        material_unused: number of these that are called unused.
        material_rate: share of these that are called unused.
        material_low, material_high: ends of its interval.
        band: number of cells in the band.
        band_used, band_unused: numbers of cells in the band that are called used, and unused.
        joint_recall: of places that are unused alone but used together with other positions (none of which is used
            alone), the share that the rule calls used together.
        joint_fpr: of unused places whose site is unused with all positions together, the share that the rule calls used
            together.
        false_not_decodable: share of the decodable cells that are called not decodable.
        mf_slope: least-squares slope through 0 of the estimated mediated fraction on the true one, over cells that have
            both.
        seconds: time that the rule took on all cells.
    """

    cells: int
    used: int
    unused: int
    precision_used: float | None
    recall_used: float | None
    f1_used: float | None
    precision_unused: float | None
    recall_unused: float | None
    f1_unused: float | None
    abstention: float | None
    false_used: int
    fpr: float | None
    fpr_low: float
    fpr_high: float
    false_unused: float | None
    false_unused_low: float
    false_unused_high: float
    material: int
    material_unused: int
    material_rate: float | None
    material_low: float
    material_high: float
    band: int
    band_used: int
    band_unused: int
    joint_recall: float | None
    joint_fpr: float | None
    false_not_decodable: float | None
    mf_slope: float | None
    seconds: float


def answers(
    rules: Mapping[str, Rule],
    suite: Iterable[tuple[Case, Truth]],
    *,
    tiers: Mapping[str, Collection[int]] | None = None,
) -> dict[str, list[Scored]]:
    """Ask every rule about every case and return, by name of the rule, the scored cells; each case is built once for
    all rules.

    Args:
        rules: rules by name.
        suite: cases with their truth.
        tiers: by name of the rule, the tiers that it is asked about; rules that are not named are asked about all
            tiers.

    A rule that raises a `ProbingError` abstains on the case; any other exception is passed on.

    Raises:
        BadParameter: a rule answers with an unknown verdict, or about cells that the case does not have.
    """
    found: dict[str, list[Scored]] = {name: [] for name in rules}
    for case, truth in suite:
        for name, rule in rules.items():
            if tiers is None or case.tier in tiers.get(name, (case.tier,)):
                found[name] += _answered(name, rule, case, truth)
    return found


def score(rule: Rule, suite: Iterable[tuple[Case, Truth]]) -> Rates:
    """Return how often one rule is right and wrong over a suite, an iterable of pairs of a case and its truth.

    Example:
        >>> from probing.plantbench.suite import development
        >>> rates = score(lambda case: {}, development(seeds=[0], tiers=[0]))
        >>> rates.abstention, rates.recall_used, rates.fpr
        (1.0, 0.0, 0.0)
    """
    return rates(answers({"rule": rule}, suite)["rule"])


def rates(scored: Sequence[Scored]) -> Rates:
    """Return how often one rule is right and wrong over these cells. Cells in the band between used and unused are
    counted in `band`, `band_used` and `band_unused` only.
    """
    told, band = [s for s in scored if s.label != "band"], [s for s in scored if s.label == "band"]
    used = [s for s in told if s.label == "used"]
    unused = [s for s in told if s.label == "unused"]
    decodable = [s for s in told if s.truth.decodable]
    hits = len(_saying(used, "used"))
    absent = sum(not s.truth.decodable for s in _saying(unused, "not_decodable"))
    rejections = len(_saying(unused, "unused")) + absent
    false_used, false_unused = len(_saying(unused, "used")), len(_saying(used, "unused"))
    low, high = rate_interval(false_used, len(unused))
    miss_low, miss_high = rate_interval(false_unused, len(used))
    material = [s for s in used if s.truth.certificate.s >= MATERIAL]
    material_unused = len(_saying(material, "unused"))
    material_low, material_high = rate_interval(material_unused, len(material))
    alone = {_site(s) for s in scored if s.label != "unused"}
    only_together = [s for s in unused if s.joint is not None and s.joint.label == "used" and _site(s) not in alone]
    never = [s for s in unused if s.joint is not None and s.joint.label == "unused"]
    precision, recall = _share(hits, hits + false_used), _share(hits, len(used))
    of_unused = _share(rejections, rejections + false_unused), _share(rejections, len(unused))
    return Rates(
        cells=len(told),
        used=len(used),
        unused=len(unused),
        precision_used=precision,
        recall_used=recall,
        f1_used=_harmonic(precision, recall),
        precision_unused=of_unused[0],
        recall_unused=of_unused[1],
        f1_unused=_harmonic(*of_unused),
        abstention=_share(len(_saying(told, "abstain")), len(told)),
        false_used=false_used,
        fpr=_share(false_used, len(unused)),
        fpr_low=low,
        fpr_high=high,
        false_unused=_share(false_unused, len(used)),
        false_unused_low=miss_low,
        false_unused_high=miss_high,
        material=len(material),
        material_unused=material_unused,
        material_rate=_share(material_unused, len(material)),
        material_low=material_low,
        material_high=material_high,
        band=len(band),
        band_used=len(_saying(band, "used")),
        band_unused=len(_saying(band, "unused")),
        joint_recall=_share(_together(only_together), len(only_together)),
        joint_fpr=_share(_together(never), len(never)),
        false_not_decodable=_share(len(_saying(decodable, "not_decodable")), len(decodable)),
        mf_slope=_mf_slope(told),
        seconds=sum(s.seconds for s in scored),
    )


def oracle_rule(suite: Iterable[tuple[Case, Truth]]) -> Rule:
    """Return a rule that answers with the truth about the cases of `suite`, to show what a perfect score looks like."""
    known = {_key(case): truth for case, truth in suite}

    def rule(case: Case) -> dict[Cell, Answer]:
        truth = known[_key(case)]
        return {cell: _true_answer(t, truth.joint(cell)) for cell, t in truth.cells.items()}

    return rule


def _key(case: Case) -> int:
    return hash((case.instrument.clean().tobytes(), case.cells))


def _true_answer(truth: CellTruth, joint: Certificate | None) -> Answer:
    c = truth.certificate
    effect = float("nan") if c.mf is None else c.mf
    together: Literal["used", "unused", ""] = "" if joint is None or joint.label == "band" else joint.label
    if c.label == "band":
        return Answer("abstain", together=together)
    if c.label == "used":
        return Answer("used", score=c.s, effect=effect, together=together)
    verdict: Said = "unused" if truth.decodable else "not_decodable"
    return Answer(verdict, score=c.s, effect=effect, together=together)


def _answered(name: str, rule: Rule, case: Case, truth: Truth) -> list[Scored]:
    started, refusal, said = time.perf_counter(), "", dict[Cell, Answer]()
    try:
        said = dict(rule(case.blind()))
    except ProbingError as error:
        refusal = f"{type(error).__name__}: {error.message}"
    seconds = (time.perf_counter() - started) / len(case.cells)
    strange = [str(cell) for cell in said if cell not in case.cells]
    strange += [a.verdict for a in said.values() if a.verdict not in VERDICTS]
    if strange:
        raise BadParameter(
            f"rule {name} answers strangely",
            needed=f"one of {VERDICTS} for cells of the case",
            found=", ".join(strange),
            where=case.key,
        )
    return [
        Scored(
            case.key,
            case.tier,
            case.number,
            case.name,
            str(cell),
            truth.cells[cell],
            said.get(cell, Answer("abstain")),
            seconds,
            refusal,
            truth.joint(cell),
        )
        for cell in case.cells
    ]


def _site(s: Scored) -> tuple[str, str]:
    return s.case, s.cell.split("@")[0]


def _saying(scored: Sequence[Scored], verdict: str) -> list[Scored]:
    return [s for s in scored if s.answer.verdict == verdict]


def _together(scored: Sequence[Scored]) -> int:
    return sum(s.answer.together == "used" for s in scored)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _harmonic(precision: float | None, recall: float | None) -> float | None:
    if precision is None or recall is None:
        return None
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _mf_slope(scored: Sequence[Scored]) -> float | None:
    both = [(s.answer.effect, s.truth.certificate.mf) for s in scored if math.isfinite(s.answer.effect)]
    pairs = [(estimate, mf) for estimate, mf in both if mf is not None]
    total = sum(mf * mf for _, mf in pairs)
    return sum(estimate * mf for estimate, mf in pairs) / total if total > 0 else None


@dataclass(frozen=True)
class Sweep:
    """Specifies which values of one knob (a setting of the generator) of tier 0 are run.

    Attributes:
        meaning: meaning of the knob in a few words.
        values: values of the knob.
        numbers: numbers of the cases that are run.
        knobs: function that returns the knobs for a value.
    """

    meaning: str
    values: tuple[float, ...]
    numbers: tuple[int, ...]
    knobs: Callable[[float], Knobs]


Curve = Mapping[float, Mapping[str, Rates]]
SWEEPS: Mapping[str, Sweep] = MappingProxyType(
    {
        "n": Sweep("rows", (250, 500, 1000, 2000, 4000, 8000), (1, 5, 8), lambda v: Knobs(n=int(v))),
        "gain": Sweep("of B, as a share of A's and C's", (0.02, 0.05, 0.1, 0.2, 0.5), (8,), lambda v: Knobs(weak=v)),
        "rho": Sweep("correlation with A", (0.0, 0.5, 0.8, 0.9, 0.95), (5,), lambda v: Knobs(rhos=(v,))),
        "effect": Sweep(
            "of B, in units of ε", (1.25, 1.6, 2.0, 3.0), (35,), lambda v: Knobs(multiples=(*Knobs().multiples[:3], v))
        ),
        "classes": Sweep(
            "of B, even and Zipf", (3, 4, 6, 10, 17), (23, 24), lambda v: Knobs(many=(int(v), *Knobs().many[1:]))
        ),
        "width": Sweep("width of the states", (48, 64, 128, 256, 512), (1, 5, 8), lambda v: Knobs(width=int(v))),
    }
)


def power_curve(rules: Mapping[str, Rule], knob: str, *, seeds: Sequence[int]) -> Curve:
    """Return, by value of a knob and by name of the rule, the rates of the rule; all other knobs have their development
    values.

    Args:
        rules: rules by name.
        knob: name of a knob in `SWEEPS`.
        seeds: seeds of the cases.

    Raises:
        UnknownName: there is no such knob.
    """
    if knob not in SWEEPS:
        raise unknown_name("knob", knob, SWEEPS)
    sweep, found = SWEEPS[knob], dict[float, Mapping[str, Rates]]()
    for value in sweep.values:
        suite = vectors(sweep.knobs(value), seeds=seeds, numbers=sweep.numbers)
        found[value] = {name: rates(scored) for name, scored in answers(rules, suite).items()}
    return found


def power_table(knob: str, curve: Curve) -> str:
    """Return a text table with one line per value of a knob, from what `power_curve` returned: for each rule, the
    shares of used cells and of unused cells that it calls used.
    """
    names = list(next(iter(curve.values())))
    width = max(13, *(len(name) for name in names))
    sweep = SWEEPS[knob]
    title = f"power against {knob} ({sweep.meaning}), tier 0, cases {', '.join(map(str, sweep.numbers))}"
    lines = [f"{title}: used cells found / unused ones called used"]
    lines.append(f"{knob:>8}  {'used, unused':>12}  " + "  ".join(f"{name:>{width}}" for name in names))
    for value, row in curve.items():
        cells = next(iter(row.values()))
        shares = [f"{_power_share(one.recall_used)} / {_power_share(one.fpr)}" for one in row.values()]
        counts = f"{cells.used}, {cells.unused}"
        lines.append(f"{value:>8g}  {counts:>12}  " + "  ".join(f"{share:>{width}}" for share in shares))
    return "\n".join(lines)


def _power_share(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
