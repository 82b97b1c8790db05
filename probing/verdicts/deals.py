"""Whether other deals of the rows that fit an edit repeat a claim; where too few do, a verdict turns inconclusive."""

from __future__ import annotations

from scipy.special import ndtr, ndtri

from probing.results.use import EditEffect, UseCell
from probing.verdicts.verdict import Criteria, Word

_Z90 = float(ndtri(0.95))


def turning_used(edit: EditEffect, by: str, level: float, criteria: Criteria) -> tuple[Word, str] | None:
    """Return "inconclusive" with its reason if other random assignments of the fitting rows do not show the edit's
    effect; None if they do.

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
    """Return "inconclusive" with its reason if other random assignments of the fitting rows do not bound the effects of
    both edits below ε; None if they do.
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
