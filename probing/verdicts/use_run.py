"""UseRun: results and verdicts of one run in files and tables, and the sentences that say what decided a verdict."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scipy.special import ndtr, ndtri

from probing.errors import InputError
from probing.files.whole_files import write_atomically
from probing.results.use import EditEffect, UseCell, UseResult, answers_said, write_use_results
from probing.verdicts.verdict import Criteria, Verdict, Word

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class UseRun:
    """Results of the edits, and the verdicts on them.

    Attributes:
        results: a property each.
        verdicts: a property and place each, in the order of the results' cells.
    """

    results: tuple[UseResult, ...]
    verdicts: tuple[Verdict, ...]

    def __iter__(self) -> Iterator[Verdict]:
        return iter(self.verdicts)

    def verdict(self, task: str, place: str, *, model: str | None = None, behaviour: str | None = None) -> Verdict:
        """Return the verdict of a property at a place such as `resid.3@query`; if there are several models or
        behaviours, name one.

        Raises:
            InputError: there is none, or there are several.
        """
        found = [
            one
            for one in self.verdicts
            if (one.task, one.place) == (task, place)
            and model in (None, one.model)
            and behaviour in (None, one.behaviour)
        ]
        if not found:
            raise InputError("no such verdict", needed="a task and place of this run", found=f"{task} at {place}")
        if len(found) > 1:
            raise InputError(
                "several verdicts of that name",
                needed="one model and behaviour",
                found="; ".join(f"{one.model}, {one.behaviour}" for one in found),
                where=f"{task} at {place}",
                next_step="say which: verdict(task, place, model=…, behaviour=…)",
            )
        return found[0]

    def of_units(self, units: Collection[str]) -> UseRun:
        """Return the results of these units, with their verdicts."""
        return UseRun(
            tuple(one for one in self.results if one.unit in units),
            tuple(one for one in self.verdicts if one.unit in units),
        )

    def rows(self) -> list[dict[str, Any]]:
        """Return one flat record for each verdict."""
        answers = {(one.task, one.behaviour, one.model): answers_said(one.answers) for one in self.results}
        return [
            _row(v) | {"answers": answers.get((v.task, v.behaviour, v.model), ""), "unit": v.unit}
            for v in self.verdicts
        ]

    def table(self) -> pd.DataFrame:
        """Return the records as a DataFrame."""
        import pandas as pd

        return pd.DataFrame(self.rows())


_EFFECT = (
    *("effect_size", "effect_size_low", "effect_size_high"),
    *("mediated_fraction", "mediated_fraction_low", "mediated_fraction_high"),
    *("p_adjusted", "smallest_detectable_effect", "equivalence_p"),
    *("whole_effect_size", "whole_effect_p_adjusted"),
)


def _row(v: Verdict) -> dict[str, Any]:
    found: dict[str, Any] = {
        "task": v.task,
        "behaviour": v.behaviour,
        "model": v.model,
        "site": v.site,
        "position": v.position,
        "verdict": v.text,
        "coarse": v.word.coarse,
        "flags": ", ".join(v.flags),
        "accuracy": v.decodability.accuracy if v.decodability else None,
        "n_rows": v.n_rows,
        "coverage": v.coverage,
    }
    if v.evidence is not None:
        for name, edit in (("swap", v.evidence.subspace), ("interchange", v.evidence.whole)):
            found |= {f"{name}_{key}": getattr(edit, key) for key in _EFFECT}
        found |= {
            key: getattr(v.evidence, key)
            for key in (
                "dose",
                "completeness",
                "selectivity",
                "reliability",
                "displacement",
                "off_distribution",
                "frozen_share",
                "shared_ratio",
                "kl",
                "flips",
            )
        }
        found |= {f"swap_effect_size_at_{dose:g}": effect for dose, effect in v.evidence.dose_curve}
    return found | {"reason": v.reason, "overturned_by": v.overturned_by}


def write_use_run(run: UseRun, folder: Path) -> None:
    """Write use.jsonl and verdicts.parquet, each whole or not at all. Verdicts are judged anew from the results
    whenever a folder is read (`read_use_run`): they have no file of their own but the table.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_use_results(run.results, folder / "use.jsonl")
    (folder / "verdicts.jsonl").unlink(missing_ok=True)  # of earlier versions: it would contradict the table
    buffer = BytesIO()
    run.table().to_parquet(buffer, index=False)
    write_atomically(folder / "verdicts.parquet", buffer.getvalue())


_Z90 = float(ndtri(0.95))


def turning_used(edit: EditEffect, by: str, level: float, criteria: Criteria) -> tuple[Word, str] | None:
    """Return "inconclusive" where other deals of the fitting rows do not show the edit's effect; None: they do.

    Args:
        edit: its measured effects.
        by: `τ`, or `U`, which does not rest on the contrast that is dealt out.
        level: of adjusted p.
        criteria: ε, and how many deals must agree.
    """
    if by == "U":
        return None
    claims = _claims(edit, level, criteria)
    what = f"an effect of at least {criteria.epsilon} SD"
    return _turning(len(claims), claims.count("used"), claims.count("bounded"), what, "bounded below it", criteria)


def turning_bounded(cell: UseCell, level: float, criteria: Criteria) -> tuple[Word, str] | None:
    """Return "inconclusive" where other deals of the fitting rows do not bound the effects of both edits; None: they
    do.
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


def effect_said(what: str, edit: EditEffect, by: str, result: UseResult, criteria: Criteria) -> str:
    """Say what an edit does whose effect was shown by τ or by U."""
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
    """Say why neither use nor its absence is claimed."""
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
    """Say how small the effects of both edits are."""
    edits: Sequence[EditEffect] = (cell.subspace, cell.whole)
    low, high = min(edit.effect_size_low90 for edit in edits), max(edit.effect_size_high90 for edit in edits)
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
    along, whole, p = edit.effect_size, edit.whole_effect_size, edit.whole_effect_p_adjusted
    if abs(along) < criteria.epsilon <= whole and p < edit.p_adjusted:
        return f"{whole:.3f} SD in all (adjusted p {p:.2g})"
    interval = f"[{edit.effect_size_low:.3f}, {edit.effect_size_high:.3f}]"
    return f"{along:.3f} {interval} SD (adjusted p {edit.p_adjusted:.2g})"
