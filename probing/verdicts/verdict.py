"""Criteria, Verdict: the words allowed of a property at a place, with the numbers behind them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib import import_module

from probing.results.use import Decodability, UseCell


class Word(StrEnum):
    """The possible verdicts on the use of a property."""

    NOT_DECODABLE = "not decodable"
    NOT_TESTED = "decodable, use not tested"
    INCONCLUSIVE = "decodable, use inconclusive"
    USED_SUBSPACE = "decodable and used (class-mean subspace)"
    USED_SITE = "decodable and used (site; subspace not identified)"
    NO_MATERIAL_USE = "decodable, no material use found"
    NOT_ALONE = "decodable, no material use at this place alone; together with others it is used"

    @property
    def coarse(self) -> str:
        """The verdict in one of four words: `used`, `decodable only`, `not decodable` or `inconclusive`."""
        if self in (Word.USED_SUBSPACE, Word.USED_SITE):
            return "used"
        only = dict.fromkeys((Word.NO_MATERIAL_USE, Word.NOT_ALONE), "decodable only")
        return {Word.NOT_DECODABLE: "not decodable", **only}.get(self, "inconclusive")


@dataclass(frozen=True)
class Criteria:
    """Holds the thresholds that numbers are judged by.

    Attributes:
        q: false discovery rate over properties, and level of every test.
        epsilon: smallest effect of interest, in SDs of the clean output (see `EditEffect`).
        least_coverage: smallest share of labelled rows that must have counterparts.
        least_groups: smallest effective number of groups of each class.
        least_agreeing: smallest share of the random assignments of the fitting folds (that of the verdict included)
            that must repeat its claim.
        least_completeness: smallest completeness of the swap at which "no material use" may be a verdict.
        most_off_distribution: largest share of edited rows outside the clean states' 99 % region that is not flagged.
    """

    q: float = 0.05
    epsilon: float = 0.1
    least_coverage: float = 0.8
    least_groups: int = 30
    least_agreeing: float = 0.6
    least_completeness: float = 0.8
    most_off_distribution: float = 0.2


@dataclass(frozen=True)
class Verdict:
    """States a hypothesis about one property at one place, for one behaviour and data.

    Attributes:
        task, behaviour, model, site, position: names of what it is about.
        word: the verdict itself, such as `decodable, no material use found`.
        flags: short qualifications of it.
        reason: sentence that says what decided it, with the numbers.
        overturned_by: sentence that says what would change it.
        decodability, evidence: the numbers of the gate and of the edits; None: not measured.
        coverage, n_rows: share and number of rows in the experiment.
        epsilon: smallest effect of interest that was asked for, in SDs.
        unit: hash of everything that determined the numbers; "" if not known.
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
        """Name of the place, such as `resid.3@query`."""
        return f"{self.site}@{self.position}" if self.position else self.site

    @property
    def text(self) -> str:
        """The verdict in words; if positions together are used, with the other positions named."""
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

    def _repr_html_(self) -> str:
        shown: str = import_module("probing.reporting.cards").card(self)
        return shown
