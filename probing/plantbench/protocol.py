"""The protocol of this package as a rule: answers for a case's cells by `measure_property` and `judge`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from probing.errors import DegenerateDesign, TooFewGroups
from probing.plantbench.case import Answer, Case, Cell, Said
from probing.results.use import UseResult
from probing.use.options import UseOptions
from probing.use.running import Property, measure_property
from probing.verdicts.judging import judge
from probing.verdicts.verdict import Criteria, Verdict, Word

_SAID: Mapping[Word, Said] = {
    Word.NOT_DECODABLE: "not_decodable",
    Word.USED_SUBSPACE: "used",
    Word.USED_SITE: "used",
    Word.NO_MATERIAL_USE: "unused",
    Word.NOT_ALONE: "unused",
    Word.INCONCLUSIVE: "abstain",
    Word.NOT_TESTED: "abstain",
}


@dataclass(frozen=True)
class Protocol:
    """Gives the verdicts of all properties of a case that it is asked about, at the places asked.

    Attributes:
        stratify, shared: see `UseOptions`; for comparisons.
        folds: False: one and the same rows fit and are measured, for comparison.
    """

    stratify: bool = True
    shared: bool = False
    folds: bool = True

    def __call__(self, case: Case) -> dict[Cell, Answer]:
        """Answer for every cell of a case, as a rule of `score`."""
        options = UseOptions(
            seed=0, curve=False, details=False, null=False, stratify=self.stratify, shared=self.shared, folds=self.folds
        )
        results: list[UseResult] = []
        for name in dict.fromkeys(cell.property for cell in case.cells):
            places = [cell.place for cell in case.cells if cell.property == name]
            prop = Property(
                name, case.labels[name], case.n_classes[name], case.groups, case.covariates(name), case.types
            )
            try:
                results.append(measure_property(case.instrument, prop, places=places, options=options))
            except (DegenerateDesign, TooFewGroups):
                continue
        said = {(v.task, v.place): answer(v) for v in judge(results, Criteria())}
        return {cell: said.get((cell.property, str(cell.place)), Answer("abstain")) for cell in case.cells}


def answer(verdict: Verdict) -> Answer:
    """Return a cell's answer. Score: the larger |ES| of the two edits; effect: MF of the interchange; p: the smallest
    adjusted.
    """
    cell = verdict.evidence
    if cell is None:
        return Answer(_SAID[verdict.word])
    edits = (cell.subspace, cell.whole)
    p = min(min(edit.p_adjusted, edit.u_p_adjusted) for edit in edits)
    return Answer(
        _SAID[verdict.word],
        score=max(max(abs(edit.es), edit.es_u) for edit in edits),
        effect=math.nan if cell.whole.mf is None else cell.whole.mf,
        p=p,
        together="used" if verdict.word is Word.NOT_ALONE else "",
    )


RULES: Mapping[str, Callable[[Case], dict[Cell, Answer]]] = {
    "protocol": Protocol(),
    "protocol_without_strata": Protocol(stratify=False),
    "protocol_shared_shift": Protocol(shared=True),
    "protocol_without_folds": Protocol(folds=False),
}
