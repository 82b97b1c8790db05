"""Sentences that say what decided a verdict of use, with its numbers."""

from __future__ import annotations

from collections.abc import Sequence

from probing.results.use import EditEffect, UseCell, UseResult
from probing.verdicts.verdict import Criteria


def effect_said(what: str, edit: EditEffect, by: str, result: UseResult, criteria: Criteria) -> str:
    """Return a sentence on the effect of an edit that was shown by τ or by U."""
    asked = f"at least {criteria.epsilon} SD is asked for"
    if by == "U":
        moved = f"{edit.whole_effect_size:.2f} SD{_apart(result)}"
        return f"{what} moves the output by {moved} (adjusted p {edit.whole_effect_p_adjusted:.2g}; {asked})."
    share, low, high = edit.mediated_fraction, edit.mediated_fraction_low, edit.mediated_fraction_high
    mediated = "" if share is None else f", {share:.2f} [{low:.2f}, {high:.2f}] of the natural difference"
    interval = f"[{edit.effect_size_low:.2f}, {edit.effect_size_high:.2f}]"
    along = f"{edit.effect_size:.2f} {interval} SD along the natural contrast"
    return f"{what} moves the output by {along}{mediated} (adjusted p {edit.p_adjusted:.2g}; {asked})."


def _apart(result: UseResult) -> str:
    """Say in what an effect shows that its mean along the contrast does not show; empty where there is nothing."""
    if result.dimensions != 1:
        return ", off the natural contrast or otherwise in each stratum"
    kinds = [*(["strata"] if result.n_strata > 1 else []), *(["pairs of classes"] if result.n_classes > 2 else [])]
    return f", which differs between {' and '.join(kinds)}" if kinds else ""


def undecided_said(cell: UseCell, level: float, criteria: Criteria, *, incomplete: bool) -> str:
    """Return a sentence that says why neither use nor its absence is claimed."""
    mde = f"(smallest detectable effect {cell.subspace.smallest_detectable_effect:.3f} SD)"
    if incomplete:
        return f"Inconclusive: the swap is incomplete at every dose {mde}."
    for what, edit in (("the class-mean swap", cell.subspace), ("the interchange", cell.whole)):
        if edit.p_adjusted <= level:
            return (
                f"Inconclusive: an effect of {what} is shown, {_size_said(edit, criteria)}, but neither that it "
                f"reaches {criteria.epsilon} SD nor that it stays below {mde}."
            )
    return f"Inconclusive: an effect is neither shown nor bounded below {criteria.epsilon} SD {mde}."


def bound_said(cell: UseCell, p: float, criteria: Criteria) -> str:
    """Return a sentence that says how small the effects of both edits are."""
    edits: Sequence[EditEffect] = (cell.subspace, cell.whole)
    low, high = min(edit.effect_size_low90 for edit in edits), max(edit.effect_size_high90 for edit in edits)
    whole = max(edit.off_high for edit in edits)
    return (
        f"Both edits move the output by less than {criteria.epsilon} SD: 90 % intervals along the natural contrast in "
        f"[{low:.3f}, {high:.3f}], what of it the contrast may hide below {whole:.3f} (equivalence p {p:.2g})."
    )


def together_said(cell: UseCell, joint: EditEffect, criteria: Criteria, *, alone: bool) -> str:
    """Return a sentence on the effect of exchanging the states of all positions together; `alone`: another position has
    such an effect by itself.
    """
    others = " and ".join(cell.together_with)
    said = f"Exchanged together with {others}, states move the output by {_size_said(joint, criteria)}"
    return (
        f"{said}; {'one of these' if len(cell.together_with) > 1 else others} does so by itself."
        if alone
        else f"{said}."
    )


def _size_said(edit: EditEffect, criteria: Criteria) -> str:
    along, whole, p = edit.effect_size, edit.whole_effect_size, edit.whole_effect_p_adjusted
    if abs(along) < criteria.epsilon <= whole and p < edit.p_adjusted:
        return f"{whole:.3f} SD in all (adjusted p {p:.2g})"
    interval = f"[{edit.effect_size_low:.3f}, {edit.effect_size_high:.3f}]"
    return f"{along:.3f} {interval} SD (adjusted p {edit.p_adjusted:.2g})"
