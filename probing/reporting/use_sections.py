"""The parts of the page about use: curves, a paragraph for each verdict, and what the edits did, in tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from probing.reporting.chart import figure, mark
from probing.reporting.curves import Use, use_panels
from probing.reporting.markup import Markup, el, join, table
from probing.reporting.use_words import (
    MARKS,
    SHORT,
    adjusted_p,
    answers_sentence,
    deciding,
    doubts_of,
    flags_said,
    use_bibtex,
    use_paragraph,
)
from probing.reporting.wording import decimal, p_value, plural
from probing.results.use import EditEffect, UseCell, UseResult
from probing.verdicts.verdict import Verdict, Word

_OPEN = 16  # more verdicts than this are folded away
_BOX = {"used": "verdict yes", "decodable only": "verdict no"}

USE_READING = (
    (
        "Used",
        "replacing the part of the state that stands for the property, by that of rows that have another value "
        "and are otherwise alike, changes what the model does by at least the smallest effect of interest. It is said "
        "of one site, one behaviour and these data, and of nothing else.",
    ),
    (
        "Swap and whole state",
        "the swap moves each state by the difference of class means of its stratum (rows with "
        "the same values of the other properties); whole states are exchanged between two such rows. What only the "
        "second changes is used at the site, in a subspace that is not identified.",
    ),
    (
        "Effect and mediated fraction",
        "the effect is the shift of the output along its natural difference, in SDs of "
        "the clean output; the mediated fraction is the share of that difference which the edit brings about, told "
        "only where the difference itself is established.",
    ),
    (
        "No material use found",
        "the 90 % intervals of both edits lie within the shaded band of equivalence. Other sites "
        "may carry the property, and effects may cancel within a stratum.",
    ),
    (
        "Frozen norms",
        "the share of the effect that goes away when the scales of later norms are held at their clean "
        "values: what is left does not come from a change of length alone.",
    ),
)


def use_section(use: Use, *, anchor: str = "", whole: bool = True) -> Markup:
    """Return the section on one property and behaviour; `anchor` is given if it is a section of its own.

    Without `whole`, for pages that become too large, it has paragraphs on used places only, and no folded tables.
    """
    result = use.result
    of = f" in {result.behaviour}" * bool(result.behaviour) + f", by {result.model}" * bool(result.model)
    return join(
        [
            el("h2", {"id": anchor}, f"{result.task}: use{of}") if anchor else el("h3", None, f"Use{of}"),
            el("p", {"class": "soft"}, " ".join(filter(None, (_rows_said(use), answers_sentence(result))))),
            _doubts(result),
            figure(use_panels(use), f"{result.task}, use", _caption(use)),
            _key(use.words),
            _verdicts(use, whole=whole),
            _numbers(use),
            join([_on_states(use), _comparisons(use)] if whole else []),
            _methods(use),
        ]
    )


def _doubts(result: UseResult) -> Markup:
    found = "; ".join(doubts_of(result))
    return el("p", {"class": "verdict"}, el("strong", None, "Doubtful: "), f"{found}.") if found else Markup("")


def _rows_said(use: Use) -> str:
    result = use.result
    matched = {"nothing": "not matched in other properties"}.get(
        result.stratified_by, f"matched by {result.stratified_by} of {', '.join(result.covariates)}"
    )
    calibration = ""
    if result.false_positives is not None:
        rate, low, high, n = result.false_positives
        calibration = (
            f" Of {plural(n, 'random property')}, {decimal(rate, 2)} [{decimal(low, 2)}, {decimal(high, 2)}] were "
            "discovered by the same measurement."
        ).replace("propertys", "properties")
    left_out = f" Left out, as too rare for three folds: {', '.join(result.left_out)}." if result.left_out else ""
    return (
        f"{result.model or 'The model'}: {plural(result.n_rows, 'row')} ({100 * result.coverage:.0f} % of those with "
        f"the property), {matched}, in {plural(result.n_strata, 'stratum').replace('stratums', 'strata')}; "
        f"at least {plural(round(result.least_groups), 'effective group')} a class.{left_out}{calibration}"
    )


def _caption(use: Use) -> str:
    drawn = [
        "What probes read beside what edits do, over sites; bars are 95 % intervals.",
        f"An effect in the shaded band is of no interest: ±{use.result.epsilon:g} SD, as a share at the median place.",
        "The shape of a mark is the verdict at the place; dashed lines are exchanges of whole states.",
    ]
    if not any(cell.subspace.mediated_fraction is not None for cell in use.result.cells):
        drawn.append(
            "No mediated fraction is told: the behaviour is not shown to differ between the values of the property."
        )
    if any(cell.dose_curve for cell in use.result.cells):
        drawn.append("Doses are at the site of the largest effect, the marked one chosen on states alone.")
    return " ".join([*drawn, "Hold the pointer over a mark for its numbers."])


def _key(words: Sequence[Word]) -> Markup:
    """Return the marks and their meanings."""
    parts: list[Markup] = []
    for i, word in enumerate(words):
        x, y = 12 + 180 * (i % 3), 12 + 20 * (i // 3)
        hint = el("title", None, str(word))
        parts += [mark(MARKS[word], x, y, hint), el("text", {"class": "name", "x": x + 12, "y": y + 4}, SHORT[word])]
    height = 24 + 20 * ((len(words) - 1) // 3)
    said = "Marks: " + "; ".join(f"{MARKS[word]} {SHORT[word]}" for word in words)
    box = {"viewBox": f"0 0 560 {height}", "role": "img", "aria-label": said, "class": "chart key"}
    return el("svg", box, el("g", {"class": "entropy"}, *parts))


def _verdicts(use: Use, *, whole: bool) -> Markup:
    told = [verdict for verdict in use.verdicts if whole or verdict.word.coarse == "used"]
    left_out = len(use.verdicts) - len(told)
    said = (
        f"{plural(left_out, 'verdict')} of places that are not used, and tables of states and of other interventions, "
        "were left out to keep this page small; verdicts.parquet holds all."
    )
    note = el("p", {"class": "soft"}, said) if left_out else ""
    opened = {"open": "open"} if len(told) <= _OPEN else None
    return el("details", opened, el("summary", None, f"Verdicts: {use.summary}"), *map(_verdict, told), note)


def _verdict(verdict: Verdict) -> Markup:
    """Return the place, the verdict and its reason, the numbers, the meaning of the flags, and last what would overturn
    it.
    """
    sentences = [verdict.reason, _gate_said(verdict), *_flag_sentences(verdict), _edits_said(verdict)]
    parts = [el("strong", None, f"{verdict.place}: {verdict.text}."), " ", " ".join(filter(None, sentences)), " "]
    css = _BOX.get(verdict.word.coarse, "verdict")
    return el("p", {"class": css}, *parts, el("em", None, verdict.overturned_by))


def _flag_sentences(verdict: Verdict) -> list[str]:
    return [f"Flag “{flag}”" + (f": {said}." if said else ".") for flag, said in flags_said(verdict)]


def _gate_said(verdict: Verdict) -> str:
    gate = verdict.decodability
    if gate is None:
        return ""
    return (
        f"Probes reach {decimal(gate.accuracy)}, {100 * max(gate.information, 0.0):.0f} % of what there is to know "
        f"(p {p_value(gate.p)})."
    )


def _edits_said(verdict: Verdict) -> str:
    edit, cell = deciding(verdict), verdict.evidence
    if edit is None or cell is None:
        return ""
    told = verdict.word in (Word.USED_SITE, Word.USED_SUBSPACE) and "off-contrast" not in verdict.flags
    mediated = "" if told or edit.mediated_fraction is None else f"; mediated fraction {_mf(edit)}"
    alike = "" if cell.whole.alike is None else f" (less {decimal(cell.whole.alike, 2)} of states of the same value)"
    return (
        f"Swap {_es(cell.subspace)} SD, whole state {_es(cell.whole)} SD{alike}{mediated}; smallest effect found with "
        f"80 % probability {decimal(edit.smallest_detectable_effect, 2)} SD. {_doses_said(cell)}"
    )


def _doses_said(cell: UseCell) -> str:
    by_dose = ", ".join(f"{decimal(effect, 2)} at {dose:g}" for dose, effect in cell.dose_curve)
    said = f"Swap by dose: {by_dose} SD; dose" if by_dose else "The swap's dose is"
    return f"{said} {cell.dose:g} was taken, completeness {decimal(cell.completeness, 2)}."


def _es(edit: EditEffect) -> str:
    return f"{decimal(edit.effect_size, 2)} [{decimal(edit.effect_size_low, 2)}, {decimal(edit.effect_size_high, 2)}]"


def _mf(edit: EditEffect) -> str:
    value, low, high = edit.mediated_fraction, edit.mediated_fraction_low, edit.mediated_fraction_high
    if value is None or low is None or high is None:
        return "not told"
    return f"{decimal(value, 2)} [{_finite(low)}, {_finite(high)}]"


def _finite(value: float | None) -> str:
    if value is None or math.isfinite(value):
        return decimal(value, 2)
    return "−∞" if value < 0 else "∞"


def _numbers(use: Use) -> Markup:
    head = [
        "place",
        "verdict",
        "probes",
        "swap, SD",
        "mediated",
        "adjusted p",
        "MDE",
        "whole state, SD",
        "adjusted p, whole",
        "equivalence p",
        "flags",
    ]
    rows = [_number_row(cell, v) for cell, v in zip(use.result.cells, use.verdicts, strict=True)]
    return table(
        "What edits did, with 95 % intervals; p adjusted over edits, statistics and places.", head, rows, "results"
    )


def _number_row(cell: UseCell, verdict: Verdict) -> list[object]:
    sub, whole, gate = cell.subspace, cell.whole, verdict.decodability
    return [
        cell.place,
        el("td", {"class": "text"}, SHORT[verdict.word]),
        decimal(gate.accuracy if gate else None),
        _es(sub),
        _mf(sub).replace("not told", "–"),
        p_value(adjusted_p(sub)),
        decimal(sub.smallest_detectable_effect, 2),
        _es(whole),
        p_value(adjusted_p(whole)),
        p_value(max(sub.equivalence_p, whole.equivalence_p)),
        el("td", {"class": "text"}, ", ".join(verdict.flags) or "–"),
    ]


_STATES = {
    "dose": "dose",
    "completeness": "complete",
    "selectivity": "selective",
    "reliability": "reliable",
    "displacement": "displaced",
    "off_distribution": "off-distribution",
    "frozen_share": "frozen-norm share",
    "shared_ratio": "one shift / all",
    "joint_over_largest": "joint / single",
    "kl": "KL, nats",
    "flips": "flips",
    "p_permutation": "permutation p",
}


def _on_states(use: Use) -> Markup:
    """Return a table of what the swap does to states and what carries its effect; empty columns are left out."""
    kept = [name for name in _STATES if any(getattr(cell, name) is not None for cell in use.result.cells)]
    doses = sorted({dose for cell in use.result.cells for dose, _ in cell.dose_curve})
    rows = [
        [
            cell.place,
            *(_finite(getattr(cell, name)) for name in kept),
            *(_finite(dict(cell.dose_curve).get(dose)) for dose in doses),
        ]
        for cell in use.result.cells
    ]
    caption = (
        "The swap: complete, selective and reliable by probes on states; displacement over the median distance of two "
        "rows; share of swapped states outside 99 % of the clean ones; share of the effect that later norms carry; "
        "effect, in SD, by dose."
    )
    head = ["place", *map(_STATES.get, kept), *(f"SD at {dose:g}" for dose in doses)]
    return _folded("What the swap does to states, and its effect by dose", table(caption, head, rows))


def _comparisons(use: Use) -> Markup:
    """Return a table of other interventions, for comparison with the literature; they are never part of a verdict."""
    cells = [cell for cell in use.result.cells if cell.comparisons]
    if not cells:
        return Markup("")
    names = list(dict.fromkeys(key for cell in cells for found in cell.comparisons.values() for key in found))
    rows = [
        [cell.place, el("td", {"class": "text"}, name), *(_finite(found.get(key)) for key in names)]
        for cell in cells
        for name, found in cell.comparisons.items()
    ]
    said = (
        "Other interventions at the same places; they never enter a verdict. Change: of the output, in its SDs; "
        "accuracy: of a probe fitted after the edit; above random: share of random subspaces that change it less."
    )
    head = ["place", "intervention", *(key.replace("_", " ") for key in names)]
    return _folded("Other interventions, for comparison", table(said, head, rows, "results"))


def _methods(use: Use) -> Markup:
    text = [el("p", None, use_paragraph(use.result)), el("pre", None, use_bibtex(use.result))]
    return _folded("Methods paragraph and BibTeX of the interventions", join(text))


def _folded(title: str, content: Markup) -> Markup:
    return el("details", None, el("summary", None, title), content)


def use_sections(found: Iterable[Use], *, whole: bool) -> Markup:
    """Return the sections on several behaviours of one property, one below the other."""
    return join(use_section(use, whole=whole) for use in found)
