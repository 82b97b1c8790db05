"""Defines verdicts on use (`Verdict`), the thresholds they follow (`Criteria`), and the results of a run with its
verdicts (`UseRun`).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probing.errors import InputError
from probing.files.whole_files import write_atomically
from probing.results.use import Decodability, EditEffect, UseCell, UseResult, answers_said, write_use_results
from probing.system.screen import card

if TYPE_CHECKING:
    import pandas as pd


class Word(StrEnum):
    """Lists the possible verdicts on whether a model uses a property; the value of each member is the verdict in
    words.
    """

    NOT_DECODABLE = "not decodable"
    NOT_TESTED = "decodable, use not tested"
    INCONCLUSIVE = "decodable, use inconclusive"
    USED_SUBSPACE = "decodable and used (class-mean subspace)"
    USED_SITE = "decodable and used (site; subspace not identified)"
    NO_MATERIAL_USE = "decodable, no material use found"
    NOT_ALONE = "decodable, no material use at this place alone; together with others it is used"

    @property
    def coarse(self) -> str:
        """The verdict in short: `used`, `decodable only`, `not decodable` or `inconclusive`."""
        if self in (Word.USED_SUBSPACE, Word.USED_SITE):
            return "used"
        only = dict.fromkeys((Word.NO_MATERIAL_USE, Word.NOT_ALONE), "decodable only")
        return {Word.NOT_DECODABLE: "not decodable", **only}.get(self, "inconclusive")


@dataclass(frozen=True)
class Criteria:
    """Holds the thresholds by which the measured effects of edits are judged.

    Attributes:
        q: false discovery rate over properties, and level of every test.
        epsilon: smallest effect that counts, in standard deviations of the unedited model's output (see `EditEffect`).
        least_coverage: smallest share of labelled rows (words or sentences) that must have counterparts of another
            class with the same covariates.
        least_groups: smallest effective number of groups (sentences or documents) that each class must have.
        least_agreeing: smallest share of deals that must lead to the same claim. A deal is a random division of the
            fitting data between edit and contrast.
        least_completeness: smallest completeness of the swap (how far probes of the edited states read the new value)
            at which "no material use" may be a verdict.
        most_off_distribution: largest share of edited states outside the region of 99 % of the unedited states; above
            it, the verdict has a flag.
    """

    q: float = 0.05
    epsilon: float = 0.1
    least_coverage: float = 0.8
    least_groups: int = 30
    least_agreeing: float = 0.6
    least_completeness: float = 0.8
    most_off_distribution: float = 0.2


@dataclass(frozen=True, repr=False)
class Verdict:
    """Holds the verdict on one property at one place (a site and perhaps a position), for one behaviour and data set.

    Attributes:
        task: name of the property.
        behaviour: name of the measured part of the output.
        model: full name of the model.
        site, position: names of the site and position at which states were edited.
        word: the verdict itself, such as `decodable, no material use found`.
        flags: short qualifications of the verdict.
        reason: sentence that says what decided it, with the numbers.
        overturned_by: sentence that says which finding would change the verdict.
        decodability: the numbers that show whether the property can be read there; None if not measured.
        evidence: the numbers that the edits gave; None if not measured.
        coverage: share of the labelled rows that are in the experiment.
        n_rows: number of rows in the experiment.
        epsilon: smallest effect that counts, as chosen for the run, in standard deviations of the behaviour.
        unit: hash of all settings and data that determine the numbers; "" if not known.
    """

    task: str
    behaviour: str
    model: str
    site: str
    position: str
    word: Word
    flags: tuple[str, ...]
    reason: str
    overturned_by: str
    decodability: Decodability | None
    evidence: UseCell | None
    coverage: float | None = None
    n_rows: int | None = None
    epsilon: float = Criteria.epsilon
    unit: str = ""

    def __post_init__(self) -> None:
        claims = (Word.USED_SITE, Word.USED_SUBSPACE, Word.NO_MATERIAL_USE, Word.NOT_ALONE)
        if self.word in claims and self.evidence is None:
            raise ValueError(f"no {self.word!r} without an intervention record")

    @property
    def place(self) -> str:
        """Name of the place: the site, and after `@` the position if there is one, such as `resid.3@query`."""
        return f"{self.site}@{self.position}" if self.position else self.site

    @property
    def text(self) -> str:
        """The verdict in words. If the model uses the property only at several positions together, the text names the
        others.
        """
        if self.word is not Word.NOT_ALONE or self.evidence is None:
            return str(self.word)
        return str(self.word).replace("others", " and ".join(self.evidence.together_with))

    def to_json(self) -> str:
        """Return the verdict as one JSON line."""
        return json.dumps(asdict(self), sort_keys=True, default=str)

    def __str__(self) -> str:
        of = f" of {self.model}" if self.model else ""
        parts = [f"{self.task} at {self.place}{of}: {self.text}", f"[{', '.join(self.flags)}]" if self.flags else ""]
        return f"{' '.join(part for part in parts if part)}. {self.reason} {self.overturned_by}"

    def __repr__(self) -> str:
        flags = f" [{', '.join(self.flags)}]" if self.flags else ""
        of = f" of {self.model}" if self.model else ""
        return f"Verdict({self.task} at {self.place}{of}: {self.text}{flags})"

    def _repr_html_(self) -> str:
        rows: list[tuple[str, object]] = [
            ("of", self.model or "the model"),
            ("behaviour", self.behaviour or "none named"),
            ("because", self.reason),
            ("flags", ", ".join(self.flags) or "none"),
            ("overturned by", self.overturned_by),
        ]
        return card(f"{self.task} at {self.place}: {self.text}", rows)


def effect_said(what: str, edit: EditEffect, by: str, result: UseResult, criteria: Criteria) -> str:
    """Return a sentence that states the effect of an edit, as shown by τ or by U."""
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
    """Return a sentence that states the upper bound on the effects of both edits."""
    edits: Sequence[EditEffect] = (cell.subspace, cell.whole)
    low, high = min(edit.effect_size_low90 for edit in edits), max(edit.effect_size_high90 for edit in edits)
    whole = max(edit.off_high for edit in edits)
    return (
        f"Both edits move the output by less than {criteria.epsilon} SD: 90 % intervals along the natural contrast in "
        f"[{low:.3f}, {high:.3f}], what of it the contrast may hide below {whole:.3f} (equivalence p {p:.2g})."
    )


def together_said(cell: UseCell, joint: EditEffect, criteria: Criteria, *, alone: bool) -> str:
    """Return a sentence that states the effect of exchanging the states of all positions together; `alone` says whether
    another position has such an effect by itself.
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


_SHOWN = 8  # verdicts


@dataclass(frozen=True, repr=False)
class UseRun:
    """Holds what `intervene` returns: the measured effects of the edits, and the verdicts on them. A loop over it gives
    the verdicts.

    Attributes:
        results: one result per property and behaviour.
        verdicts: one verdict per property, place and behaviour, in the order of the results.
    """

    results: tuple[UseResult, ...]
    verdicts: tuple[Verdict, ...]

    def __iter__(self) -> Iterator[Verdict]:
        return iter(self.verdicts)

    def verdict(self, task: str, place: str, *, model: str | None = None, behaviour: str | None = None) -> Verdict:
        """Return the verdict on a property (`task`) at a place, which is a site and perhaps a position, such as
        `resid.3@query`. `model` and `behaviour` are needed if the run has several of them.

        Raises:
            InputError: there is no such verdict, or there are several.
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
        """Return the results whose hashes (`UseResult.unit`) are among `units`, with their verdicts."""
        return UseRun(
            tuple(one for one in self.results if one.unit in units),
            tuple(one for one in self.verdicts if one.unit in units),
        )

    def rows(self) -> list[dict[str, Any]]:
        """Return a list of flat dicts, one per verdict."""
        answers = {(one.task, one.behaviour, one.model): answers_said(one.answers) for one in self.results}
        return [
            _row(v) | {"answers": answers.get((v.task, v.behaviour, v.model), ""), "unit": v.unit}
            for v in self.verdicts
        ]

    def table(self) -> pd.DataFrame:
        """Return a DataFrame with one row per verdict."""
        import pandas as pd

        return pd.DataFrame(self.rows())

    def plot(self) -> Any:
        """Return an Altair chart that shows, for each site, what probes read and what the edits changed.

        A notebook shows it; `.save("figure.pdf")`, `.svg` or `.png` writes it.
        """
        return import_module("probing.reporting.plots").plot_use(self)

    def __repr__(self) -> str:
        head = f"UseRun of {len(self.results):,} places and {len(self.verdicts):,} verdicts"
        more = [f"  and {len(self.verdicts) - _SHOWN:,} more"] if len(self.verdicts) > _SHOWN else []
        return "\n".join([head, *(f"  {verdict!r}" for verdict in self.verdicts[:_SHOWN]), *more])

    def _repr_html_(self) -> str:
        shown: str = import_module("probing.reporting.plots").use_card(self)
        return shown


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
    """Write use.jsonl and verdicts.parquet, each whole or not at all. Verdicts are written into the table only, since
    they are judged anew from the results whenever a folder is read (`read_use_run`).
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_use_results(run.results, folder / "use.jsonl")
    (folder / "verdicts.jsonl").unlink(missing_ok=True)  # of earlier versions: it would contradict the table
    buffer = BytesIO()
    run.table().to_parquet(buffer, index=False)
    write_atomically(folder / "verdicts.parquet", buffer.getvalue())
