"""Texts on use: short words, symbols and flags of verdicts, the methods paragraph, and the papers to cite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from probing.reporting.latent_words import edit_title
from probing.reporting.methods import bibtex, sites_in_short
from probing.reporting.wording import Interval, decimal, p_value, plural, with_interval
from probing.results.models import ModelFacts
from probing.results.use import EditEffect, UseCell, UseResult, answers_said
from probing.verdicts.verdict import Verdict, Word

# On a page *decodable* is the criterion of probes: beyond the best baseline. The gate of use asks for less, that some
# probe recovers the property, whatever baselines know; so it has words of its own here.
SHORT = {
    Word.NOT_DECODABLE: "no probe recovers it",
    Word.NOT_TESTED: "not tested",
    Word.INCONCLUSIVE: "inconclusive",
    Word.USED_SUBSPACE: "used",
    Word.USED_SITE: "used (as a whole state)",
    Word.NO_MATERIAL_USE: "no material use",
    Word.NOT_ALONE: "not alone, used together",
}
_IN_FULL = {
    Word.NOT_DECODABLE: "no probe recovers the property",
    Word.NOT_TESTED: "use not tested",
    Word.INCONCLUSIVE: "use inconclusive",
    Word.USED_SUBSPACE: "used: exchanging the part of the state in which the values differ on average has an effect",
    Word.USED_SITE: "used as a whole state: only exchanging all of it has an effect, and which part carries the "
    "property is not known",
    Word.NO_MATERIAL_USE: "no material use found",
    Word.NOT_ALONE: "no material use at this place alone; together with {others} it is used",
}
MARKS = {
    Word.USED_SUBSPACE: "disc",
    Word.USED_SITE: "diamond",
    Word.NO_MATERIAL_USE: "square",
    Word.NOT_ALONE: "triangle",
    Word.INCONCLUSIVE: "cross",
    Word.NOT_DECODABLE: "dash",
    Word.NOT_TESTED: "ring",
}


def deciding(verdict: Verdict) -> EditEffect | None:
    """Return the edit whose numbers are shown: the class-mean swap, or the interchange of whole states if only the
    interchange has an effect; None if nothing was edited.
    """
    cell = verdict.evidence
    if cell is None:
        return None
    return cell.whole if verdict.word is Word.USED_SITE else cell.subspace


def adjusted_p(edit: EditEffect) -> float:
    """Return the smaller of the adjusted p values of the two statistics of an edit, the effect along the natural
    contrast (τ) and the whole effect (U), which are adjusted together.
    """
    return min(edit.p_adjusted, edit.whole_effect_p_adjusted)


def flags_said(verdict: Verdict) -> list[tuple[str, str]]:
    """Return a pair (flag, explanation with numbers) for each flag of a verdict."""
    cell = verdict.evidence
    return [(flag, _MEANING[flag](cell) if cell is not None and flag in _MEANING else "") for flag in verdict.flags]


def answers_sentence(result: UseResult) -> str:
    """Return a sentence such as `Answers as measured, with piece ids: ␣is (314) | ␣are (359).`, with text and id;
    empty if the behaviour has no answers.
    """
    return f"Answers as measured, with piece ids: {answers_said(result.answers, ids=True)}." if result.answers else ""


def doubts_of(result: UseResult) -> list[str]:
    """Return sentences on doubts about the behaviour, and on numbers that could not be measured."""
    return [*result.doubts, *(f"{cell.place}: {note}" for cell in result.cells for note in cell.notes)]


def rows_sentence(result: UseResult) -> str:
    """Return sentences on the rows that were compared, their matching, and the rate at which random properties were
    discovered.
    """
    matched = {"nothing": "not matched in other properties"}.get(
        result.stratified_by, f"matched by {result.stratified_by} of {', '.join(result.covariates)}"
    )
    calibration = ""
    if result.false_positives is not None:
        *rate, n = result.false_positives
        of = plural(n, "random property", "random properties")
        calibration = f" Of {of}, {with_interval(Interval(*rate), 2)} were discovered by the same measurement."
    left_out = f" Left out, as too rare for three folds: {', '.join(result.left_out)}." if result.left_out else ""
    return (
        f"{plural(result.n_rows, 'row')} ({100 * result.coverage:.0f} % of those with the property), {matched}, in "
        f"{plural(result.n_strata, 'stratum', 'strata')}; at least "
        f"{plural(round(result.least_groups), 'effective group')} a class.{left_out}{calibration}"
    )


def verdict_sentences(verdict: Verdict) -> str:
    """Return place, verdict, reason, the meaning of flags, numbers, and the observations that would overturn the
    verdict, in sentences.
    """
    flags = [f"Flag “{flag}”" + (f": {said}." if said else ".") for flag, said in flags_said(verdict)]
    parts = [verdict.reason, _gate_sentence(verdict), *flags, _edits_sentence(verdict), verdict.overturned_by]
    return f"{verdict.place}: {in_full(verdict)}. {' '.join(filter(None, parts))}"


def in_full(verdict: Verdict) -> str:
    """Return the verdict as a clause of the page, without the word *decodable*, which has another sense there."""
    together = verdict.evidence.together_with if verdict.evidence else ()
    return _IN_FULL[verdict.word].format(others=" and ".join(together) or "other places")


def _gate_sentence(verdict: Verdict) -> str:
    gate = verdict.decodability
    if gate is None:
        return ""
    return (
        f"Probes reach {decimal(gate.accuracy)}, {100 * max(gate.information, 0.0):.0f} % of what there is to know "
        f"(p {p_value(gate.p)})."
    )


def _edits_sentence(verdict: Verdict) -> str:
    edit, cell = deciding(verdict), verdict.evidence
    if edit is None or cell is None:
        return ""
    told = verdict.word in (Word.USED_SITE, Word.USED_SUBSPACE) and "off-contrast" not in verdict.flags
    share = "" if told or mediated(edit) is None else f"; mediated fraction {with_interval(mediated(edit), 2)}"
    alike = "" if cell.whole.alike is None else f" (less {decimal(cell.whole.alike, 2)} of states of the same value)"
    swap, whole = (with_interval(effect(one), 2) for one in (cell.subspace, cell.whole))
    return (
        f"Swap {swap} SD, whole state {whole} SD{alike}{share}; smallest effect found with 80 % probability "
        f"{decimal(edit.smallest_detectable_effect, 2)} SD. {_doses_sentence(cell)}"
    )


def _doses_sentence(cell: UseCell) -> str:
    by_dose = ", ".join(f"{decimal(effect, 2)} at {dose:g}" for dose, effect in cell.dose_curve)
    said = f"Swap by dose: {by_dose} SD; dose" if by_dose else "The swap's dose is"
    return f"{said} {cell.dose:g} was taken, completeness {decimal(cell.completeness, 2)}."


def effect(edit: EditEffect) -> Interval:
    """Return the effect of an edit with its interval, in SDs of the clean output."""
    return Interval(edit.effect_size, edit.effect_size_low, edit.effect_size_high)


def mediated(edit: EditEffect) -> Interval | None:
    """Return the mediated fraction of an edit with its interval, an end of which may be infinite; None if it is not
    defined.
    """
    if edit.mediated_fraction is None:
        return None
    return Interval(edit.mediated_fraction, edit.mediated_fraction_low, edit.mediated_fraction_high)


def _moved(cell: UseCell) -> str:
    """Return how far the output moves in any direction, by the edit that moves it most."""
    return f"the output moves by {max(cell.subspace.whole_effect_size, cell.whole.whole_effect_size):.2f} SD"


def _natural(cell: UseCell) -> str:
    """Return by how much the behaviour differs between the values without an edit, in SDs."""
    return decimal(cell.subspace.total / cell.subspace.spread if cell.subspace.spread else 0.0, 2)


_MEANING: dict[str, Callable[[UseCell], str]] = {
    "norm-mediated": lambda cell: (
        f"with the scales of later norms held, the effect lies in [{cell.frozen_low90 or 0:.2f}, "
        f"{cell.frozen_high90 or 0:.2f}] SD, inside the equivalence bound"
    ),
    "exceeds site": lambda cell: (
        f"the swap ({cell.subspace.effect_size:.2f} SD) does more than exchanging the whole state "
        f"({cell.whole.effect_size:.2f} SD), so it may wake a path that the model does not take by itself"
    ),
    "off-contrast": lambda cell: f"{_moved(cell)}, but not along the natural difference",
    "differs between strata": lambda cell: f"{_moved(cell)}, which is not seen in the mean over all rows",
    "differs between pairs of classes": lambda cell: f"{_moved(cell)}, which is not seen in the mean over all rows",
    "off-distribution": lambda cell: (
        f"{100 * cell.off_distribution:.0f} % of the swapped states lie outside 99 % of the clean ones"
    ),
    "incomplete edit": lambda cell: (
        f"after the swap at dose {cell.dose:g} probes see the goal at {cell.completeness:.2f} of what they should"
    ),
    "redundant": lambda cell: (
        f"all positions exchanged together move the output {cell.joint_over_largest or 0:.2f} times as far as the "
        "largest alone"
    ),
    "weak behaviour": lambda cell: f"the behaviour itself hardly differs between the values: by {_natural(cell)} SD",
    "non-zero": lambda cell: "an effect is shown, but none of at least the smallest effect of interest",
    "site effect": lambda cell: (
        "exchanging the whole state moves the output, though probes do not recover the property"
    ),
}


_MARKS_LEFT = {"type": "word types, for the word type all but decides the property", "group": "groups (sentences)"}


def use_paragraph(result: UseResult) -> str:
    """Return a paragraph that describes how use was measured, with every setting."""
    parts = (_question, _rows, _edits, _statistics, _nulls, _decision, _beside)
    return " ".join(filter(None, (part(result) for part in parts)))


def use_names(result: UseResult) -> list[str]:
    """Return the names of all methods that a measurement used, as `methods.keys_of` expects them."""
    used = ["interchange", "class_mean", "cross_fitting", "max_t", "families", "equivalence", "bh"]
    used += ["propensity"] if result.stratified_by.startswith("propensity") else []
    used += ["permutation"] if result.settings.get("permutations") else []
    used += ["reliability"] if any(cell.reliability is not None for cell in result.cells) else []
    return list(dict.fromkeys([*used, *(name for cell in result.cells for name in cell.comparisons)]))


def use_bibtex(result: UseResult) -> str:
    """Return the BibTeX entries of the papers that define the methods that a measurement used."""
    return bibtex(use_names(result), always=())


def _question(result: UseResult) -> str:
    sites = list(dict.fromkeys(cell.site for cell in result.cells))
    positions = [p for p in dict.fromkeys(cell.position for cell in result.cells) if p]
    at = f", at {', '.join(positions)}," if positions else ""
    pieces = f" (pieces {answers_said(result.answers)})" if result.answers else ""
    model = ModelFacts.of(result.model, result.settings.get("model_facts")).label if result.model else "the model"
    return (
        f"We asked whether {result.behaviour or 'the output'}{pieces} of {model} depends on "
        f"{result.task} through the states at {sites_in_short(sites)}{at} by exchanging the property there."
    )


def _rows(result: UseResult) -> str:
    kind = f"{result.n_classes} classes" if result.n_classes else "real values"
    strata = plural(result.n_strata, "stratum", "strata")
    said = {
        "nothing": "without strata",
        "crossing": f"in {strata} that cross the values of {', '.join(result.covariates)}",
    }.get(result.stratified_by, f"in {strata} of the propensity of the property given {', '.join(result.covariates)}")
    return (
        f"{plural(result.n_rows, 'row')} ({kind}; {100 * result.coverage:.0f} % of those labelled) have counterparts "
        f"{said}; they were split into three folds by {_MARKS_LEFT.get(result.grouped_by, result.grouped_by)}: one "
        "fits the edit, one the natural contrast of the output, one is measured, over three rotations."
    )


def _edits(result: UseResult) -> str:
    doses = sorted({cell.dose for cell in result.cells})
    told = ", ".join(f"{dose:g}" for dose in doses)
    pairs = "rows of one fold and stratum, of another group, less what states of the same value do"
    if result.twin_pairs is not None:
        pairs = f"{plural(result.twin_pairs, 'pair')} of twins that differ in the property alone among what is labelled"
    return (
        "Each state was shifted by the difference of the class means of its stratum (class-mean swap, "
        f"dose {told}, the first at which probes see at least 0.8 of the goal), and whole states were interchanged "
        f"between {pairs}."
    )


def _statistics(result: UseResult) -> str:
    most = result.settings.get("slope_rows", 0)
    derived = f", with the output's derivatives taken of about {most:,} rows a fold" if most else ""
    return (
        "Effects are shifts of the output along its natural contrast within strata, in SDs of the clean output along "
        "it, and as a share of the cross-fitted natural contrast where the lower 95 % bound of that is above 0 "
        "(mediated fraction; Fieller's interval where |t| < 5); effects off the contrast are measured by the product "
        "of the mean changes of two rotations, whose edits were fitted on different folds and measured on different "
        "ones. "
        "Standard errors sum influence values by group, over the rows that fitted, contrasted and were measured"
        f"{derived}."
    )


def _nulls(result: UseResult) -> str:
    draws = result.settings.get("permutations", 0)
    parts = ["p values are adjusted by max-T with one multiplier bootstrap over edits, statistics and places"]
    parts += [f"labels were shuffled within strata {draws:,} times at the place of the largest effect"] if draws else []
    if result.false_positives is not None:
        *rate, n = result.false_positives
        parts.append(f"of {n} random properties of word types {with_interval(Interval(*rate), 2)} were discovered")
    return f"{'; '.join(parts)}."


def _decision(result: UseResult) -> str:
    criteria: dict[str, Any] = result.settings.get("criteria", {})
    q, epsilon = criteria.get("q", 0.05), criteria.get("epsilon", result.epsilon)
    coverage, groups = criteria.get("least_coverage", 0.8), criteria.get("least_groups", 30)
    return (
        "The smallest adjusted p of a property and behaviour entered Benjamini-Hochberg over all of them "
        f"(q = {q:g}), and places of the selected ones stand at q times the selected share. A place is used if an "
        f"effect is so discovered and at least {epsilon:g} SD; no material use is found if tests of equivalence at "
        f"5 %, with their own Benjamini-Hochberg, put both edits within ±{epsilon:g} SD along the natural contrast and "
        "their whole effects, and what the fitted contrast may hide of them, below it. A claim has to stand in most of "
        "the ways to deal out the rows that fit, and in "
        f"none the opposite; with fewer than {groups} effective groups a class or {100 * coverage:.0f} % matched rows "
        f"nothing is concluded. Here the property's smallest adjusted p is {result.family_p:.3g}; the rarest class has "
        f"{plural(round(result.least_groups), 'effective group')}."
    )


def _beside(result: UseResult) -> str:
    names = list(dict.fromkeys(name for cell in result.cells for name in cell.comparisons))
    seed = result.settings.get("seed")
    beside = f"For comparison alone: {', '.join(map(edit_title, names))}." if names else ""
    return f"{beside} Seed {seed}.".strip() if seed is not None else beside
