"""A methods paragraph of the interventions of one property, with the numbers of the run, and the papers to cite."""

from __future__ import annotations

from typing import Any

from probing.reporting.references import bibtex
from probing.reporting.wording import decimal, plural
from probing.results.use import UseResult, answers_said

_MARKS_LEFT = {"type": "word types, for the word type all but decides the property", "group": "groups (sentences)"}


def use_paragraph(result: UseResult) -> str:
    """Return what was done, with every setting, in sentences."""
    return " ".join(
        filter(
            None,
            (
                _question(result),
                _rows(result),
                _edits(result),
                _statistics(result),
                _nulls(result),
                _decision(result),
                _beside(result),
            ),
        )
    )


def use_names(result: UseResult) -> list[str]:
    """Return the names, as `references` knows them, of all that a measurement used."""
    used = ["interchange", "class_mean", "cross_fitting", "max_t", "families", "equivalence", "bh"]
    used += ["propensity"] if result.stratified_by.startswith("propensity") else []
    used += ["permutation"] if result.settings.get("permutations") else []
    used += ["reliability"] if any(cell.reliability is not None for cell in result.cells) else []
    return list(dict.fromkeys([*used, *(name for cell in result.cells for name in cell.comparisons)]))


def use_bibtex(result: UseResult) -> str:
    """Return the BibTeX entries of all that a measurement used."""
    return bibtex(use_names(result), always=())


def _question(result: UseResult) -> str:
    sites = list(dict.fromkeys(cell.site for cell in result.cells))
    positions = [p for p in dict.fromkeys(cell.position for cell in result.cells) if p]
    where = ", ".join(sites) if len(sites) <= 3 else f"{sites[0]} to {sites[-1]} ({len(sites)} sites)"
    at = f", at {', '.join(positions)}," if positions else ""
    pieces = f" (pieces {answers_said(result.answers)})" if result.answers else ""
    return (
        f"We asked whether {result.behaviour or 'the output'}{pieces} of {result.model or 'the model'} depends on "
        f"{result.task} through the states at {where}{at} by exchanging the property there."
    )


def _rows(result: UseResult) -> str:
    kind = f"{result.n_classes} classes" if result.n_classes else "real values"
    said = {
        "nothing": "without strata",
        "crossing": f"in {_strata(result.n_strata)} that cross the values of {', '.join(result.covariates)}",
    }.get(
        result.stratified_by,
        f"in {_strata(result.n_strata)} of the propensity of the property given {', '.join(result.covariates)}",
    )
    return (
        f"{plural(result.n_rows, 'row')} ({kind}; {100 * result.coverage:.0f} % of those labelled) have counterparts "
        f"{said}; they were split into three folds by {_MARKS_LEFT.get(result.grouped_by, result.grouped_by)}: one "
        "fits the edit, one the natural contrast of the output, one is measured, over three rotations."
    )


def _strata(number: int) -> str:
    return "1 stratum" if number == 1 else f"{number:,} strata"


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
        rate, low, high, n = result.false_positives
        parts.append(
            f"of {n} random properties of word types {decimal(rate, 2)} [{decimal(low, 2)}, {decimal(high, 2)}] were "
            "discovered"
        )
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
    beside = f"For comparison alone: {', '.join(names)}." if names else ""
    return f"{beside} Seed {seed}.".strip() if seed is not None else beside
