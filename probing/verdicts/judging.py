"""Turns measured effects of edits into verdicts: first corrects for multiple tests, and then applies the criteria at
each place.

A cell is one property at one place. A deal is one random division of the groups outside the measured fold into two
parts: one to fit the edit on, one to fit the contrast on (the direction of the output along which the effect is
measured).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from scipy.special import ndtr, ndtri

from probing.errors import InputError
from probing.results.use import Decodability, EditEffect, UseCell, UseResult, read_use_results
from probing.statistics.multiplicity import benjamini_hochberg
from probing.verdicts.verdict import (
    Criteria,
    UseRun,
    Verdict,
    Word,
    bound_said,
    effect_said,
    together_said,
    undecided_said,
)

_Z90 = float(ndtri(0.95))


def turning_used(edit: EditEffect, by: str, level: float, criteria: Criteria) -> tuple[Word, str] | None:
    """Return "inconclusive" with its reason if the edit's effect depends on the random assignment of the fitting rows:
    too few other assignments show it, or one bounds it below ε. Return None otherwise, and always for `U`.

    Args:
        edit: measured effect of the edit.
        by: statistic that showed the effect: `τ`, or `U`, which does not depend on the fitted contrast.
        level: level of adjusted p values.
        criteria: thresholds: ε, and the share of assignments that must agree.
    """
    if by == "U":
        return None
    claims = _claims(edit, level, criteria)
    what = f"an effect of at least {criteria.epsilon} SD"
    return _turning(len(claims), claims.count("used"), claims.count("bounded"), what, "bounded below it", criteria)


def turning_bounded(cell: UseCell, level: float, criteria: Criteria) -> tuple[Word, str] | None:
    """Return "inconclusive" with its reason if the absence of an effect depends on the random assignment of the fitting
    rows: too few other assignments bound the effects of both edits below ε, or one shows an effect of ε. Return None
    otherwise.
    """
    edits = [edit for edit in (cell.subspace, cell.whole) if edit.deals]
    both = list(zip(*(_claims(edit, level, criteria) for edit in edits), strict=True))
    same, opposite = sum(set(claims) == {"bounded"} for claims in both), sum("used" in claims for claims in both)
    what = f"both effects below {criteria.epsilon} SD"
    return _turning(len(both), same, opposite, what, "shown to reach it", criteria)


def _turning(n: int, same: int, opposite: int, what: str, other: str, criteria: Criteria) -> tuple[Word, str] | None:
    if not n or (not opposite and same + 1 >= criteria.least_agreeing * (n + 1)):
        return None
    also = f", and in {opposite} an effect is {other}" if opposite else ""
    return Word.INCONCLUSIVE, (
        f"Inconclusive: with the rows that fit the edit dealt out in {n + 1} ways, {same + 1} find {what}{also}."
    )


def _claims(edit: EditEffect, level: float, criteria: Criteria) -> list[str]:
    """Return `used`, `bounded` or nothing for each deal: with the error of the first, and its adjustment for many
    tests.
    """
    error, found = (edit.effect_size_high90 - edit.effect_size_low90) / 2 / _Z90, []
    family = max(1.0, edit.p_adjusted / max(edit.p, 1e-300))
    for es in map(abs, edit.deals):
        shown = error > 0 and 2 * float(ndtr(-es / error)) * family <= level
        reaches, below = shown and es >= criteria.epsilon, es + _Z90 * error < criteria.epsilon
        found.append("used" if reaches else "bounded" if below else "")
    return found


@dataclass(frozen=True)
class Levels:
    """Holds the results of the corrections for multiple tests for one property at one place (a cell).

    Attributes:
        discovery: level at or below which an adjusted p value counts as a discovery. It is 0, so that no place can be
            one, if the first step of the correction, which tests the smallest adjusted p value of each property, did
            not select this property.
        equivalent: whether the effect is shown to be below ε, after correction over all cells.
    """

    discovery: float
    equivalent: bool


def judge(results: Sequence[UseResult], criteria: Criteria | None = None) -> list[Verdict]:
    """Return one verdict per property, place and behaviour. Without `criteria`, each result is judged by the criteria
    stored with it. `results` are all results that the corrections for multiple tests are to cover.

    Multiple tests are corrected for in two steps. All places of one property and behaviour form a family. The smallest
    adjusted p values of the families of a model go through Benjamini-Hochberg at level q, which selects families; in
    these, each place is tested at the level q · (selected families / all families). The p values of equivalence tests
    go through a Benjamini-Hochberg procedure of their own, over all properties and places of the model.

    References:
        Benjamini and Bogomolov 2014, Selective inference on multiple families of hypotheses, §3.
    """
    by_model: dict[str, list[int]] = {}
    for place, result in enumerate(results):
        by_model.setdefault(result.model, []).append(place)
    found: dict[int, list[Verdict]] = {}
    for places in by_model.values():
        found |= dict(zip(places, _judged([results[place] for place in places], criteria), strict=True))
    return [verdict for place in range(len(results)) for verdict in found[place]]


def _judged(results: Sequence[UseResult], criteria: Criteria | None) -> list[list[Verdict]]:
    """Return the verdicts of each result of one model."""
    edited = [result for result in results if not result.unmatched]
    families = benjamini_hochberg([result.family_p for result in edited])
    family = iter(families)
    cells = [cell for result in results for cell in result.cells]
    equivalence = iter(benjamini_hochberg([equivalence_p(cell) for cell in cells]))
    verdicts = []
    for result in results:
        own = criteria or _criteria_of(result)
        if result.unmatched:
            verdicts.append([_unmatched(result, place, own) for place in result.decodability])
            continue
        n_selected = sum(p <= own.q for p in families)
        level = own.q * n_selected / len(edited) if next(family) <= own.q else 0.0
        verdicts.append([decide(result, c, Levels(level, next(equivalence) <= own.q), own) for c in result.cells])
    return verdicts


def _criteria_of(result: UseResult) -> Criteria:
    """Return the criteria that a result was judged by; names that only other versions have are left out."""
    known = {field.name for field in fields(Criteria)}
    return Criteria(**{name: value for name, value in result.settings.get("criteria", {}).items() if name in known})


def read_use_run(folder: str | Path) -> UseRun:
    """Read the results that runs wrote into a folder, and return them with verdicts judged anew, by the criteria that
    each was judged by.

    Raises:
        InputError: there is no such file, or `write_use_run` did not write it.
    """
    file = Path(folder) / "use.jsonl"
    if not file.is_file():
        raise InputError(
            "no use results here",
            needed="use.jsonl",
            found="nothing",
            where=str(folder),
            next_step="run `probing use` with --to this folder",
        )
    results = read_use_results(file)
    return UseRun(tuple(results), tuple(judge(results)))


def equivalence_p(cell: UseCell) -> float:
    """Return the larger of the equivalence p values of the two edits, since both effects must be shown to be
    below ε.
    """
    return max(cell.subspace.equivalence_p, cell.whole.equivalence_p)


def decide(result: UseResult, cell: UseCell, levels: Levels, criteria: Criteria) -> Verdict:
    """Return the verdict on one cell (the measurements of one property at one place), by the first rule of the protocol
    in docs/use.md that applies.

    Args:
        result: measurements of the property at all places.
        cell: measurements at this place.
        levels: levels of the tests after correction for multiple tests.
        criteria: thresholds of the protocol.
    """
    gate = result.decodability.get(cell.place)
    sub, whole = _found(cell.subspace, levels, criteria), _found(cell.whole, levels, criteria)
    flags = _flags(result, cell, levels, criteria)
    word, reason = _word(result, cell, gate, sub, whole, levels, criteria, flags)
    if word is Word.NOT_DECODABLE:
        flags = ("site effect",) if whole else ()
    return _verdict(result, (cell.site, cell.position), word, flags, reason, gate, cell, criteria)


def untested(task: str, model: str, site: str, position: str, gate: Decodability) -> Verdict:
    """Return the verdict for a place where nothing was edited."""
    word = Word.NOT_TESTED if gate.passes else Word.NOT_DECODABLE
    reason = f"Probes reach {gate.accuracy:.3f}; no edit was measured."
    return Verdict(task, "", model, site, position, word, (), reason, _OVERTURNED[word], gate, None)


def _unmatched(result: UseResult, place: str, criteria: Criteria) -> Verdict:
    """Return the verdict at a place of a property whose rows could not be matched, so that nothing was edited."""
    gate, (site, _, position) = result.decodability[place], place.partition("@")
    if gate.passes:
        word, reason = Word.INCONCLUSIVE, f"Inconclusive: {result.unmatched}."
    else:
        word, reason = Word.NOT_DECODABLE, "Neither a linear nor an MLP probe recovers it on held-out rows."
    return _verdict(result, (site, position), word, (), reason, gate, None, criteria)


def _verdict(
    result: UseResult,
    place: tuple[str, str],
    word: Word,
    flags: tuple[str, ...],
    reason: str,
    gate: Decodability | None,
    cell: UseCell | None,
    criteria: Criteria,
) -> Verdict:
    """Return the verdict of a result at a place (site, position), with what the result says of its rows."""
    site, position = place
    return Verdict(
        task=result.task,
        behaviour=result.behaviour,
        model=result.model,
        site=site,
        position=position,
        word=word,
        flags=flags,
        reason=reason,
        overturned_by=_OVERTURNED[word],
        decodability=gate,
        evidence=cell,
        coverage=result.coverage,
        n_rows=result.n_rows,
        epsilon=criteria.epsilon,
        unit=result.unit,
    )


def _word(
    result: UseResult,
    cell: UseCell,
    gate: Decodability | None,
    sub: str,
    whole: str,
    levels: Levels,
    criteria: Criteria,
    flags: Sequence[str],
) -> tuple[Word, str]:
    if gate is None or not gate.passes:
        return Word.NOT_DECODABLE, "Neither a linear nor an MLP probe recovers it on held-out rows."
    weak = _too_weak(result, criteria)
    if weak:
        return Word.INCONCLUSIVE, weak
    incomplete = cell.completeness < criteria.least_completeness
    if sub and "exceeds site" not in flags:
        said = effect_said("The class-mean swap", cell.subspace, sub, result, criteria)
        return turning_used(cell.subspace, sub, levels.discovery, criteria) or (Word.USED_SUBSPACE, said)
    if whole:
        said = effect_said("Interchange of the whole state", cell.whole, whole, result, criteria)
        return turning_used(cell.whole, whole, levels.discovery, criteria) or (Word.USED_SITE, said)
    if not levels.equivalent or incomplete:
        return Word.INCONCLUSIVE, undecided_said(cell, levels.discovery, criteria, incomplete=incomplete)
    said = bound_said(cell, equivalence_p(cell), criteria)
    turning = turning_bounded(cell, levels.discovery, criteria)
    if turning is not None or cell.joint is None or not _found(cell.joint, levels, criteria):
        return turning or (Word.NO_MATERIAL_USE, said)
    # Where another position does it alone, that all of them together do tells nothing of this one.
    alone = _used_alone(result, cell, levels, criteria)
    together = together_said(cell, cell.joint, criteria, alone=alone)
    return Word.NO_MATERIAL_USE if alone else Word.NOT_ALONE, f"{said} {together}"


def _used_alone(result: UseResult, cell: UseCell, levels: Levels, criteria: Criteria) -> bool:
    """Return whether an edit of another position of the cell's site moves the output by itself."""
    others = (one for one in result.cells if one.site == cell.site and one.position != cell.position)
    return any(_found(edit, levels, criteria) for one in others for edit in (one.subspace, one.whole))


def _too_weak(result: UseResult, criteria: Criteria) -> str:
    if result.coverage < criteria.least_coverage:
        return (
            f"Inconclusive: {result.coverage:.2f} of the rows have counterparts, {criteria.least_coverage} are needed."
        )
    if result.least_groups < criteria.least_groups:
        return (
            f"Inconclusive: the rows of the rarest class are spread over groups as over {result.least_groups:.0f} even "
            f"ones, {criteria.least_groups} are needed."
        )
    if not result.is_matched:
        return (
            f"Inconclusive: within strata {' and '.join(result.covariates)} still go with the property, so that an "
            "effect may be theirs; twins, or fewer or coarser covariates, would tell."
        )
    if result.false_positives is not None and result.false_positives[1] > 0.05:
        rate, low, high, n = result.false_positives
        return (
            f"Inconclusive: miscalibrated, {rate:.2f} [{low:.2f}, {high:.2f}] of {n} random properties were discovered."
        )
    return ""


def _found(edit: EditEffect, levels: Levels, criteria: Criteria) -> str:
    """Return `τ` or `U` if the edit is a discovery of at least ε, else ""."""
    if edit.p_adjusted <= levels.discovery and abs(edit.effect_size) >= criteria.epsilon:
        return "τ"
    return (
        "U" if edit.whole_effect_p_adjusted <= levels.discovery and edit.whole_effect_size >= criteria.epsilon else ""
    )


def _flags(result: UseResult, cell: UseCell, levels: Levels, criteria: Criteria) -> tuple[str, ...]:
    sub, whole, epsilon = cell.subspace, cell.whole, criteria.epsilon
    found = _found(sub, levels, criteria) or _found(whole, levels, criteria)
    discovered = (
        min(sub.p_adjusted, sub.whole_effect_p_adjusted, whole.p_adjusted, whole.whole_effect_p_adjusted)
        <= levels.discovery
    )
    held = cell.frozen_low90 is not None and cell.frozen_high90 is not None
    flags = {
        "norm-mediated": bool(found)
        and held
        and -epsilon < (cell.frozen_low90 or 0)
        and (cell.frozen_high90 or 0) < epsilon,
        "exceeds site": cell.exceeds_low > 0 and abs(sub.effect_size) >= epsilon,
        "off-contrast": found == "U" and result.dimensions != 1,
        "differs between strata": found == "U" and result.dimensions == 1 and result.n_strata > 1,
        "differs between pairs of classes": found == "U" and result.dimensions == 1 and result.n_classes > 2,
        "off-distribution": cell.off_distribution > criteria.most_off_distribution,
        "incomplete edit": cell.completeness < criteria.least_completeness,
        "redundant": cell.joint_over_largest is not None and cell.joint_over_largest > 1.25,
        "weak behaviour": bool(sub.spread) and sub.total < 2 * epsilon * sub.spread,
        "non-zero": discovered and not found,
    }
    return tuple(name for name, holds in flags.items() if holds)


_OVERTURNED = {
    Word.NOT_DECODABLE: "Another family of probes, or more rows, that recover it would overturn this.",
    Word.NOT_TESTED: "An intervention is needed before anything is said of use.",
    Word.INCONCLUSIVE: "More rows or groups, or better matched ones, would decide it.",
    Word.USED_SUBSPACE: "Above all an unlabelled property that goes with this one within strata would overturn it: "
    "label it and give it as a covariate.",
    Word.USED_SITE: "Above all an unlabelled property that donors differ in as well would overturn it; a subspace that "
    "carries it would sharpen it.",
    Word.NOT_ALONE: "An edit of this place alone that moves the output would overturn it; which of the places suffice "
    "together is not told.",
    Word.NO_MATERIAL_USE: "A behaviour that depends on it, effects that cancel within a stratum, or another site "
    "would overturn it.",
}
