"""Header, Stated: the description of a file of evidence beside its arrays, the verdict first."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import ConfigDict

from probing.results.use import EditEffect
from probing.verdicts.verdict import Verdict, Word

Kind = Literal["class_mean", "leace", "probe"]

OPERATIONS: dict[str, str] = {
    "class_mean": "h + dose * (means[stratum, goal] - means[stratum, start]); without a stratum the mean of these "
    "differences, weighted by shares. Of real values h + dose * (goal - start) * slopes[stratum]",
    "leace": "h - dose * left @ (right.T @ (h - centre))",
    "probe": "log_softmax(h @ weights + bias)",
}
CONVENTION = (
    "resid.l is what enters block l (blocks count from 0); resid.L leaves the last block, before any final norm; "
    "attn_out.l and mlp_out.l are what a sublayer of block l adds; embed is the embedding of a piece"
)


@dataclass(frozen=True)
class Stated:
    """A verdict as it stands in a file: the word, its reason, and the numbers.

    Attributes:
        word, flags, reason, overturned_by: see `Verdict`.
        effect, mediated: (value, low, high) with 95 % intervals: SDs of the clean output; share of the natural
            difference. None: not measured, not established.
        p_adjusted, mde, accuracy, coverage: None: not measured.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    word: str
    flags: tuple[str, ...]
    reason: str
    overturned_by: str
    effect: tuple[float, float, float] | None
    mediated: tuple[float, float, float] | None
    p_adjusted: float | None
    mde: float | None
    accuracy: float | None
    coverage: float | None

    @classmethod
    def of(cls, verdict: Verdict) -> Stated:
        """Return the numbers of the swap, or of the interchange if only that has an effect."""
        edit, gate = _deciding(verdict), verdict.decodability
        return cls(
            word=str(verdict.word),
            flags=verdict.flags,
            reason=verdict.reason,
            overturned_by=verdict.overturned_by,
            effect=_interval(edit.es, edit.es_low, edit.es_high) if edit else None,
            mediated=_interval(edit.mf, edit.mf_low, edit.mf_high) if edit else None,
            p_adjusted=min(edit.p_adjusted, edit.u_p_adjusted) if edit else None,
            mde=edit.mde if edit else None,
            accuracy=gate.accuracy if gate else None,
            coverage=verdict.coverage,
        )


def _deciding(verdict: Verdict) -> EditEffect | None:
    cell = verdict.evidence
    return None if cell is None else cell.whole if verdict.word is Word.USED_SITE else cell.subspace


def _interval(value: float | None, low: float | None, high: float | None) -> tuple[float, float, float] | None:
    """Return the three numbers, if they are there and finite: JSON has no others."""
    if value is None or low is None or high is None or not all(map(math.isfinite, (value, low, high))):
        return None
    return value, low, high


@dataclass(frozen=True)
class Header:
    """The description of a file of evidence beside its arrays.

    Attributes:
        kind: what it is; `operation`: the formula by which it is applied.
        model, revision, identity: whose states; revision and identity are "" where they are not known.
        site, convention, position, position_rule: where, and what these names mean.
        task, labels, label_definition: the property; classes in the order of their codes, none of real values.
        behaviour: what the verdict is about.
        strata: what each stratum is.
        sign, scale: what a positive dose does, and the unit of the states.
        dose: at which the verdict was reached.
        data, rows, fitted_on, folds: SHA-256 of states and labels; how many; which of them it was fitted on; how the
            verdict was measured.
        controls: what was controlled for.
        verdict: never missing.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    kind: Kind
    operation: str
    model: str
    revision: str
    identity: str
    site: str
    convention: str
    position: str
    position_rule: str
    task: str
    labels: tuple[str, ...]
    label_definition: str
    behaviour: str
    strata: tuple[str, ...]
    sign: str
    scale: str
    dose: float
    data: str
    rows: int
    fitted_on: str
    folds: str
    controls: tuple[str, ...]
    verdict: Stated

    @property
    def place(self) -> str:
        """Name of the place, such as `resid.3@query`."""
        return f"{self.site}@{self.position}" if self.position else self.site
