"""Words for verdicts: short words, marks, the meaning of each flag, and the edit whose numbers stand beside them."""

from __future__ import annotations

from probing.reporting.wording import decimal
from probing.results.use import EditEffect, UseCell, UseResult, answers_said
from probing.verdicts.verdict import Verdict, Word

SHORT = {
    Word.NOT_DECODABLE: "not decodable",
    Word.NOT_TESTED: "not tested",
    Word.INCONCLUSIVE: "inconclusive",
    Word.USED_SUBSPACE: "used (subspace)",
    Word.USED_SITE: "used (site)",
    Word.NO_MATERIAL_USE: "no material use",
    Word.NOT_ALONE: "not alone, used together",
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
    """Return the edit whose numbers are shown: the swap, or the interchange if only that has an effect; None: nothing
    edited.
    """
    cell = verdict.evidence
    if cell is None:
        return None
    return cell.whole if verdict.word is Word.USED_SITE else cell.subspace


def adjusted_p(edit: EditEffect) -> float:
    """Return the smaller of the adjusted p of τ and of U, both of one family."""
    return min(edit.p_adjusted, edit.u_p_adjusted)


def flags_said(verdict: Verdict) -> list[tuple[str, str]]:
    """Return each flag and what it means here, with its numbers."""
    cell = verdict.evidence
    return [(flag, "" if cell is None else _MEANING.get(flag, _nothing)(cell)) for flag in verdict.flags]


def answers_sentence(result: UseResult) -> str:
    """Return a sentence such as `Answers as measured: ␣is (314) | ␣are (359).`, pieces by text and id; empty where the
    behaviour has no answers.
    """
    return f"Answers as measured: {answers_said(result.answers, ids=True)}." if result.answers else ""


def doubts_of(result: UseResult) -> list[str]:
    """Return what makes the behaviour doubtful, and what could not be measured, as sentences."""
    return [*result.doubts, *(f"{cell.place}: {note}" for cell in result.cells for note in cell.notes)]


def _nothing(cell: UseCell) -> str:
    return ""


def _norm_mediated(cell: UseCell) -> str:
    return (
        f"with the scales of later norms held, the effect lies in [{cell.frozen_low90 or 0:.2f}, "
        f"{cell.frozen_high90 or 0:.2f}] SD, inside the equivalence bound"
    )


def _exceeds_site(cell: UseCell) -> str:
    return (
        f"the swap ({cell.subspace.es:.2f} SD) does more than exchanging the whole state ({cell.whole.es:.2f} SD), so "
        "it may wake a path that the model does not take by itself"
    )


def _off_contrast(cell: UseCell) -> str:
    moved = max(cell.subspace.es_u, cell.whole.es_u)
    return f"the output moves by {moved:.2f} SD, but not along the natural difference"


def _differing(cell: UseCell) -> str:
    moved = max(cell.subspace.es_u, cell.whole.es_u)
    return f"the output moves by {moved:.2f} SD, which is not seen in the mean over all rows"


def _off_distribution(cell: UseCell) -> str:
    return f"{100 * cell.off_distribution:.0f} % of the swapped states lie outside 99 % of the clean ones"


def _incomplete(cell: UseCell) -> str:
    return f"after the swap at dose {cell.dose:g} probes see the goal at {cell.completeness:.2f} of what they should"


def _redundant(cell: UseCell) -> str:
    times = f"{cell.joint_over_largest or 0:.2f} times"
    return f"all positions exchanged together move the output {times} as far as the largest alone"


def _weak(cell: UseCell) -> str:
    natural = cell.subspace.total / cell.subspace.spread if cell.subspace.spread else 0.0
    return f"the behaviour itself hardly differs between the values: by {decimal(natural, 2)} SD"


def _non_zero(cell: UseCell) -> str:
    return "an effect is shown, but none of at least the smallest effect of interest"


def _site_effect(cell: UseCell) -> str:
    return "exchanging the whole state moves the output, though probes do not recover the property"


_MEANING = {
    "norm-mediated": _norm_mediated,
    "exceeds site": _exceeds_site,
    "off-contrast": _off_contrast,
    "differs between strata": _differing,
    "differs between pairs of classes": _differing,
    "off-distribution": _off_distribution,
    "incomplete edit": _incomplete,
    "redundant": _redundant,
    "weak behaviour": _weak,
    "non-zero": _non_zero,
    "site effect": _site_effect,
}
