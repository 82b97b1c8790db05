"""A run of the use stage as reports meet it: measured on planted vectors, then spread over sites and positions."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from probing.results.use import UseCell, UseResult
from probing.use.effects import UseOptions
from probing.use.measure import measure_property
from probing.verdicts.judging import judge
from probing.verdicts.verdict import Criteria, UseRun
from tests.samples.use_samples import sample

TASK, BEHAVIOUR, MODEL = "upos", "next_token:answers=was|were", "tiny-gpt2"
CRITERIA = vars(Criteria())


RANDOM = {"change": 0.02, "change_high": 0.03, "rank": 1.0}


@cache
def measured(gain: float, n: int) -> UseResult:
    """One place."""
    made = sample(3, gain=gain, mediated=0.7 if gain else 1.0, n=n, rho=0.3)
    return measure_property(made.instrument, made.prop, behaviour=BEHAVIOUR, model=MODEL, options=UseOptions(seed=3))


@cache
def a_result(task: str = TASK, behaviour: str = BEHAVIOUR, model: str = MODEL, prefix: str = "resid.") -> UseResult:
    """Sites 0 and 1 inert, 2 and 3 used; at two positions, of which the second has few rows."""
    cells: list[UseCell] = []
    known = {}
    for layer in range(4):
        for position, n in (("query", 3000), ("end", 600)):
            found = measured(0.8 if layer > 1 else 0.0, n)
            others = {"leace": {"change": 0.1 * layer, "rank": 1.0}, "random_subspace": RANDOM}
            cell = replace(found.cells[0], site=f"{prefix}{layer}", position=position, comparisons=others)
            cells.append(cell)
            known[cell.place] = found.decodability["h"]
    base = measured(0.8, 3000)
    return replace(
        base,
        task=task,
        behaviour=behaviour,
        model=model,
        cells=tuple(cells),
        decodability=known,
        settings=base.settings | {"criteria": CRITERIA},
    )


def run_of(*results: UseResult) -> UseRun:
    """With its verdicts."""
    return UseRun(results, tuple(judge(results)))
