"""Sentences that say what decided a verdict of use, with its numbers."""

from __future__ import annotations

from collections.abc import Sequence

from probing.results.use import EditEffect, UseCell, UseResult
from probing.verdicts.verdict import Criteria


def effect_said(what: str, edit: EditEffect, by: str, result: UseResult, criteria: Criteria) -> str:
    """Say what an edit does whose effect was shown by τ or by U."""
    asked = f"at least {criteria.epsilon} SD is asked for"
    if by == "U":
        where = _apart(result)
        return f"{what} moves the output by {edit.es_u:.2f} SD{where} (adjusted p {edit.u_p_adjusted:.2g}; {asked})."
    mf = "" if edit.mf is None else f", {edit.mf:.2f} [{edit.mf_low:.2f}, {edit.mf_high:.2f}] of the natural difference"
    along = f"{edit.es:.2f} [{edit.es_low:.2f}, {edit.es_high:.2f}] SD along the natural contrast"
    return f"{what} moves the output by {along}{mf} (adjusted p {edit.p_adjusted:.2g}; {asked})."


def _apart(result: UseResult) -> str:
    """Say in what an effect shows that its mean along the contrast does not show; empty where there is nothing."""
    if result.dimensions != 1:
        return ", off the natural contrast or otherwise in each stratum"
    kinds = [*(["strata"] if result.n_strata > 1 else []), *(["pairs of classes"] if result.n_classes > 2 else [])]
    return f", which differs between {' and '.join(kinds)}" if kinds else ""


def undecided_said(cell: UseCell, level: float, criteria: Criteria, *, incomplete: bool) -> str:
    """Say why neither use nor its absence is claimed."""
    mde = f"(smallest detectable effect {cell.subspace.mde:.3f} SD)"
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
    """Say how small the effects of both edits are."""
    edits: Sequence[EditEffect] = (cell.subspace, cell.whole)
    low, high = min(edit.es_low90 for edit in edits), max(edit.es_high90 for edit in edits)
    whole = max(edit.off_high for edit in edits)
    return (
        f"Both edits move the output by less than {criteria.epsilon} SD: 90 % intervals along the natural contrast in "
        f"[{low:.3f}, {high:.3f}], what of it the contrast may hide below {whole:.3f} (equivalence p {p:.2g})."
    )


def together_said(cell: UseCell, joint: EditEffect, criteria: Criteria, *, alone: bool) -> str:
    """Say what the states of all positions do that are exchanged together; `alone`: another position does so by
    itself.
    """
    others = " and ".join(cell.together_with)
    said = f"Exchanged together with {others}, states move the output by {_size_said(joint, criteria)}"
    return (
        f"{said}; {'one of these' if len(cell.together_with) > 1 else others} does so by itself."
        if alone
        else f"{said}."
    )


def _size_said(edit: EditEffect, criteria: Criteria) -> str:
    if abs(edit.es) < criteria.epsilon <= edit.es_u and edit.u_p_adjusted < edit.p_adjusted:
        return f"{edit.es_u:.3f} SD in all (adjusted p {edit.u_p_adjusted:.2g})"
    return f"{edit.es:.3f} [{edit.es_low:.3f}, {edit.es_high:.3f}] SD (adjusted p {edit.p_adjusted:.2g})"
