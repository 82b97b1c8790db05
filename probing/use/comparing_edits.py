"""Interventions of the literature on the rows of a verdict, beside it and never part of it.

Erasing a property and watching the output is the field's habit. What an eraser does is only worth something beside
what as many random directions do, and beside what erasing a property that means nothing does.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from probing.contracts.edited_model import Place
from probing.contracts.intervention import Edit, Targets
from probing.recipes import build
from probing.seeds import child_seed
from probing.use.discriminant import Discriminant, Moments
from probing.use.effects import Bench
from probing.use.nulls import shuffled

MOST_ROWS = 256
RANDOM_DRAWS = 64
RANDOM, CONTROL = "random_subspace", "control_task"

Ints = NDArray[np.int64]
Numbers = dict[str, float]


def compared(bench: Bench, place: Place, names: Sequence[str], *, draws: int = RANDOM_DRAWS) -> dict[str, Numbers]:
    """Return what each intervention does at a place, fitted on F1 and measured on at most 256 rows of F3 of one
    rotation.

    Beside those named stand always `random_subspace`, draws of the same rank as LEACE takes, and `control_task`: LEACE
    of the labels shuffled within strata.

    Args:
        bench: the experiment.
        place: of the edit.
        names: recipes such as `leace`, `inlp`, `mean_ablation`.
        draws: of random subspaces.

    Returns:
        By name: `rank`; `change`, root mean square change of the output in its SDs; `displacement`, of the states, in
        root mean square distances of two rows; `accuracy` of a linear probe fitted after the edit (R² of real values);
        of random subspaces the median and `change_high`, the 95th percentile; of others `above_random`, the share of
        draws that change the output less.

    References:
        Elazar, Ravfogel, Jacovi and Goldberg 2021, Amnesic Probing, §4.
    """
    found: dict[str, Numbers] = {}
    random = [_one(bench, place, RANDOM, seed=draw) for draw in range(draws)]
    changes = np.array([one["change"] for one in random])
    found[RANDOM] = {
        "draws": float(draws),
        "rank": random[0]["rank"],
        "change": float(np.median(changes)),
        "change_high": float(np.quantile(changes, 0.95)),
        "displacement": float(np.median([one["displacement"] for one in random])),
    }
    for name in dict.fromkeys([*(n for n in names if n.split(":")[0] != RANDOM), CONTROL]):
        one = _one(bench, place, name, seed=0)
        found[name] = one | {"above_random": float((changes < one["change"]).mean())}
    return found


def _one(bench: Bench, place: Place, name: str, *, seed: int) -> Numbers:
    e, states = bench.experiment, bench.states(place)
    f1, f2, f3 = bench.folds(0)
    rows = f3[np.linspace(0, len(f3) - 1, min(MOST_ROWS, len(f3))).astype(np.int64)]
    own = child_seed(bench.seed, "comparison", name, seed)
    z = e.z[f1] if name != CONTROL else np.asarray(shuffled(e, f1, seed=own, draw=0), e.z.dtype)
    intervention = build("interventions", "leace" if name == CONTROL else name)
    edit: Edit = intervention.fit(states[f1], Targets(z, e.strata[f1], e.n_classes), seed=own)
    edited = _applied(bench, edit, states, rows)
    change = bench.run(place, rows, edited)
    spread = bench.spread or 1.0
    distance = np.sqrt(2 * states[rows].astype(np.float64).var(0).sum()) or 1.0
    numbers = {
        "rank": float(edit.rank),
        "change": float(np.sqrt((change**2).sum(1).mean()) / spread),
        "displacement": float(np.sqrt(((edited - states[rows]) ** 2).sum(1).mean()) / distance),
    }
    if name == RANDOM:
        return numbers
    return numbers | {"accuracy": _readable(bench, edit, states, f2, f3)}


def _applied(bench: Bench, edit: Edit, states: NDArray[np.floating], rows: Ints) -> NDArray[np.floating]:
    e = bench.experiment
    goals = np.zeros_like(e.z)
    for k in range(3):
        goals[e.fold(k)] = bench.goals[k]
    targets = Targets(e.z[rows], e.strata[rows], e.n_classes)
    return np.asarray(edit.apply(states[rows], targets, goals[rows]), states.dtype)


def _readable(bench: Bench, edit: Edit, states: NDArray[np.floating], f2: Ints, f3: Ints) -> float:
    """Return the held-out accuracy (R²) of a linear probe fitted on edited states."""
    e = bench.experiment
    train, test = (_applied(bench, edit, states, rows).astype(np.float64) for rows in (f2, f3))
    said = Discriminant(Moments.of(train, e.z[f2], e.n_classes)).predict(test)
    if e.n_classes:
        return float((said.argmax(1) == e.z[f3]).mean())
    return float(1 - ((said[:, 0] - e.z[f3]) ** 2).mean() / e.z[f3].var())
