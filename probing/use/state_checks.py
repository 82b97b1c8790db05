"""Checks of an edit on the states alone, by linear probes fitted on fold F2 and applied to the edited rows of fold F3;
and other interventions, for comparison.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.contracts.edited_model import Place
from probing.contracts.intervention import Edit, Targets
from probing.recipes import build
from probing.seeds import child_seed
from probing.use.discriminant import Discriminant, Mahalanobis, Moments
from probing.use.effects import EditMeasurement
from probing.use.experiment import FOLDS
from probing.use.inference import Effect
from probing.use.mediating import chosen_latents, edited_effect, fitted_edits, shares, targets_of
from probing.use.nulls import shuffled
from probing.use.row_weights import NaturalContrast

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Covariates = Mapping[str, tuple[NDArray[Any], int]]  # by name: values of the experiment's rows, and K (0: real)

ENOUGH = 0.8


@dataclass(frozen=True)
class StateCheckResult:
    """Holds how far an edit changes the property in the states, and nothing else; all numbers are means over
    rotations.

    Attributes:
        completeness: mean probability of the goal by a probe after the edit, divided by that for unedited rows of the
            goal's class. For real values, the change of the predicted value, divided by its natural difference.
        selectivity: 1 − mean total variation distance between the predictions, before and after the edit, of probes of
            the other properties with classes; None if there are none.
        displacement: median length of the change, divided by the median distance of two rows.
        off_distribution: share of edited rows beyond the 99th percentile of the clean states' Mahalanobis distance.
    """

    completeness: float
    selectivity: float | None
    displacement: float
    off_distribution: float

    @property
    def reliability(self) -> float | None:
        """Harmonic mean of completeness (at most 1) and selectivity."""
        if self.selectivity is None:
            return None
        complete = min(max(self.completeness, 0.0), 1.0)
        total = complete + self.selectivity
        return 2 * complete * self.selectivity / total if total else 0.0


class StateChecks:
    """Checks edits at one place with probes that are fitted once and used for every dose.

    References:
        Canby et al. 2024, How Reliable are Causal Probing Interventions?, §3.
    """

    def __init__(self, bench: EditMeasurement, place: Place, covariates: Covariates) -> None:
        self._bench, self._place = bench, place
        self._parts = [_Rotation(bench, place, r, covariates) for r in range(FOLDS)]

    def swap(self, dose: float) -> StateCheckResult:
        """Return the scores of the class-mean swap at a dose."""
        return self.of(self._bench.swapped_states(self._place, dose))

    def of(self, edited: list[Floats]) -> StateCheckResult:
        """Return the scores of an edit, given the edited states of the measured fold F3, one array for each rotation of
        the folds.
        """
        parts = [part(h) for part, h in zip(self._parts, edited, strict=True)]
        others = [p.selectivity for p in parts if p.selectivity is not None]
        return StateCheckResult(
            float(np.mean([p.completeness for p in parts])),
            float(np.mean(others)) if others else None,
            float(np.mean([p.displacement for p in parts])),
            float(np.mean([p.off_distribution for p in parts])),
        )

    def dose(self, doses: tuple[float, ...]) -> tuple[float, StateCheckResult]:
        """Return the dose of the class-mean swap that verdicts use, and the scores at it: the smallest dose from 1 on
        whose completeness is at least 0.8; 1 if none is.
        """
        first = self.swap(1.0)
        if first.completeness >= ENOUGH:
            return 1.0, first
        for dose in sorted(a for a in doses if a > 1):
            found = self.swap(dose)
            if found.completeness >= ENOUGH:
                return dose, found
        return 1.0, first


class _Rotation:
    """Probes of F2 applied to the clean states of F3, and then to edited states."""

    def __init__(self, bench: EditMeasurement, place: Place, r: int, covariates: Covariates) -> None:
        states = bench.at(place).states
        _, k2, k3 = bench.fold_numbers(r)
        self._clean, self._sides = states.blocks[k3], bench.naturals[r].sides
        self._is_real = not bench.experiment.n_classes
        self._own, self._far = Discriminant(states.moments[k2]), Mahalanobis(states.moments[k2])
        self._before = self._own.predict(self._clean)
        self._others = []
        for values, k in covariates.values():
            if k:
                probe = Discriminant(Moments.of(states.blocks[k2], values[bench.folds(r)[1]], k))
                self._others.append((probe, probe.predict(self._clean)))
        half = len(self._clean) // 2
        self._between = np.median(_lengths(self._clean[: len(self._clean) - half] - self._clean[half:]))
        self._limit = np.quantile(self._far(self._clean), 0.99)

    def __call__(self, edited: Floats) -> StateCheckResult:
        after, sides = self._own.predict(edited), self._sides
        if self._is_real:
            step = sides.goal - sides.start
            natural = np.polyfit(sides.start, self._before[:, 0], 1)[0]
            complete = float((step @ (after - self._before)[:, 0]) / (step @ step) / natural) if natural else 0.0
        else:
            complete = _reached(self._before, after, sides.start, sides.goal)
        changes = [np.abs(probe.predict(edited) - before).sum(1).mean() / 2 for probe, before in self._others]
        moved = np.median(_lengths(edited - self._clean))
        return StateCheckResult(
            complete,
            1 - float(np.mean(changes)) if changes else None,
            float(moved / self._between) if self._between else 0.0,
            float((self._far(edited) > self._limit).mean()),
        )


def _lengths(rows: Floats) -> Floats:
    return np.asarray(np.sqrt(np.einsum("nd,nd->n", rows, rows)))


def _reached(before: Floats, after: Floats, start: NDArray[Any], goal: NDArray[Any]) -> float:
    rows, n_classes = np.arange(len(goal)), before.shape[1]
    counts = np.bincount(start, minlength=n_classes)
    sums = np.bincount(start, before[rows, start], n_classes)
    wanted = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)[goal]
    return float(after[rows, goal].mean() / np.nanmean(wanted))


MOST_ROWS = 256
RANDOM_DRAWS, FEW_DRAWS = 64, 16
RANDOM, CONTROL = "random_subspace", "control_task"
CONTROLS_OF = {"latents": ("latents", "directions")}  # what replaces an intervention, displacing states as far

Numbers = dict[str, float]


def compared(
    bench: EditMeasurement, place: Place, names: Sequence[str], *, draws: int = RANDOM_DRAWS, swap: Effect | None = None
) -> dict[str, Numbers]:
    """Fit other interventions on F1 at a place, measure their effects on at most 256 rows of F3 of one rotation, and
    return the numbers by name.

    `random_subspace` (random draws, each of as many directions as the property has label columns) and `control_task`
    (LEACE fitted to labels shuffled within strata) are always measured, too; recipes of `random_subspace` in `names`
    are ignored, and so are interventions that cannot be made at this site.

    Args:
        bench: the experiment with its model.
        place: place of the edit.
        names: recipes of interventions such as `leace`, `inlp`, `mean_ablation`.
        draws: number of random subspaces.
        swap: effect of the class-mean swap at dose 1; None: measured where it is needed.

    Returns:
        By name: `rank`; `change`, root mean square change of the output in its SDs; `displacement`, of the states, in
        root mean square distances of two rows; `accuracy` of a linear probe fitted after the edit (R² of real values);
        of random subspaces the median and `change_high`, the 95th percentile; of others `above_random`, the share of
        draws that change the output less. Interventions that give states another value (`latents`) have, from all rows
        of all rotations, also what `shares` returns and, as `along`, the change along the natural contrast in SDs;
        random latents and random directions that move states as far are measured beside `latents`, of which
        `latent_N` is the share of the rotations in which latent N was chosen.

    References:
        Elazar, Ravfogel, Jacovi and Goldberg 2021, Amnesic Probing, §4.
    """
    found: dict[str, Numbers] = {}
    random = [_one(bench, place, RANDOM, seed=draw) for draw in range(draws)]
    changes = np.array([one["change"] for one in random])
    found[RANDOM] = _of_draws(random)
    for name in dict.fromkeys([*(n for n in names if n.split(":")[0] != RANDOM), CONTROL]):
        intervention = build("interventions", "leace" if name == CONTROL else name)
        if not intervention.edits(place.site):
            continue
        one = _one(bench, place, name, seed=0)
        found[name] = one | {"above_random": float((changes < one["change"]).mean())}
        if not intervention.erases:
            edits = fitted_edits(bench, place, intervention, name=name)
            found[name] |= shares(bench, place, edited_effect(bench, place, edits), swap) | chosen_latents(edits)
        for kind in CONTROLS_OF.get(name.split(":")[0], ()):
            controls = [_one(bench, place, f"{name},instead={kind}", seed=draw) for draw in range(FEW_DRAWS)]
            found[f"random {kind} for {name}"] = _of_draws(controls)
            along = np.array([abs(control["along"]) for control in controls])
            found[name][f"above_random_{kind}"] = float((along < abs(one["along"])).mean())
    return found


def _of_draws(draws: Sequence[Numbers]) -> Numbers:
    """Return the medians of random draws, and the 95th percentiles of what they change."""
    numbers = {"draws": float(len(draws)), "rank": draws[0]["rank"]}
    for name in ("change", "displacement", "along"):
        values = [abs(one[name]) for one in draws if name in one]
        if values:
            numbers[name] = float(np.median(values))
        if values and name != "displacement":
            numbers[f"{name}_high"] = float(np.quantile(values, 0.95))
    return numbers


def _one(bench: EditMeasurement, place: Place, name: str, *, seed: int) -> Numbers:
    e, states = bench.experiment, bench.states(place)
    f1, f2, f3 = bench.folds(0)
    sample = np.linspace(0, len(f3) - 1, min(MOST_ROWS, len(f3))).astype(np.int64)
    rows = f3[sample]
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
    if not intervention.erases:
        numbers["along"] = _along(bench.naturals[0], sample, change)
    if name == RANDOM or "instead=" in name:
        return numbers
    return numbers | {"accuracy": _readable(bench, edit, states, f2, f3)}


def _along(natural: NaturalContrast, sample: Ints, change: Floats) -> float:
    """Return the mean change of sampled rows along the natural contrast, in SDs."""
    whole = np.zeros((len(natural.f3), change.shape[1]))
    whole[sample] = change
    weights = natural.weights.weights
    return float(weights @ natural.along(whole) / weights[sample].sum() / (natural.spread or 1.0))


def _applied(bench: EditMeasurement, edit: Edit, states: NDArray[np.floating], rows: Ints) -> NDArray[np.floating]:
    e = bench.experiment
    goals = np.zeros_like(e.z)
    for k in range(3):
        goals[e.fold(k)] = bench.goals[k]
    return np.asarray(edit.apply(states[rows], targets_of(bench, rows), goals[rows]), states.dtype)


def _readable(bench: EditMeasurement, edit: Edit, states: NDArray[np.floating], f2: Ints, f3: Ints) -> float:
    """Return the held-out accuracy (R²) of a linear probe fitted on edited states."""
    e = bench.experiment
    train, test = (_applied(bench, edit, states, rows).astype(np.float64) for rows in (f2, f3))
    said = Discriminant(Moments.of(train, e.z[f2], e.n_classes)).predict(test)
    if e.n_classes:
        return float((said.argmax(1) == e.z[f3]).mean())
    return float(1 - ((said[:, 0] - e.z[f3]) ** 2).mean() / e.z[f3].var())
