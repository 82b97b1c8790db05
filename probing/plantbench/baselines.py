"""Defines the rules of the literature, which infer whether a property is used. They answer for the same cells (a
property at a place) as the protocol of this package.

There are four kinds: `probe_accuracy` reads the accuracy of a probe, `attribution_patching` estimates an effect by
gradients, `amnesic_leace` and `amnesic_inlp` erase the property, and `fitted_direction` exchanges states along a
direction that is fitted to change the output.

None of them compares rows within strata only. A rule that compares two classes takes the first two if there are more,
and divides real values at their median. The thresholds of `probe_accuracy` and `attribution_patching` are fitted on
development cells (see `fitted`).

References:
    Elazar et al. 2021, Amnesic Probing. Nanda 2023, Attribution Patching. Geiger et al. 2024, Finding Alignments
    Between Interpretable Causal Variables and Distributed Neural Representations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax
from scipy.stats import ttest_1samp

from probing.contracts.intervention import Intervention, Targets
from probing.errors import DegenerateDesign, TooFewGroups
from probing.plantbench.case import Answer, Case, Cell, Said, Truth
from probing.plantbench.certifying import probe_accuracy
from probing.plantbench.scoring import Rule
from probing.results.use import UseResult
from probing.seeds import generator
from probing.use.contrasts import sums_by
from probing.use.effect_sums import behaviour, slopes
from probing.use.effects import UseOptions
from probing.use.interventions.inlp import Inlp
from probing.use.interventions.leace import Leace
from probing.use.measure import Property, measure_property
from probing.verdicts.judging import judge
from probing.verdicts.verdict import Criteria, Verdict, Word

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Statistic = Callable[[Case, Cell], tuple[float, float]]  # evidence of use, estimate of MF (NaN: none)

ERASED_ROWS = 1000  # that erasure is measured on
FITTED_ROWS, STEPS, RATE = 1024, 60, 0.05  # of the fitted direction
DRAWS, QUANTILE = 60, 0.95


@dataclass(frozen=True)
class Threshold:
    """Answers "used" if a statistic reaches a threshold, else "unused".

    Attributes:
        statistic: function `statistic(case, cell)` that returns a pair: evidence of use, and an estimate of the
            mediated fraction (NaN if it estimates none).
        threshold: the threshold, in the unit of the evidence.
    """

    statistic: Statistic
    threshold: float

    def __call__(self, case: Case) -> dict[Cell, Answer]:
        """Return an answer for every cell of a case, as the function `score` requires of a rule."""
        found = {cell: self.statistic(case, cell) for cell in case.cells}
        return {
            cell: Answer("used" if value >= self.threshold else "unused", score=value, effect=effect)
            for cell, (value, effect) in found.items()
        }


def fitted(statistics: Mapping[str, Statistic], suite: Iterable[tuple[Case, Truth]]) -> dict[str, Threshold]:
    """Return, by name, one rule for each statistic, with the threshold that has the highest balanced accuracy on the
    cells of a suite (pairs of a case and its truth).
    """
    values: dict[str, list[float]] = {name: [] for name in statistics}
    used: list[bool] = []
    for case, truth in suite:
        for cell in case.cells:
            label = truth.cells[cell].certificate.label
            if label == "band":
                continue
            used.append(label == "used")
            for name, statistic in statistics.items():
                values[name].append(statistic(case.blind(), cell)[0])
    is_used = np.array(used)
    return {name: Threshold(statistics[name], best_threshold(np.array(v), is_used)) for name, v in values.items()}


def best_threshold(values: Floats, used: NDArray[np.bool_]) -> float:
    """Return the threshold of `values` that separates used from other cells with the highest balanced accuracy (of
    several, the highest threshold): midway between two values, or beyond all of them. `used` is a bool array: whether
    the cell of each value is used.
    """
    order = np.unique(values)
    cuts = np.concatenate([[order[0]], (order[1:] + order[:-1]) / 2, [np.nextafter(order[-1], np.inf)]])
    right = [(values[used] >= cut).mean() + (values[~used] < cut).mean() for cut in cuts]
    return float(cuts[len(cuts) - 1 - int(np.argmax(right[::-1]))])


FIELD_RULES = ("probe_accuracy", "attribution_patching", "amnesic_leace", "amnesic_inlp", "fitted_direction")


def field_rules(suite: Iterable[tuple[Case, Truth]]) -> dict[str, Rule]:
    """Return all rules of the literature by name, with thresholds fitted on `suite`, which should not be the one that
    they are scored on.
    """
    statistics = {"probe_accuracy": accuracy_above_chance, "attribution_patching": attribution}
    rules: dict[str, Rule] = dict(fitted(statistics, suite))
    rules |= {"amnesic_leace": Amnesic(Leace()), "amnesic_inlp": Amnesic(Inlp()), "fitted_direction": FittedDirection()}
    return {name: rules[name] for name in FIELD_RULES}


def accuracy_above_chance(case: Case, cell: Cell) -> tuple[float, float]:
    """Return the evidence of the rule `probe_accuracy`: how accurate a linear probe is. It is (accuracy − chance) / (1
    − chance) with balanced accuracy, or R² for real values; the second number is NaN, since this rule estimates no
    effect.
    """
    z, k = case.labels[cell.property], case.n_classes[cell.property]
    order = generator(case.seed, "plantbench", "probe").permutation(int(case.groups.max()) + 1)[case.groups]
    rows = np.argsort(order, kind="stable")
    accuracy = probe_accuracy([case.instrument.states(cell.place)[rows]], z[rows], n_classes=k)
    chance = 1 / k if k else 0.0
    return (accuracy - chance) / (1 - chance), math.nan


def attribution(case: Case, cell: Cell) -> tuple[float, float]:
    """Return the evidence of the rule `attribution_patching`, a first-order estimate of the effect of exchanging class
    means: its size in SDs of the behaviour, and its share of the difference in behaviour between the classes.

    The estimate is ⟨g, D⟩, with D the difference of class means of the states, and g the mean gradient, with respect to
    the states, of the behaviour along its difference between the classes.
    """
    rows, z = two_classes(case, cell)
    h = case.instrument.states(cell.place)[rows]
    y = case.instrument.clean()[rows]
    contrast, shift = _difference(y, z), _difference(h.astype(np.float64), z)
    size = float(np.linalg.norm(contrast)) or 1.0
    along = np.broadcast_to(contrast / size, y.shape)
    (found,) = slopes(case.instrument, cell.place.site, cell.place.position, rows, h, along[None])
    moved = float((found @ shift).mean())
    return abs(moved) / math.sqrt(float(y.var(0).sum())), moved / size


@dataclass(frozen=True)
class Amnesic:
    """Answers "used" if erasing the property changes the behaviour more than 95 % of random erasures of equal rank do
    (amnesic probing).

    The change is the mean KL divergence KL(unedited ‖ erased) where the behaviour is logits, otherwise the mean squared
    change. Random erasures remove directions drawn from N(0, Σ), with Σ the covariance of the states.

    Attributes:
        eraser: the intervention that erases the property.
        draws: number of random erasures.
    """

    eraser: Intervention
    draws: int = DRAWS

    def __call__(self, case: Case) -> dict[Cell, Answer]:
        """Return an answer for every cell of a case, as the function `score` requires of a rule."""
        return {cell: self._answer(case, cell) for cell in case.cells}

    def _answer(self, case: Case, cell: Cell) -> Answer:
        z, k = case.labels[cell.property], case.n_classes[cell.property]
        h = case.instrument.states(cell.place)
        targets = Targets(z, np.zeros(len(z), np.int64), k)
        edit = self.eraser.fit(h, targets, seed=case.seed)
        rows = generator(case.seed, "plantbench", "erased").permutation(len(h))[:ERASED_ROWS]
        change = self._change(case, cell, rows, edit.apply(h[rows], targets.take(rows), z[rows]))
        mean, root = h.mean(0), _root(h)
        rng = generator(case.seed, "plantbench", "random subspaces")
        others = []
        for _ in range(self.draws):
            basis = np.linalg.qr(root @ rng.standard_normal((h.shape[1], max(1, edit.rank))))[0].astype(np.float32)
            others.append(self._change(case, cell, rows, h[rows] - (h[rows] - mean) @ basis @ basis.T))
        beyond = change > np.quantile(others, QUANTILE)
        p = (1 + sum(other >= change for other in others)) / (1 + self.draws)
        return Answer("used" if beyond else "unused", score=change / max(float(np.median(others)), 1e-30), p=p)

    def _change(self, case: Case, cell: Cell, rows: Ints, states: NDArray[np.floating]) -> float:
        given = {cell.place.position: np.asarray(states, np.float32)}
        edited, clean = behaviour(case.instrument, cell.place.site, rows, given), case.instrument.clean()[rows]
        if not case.instrument.logits:
            return float(((edited - clean) ** 2).sum(1).mean())
        before, after = log_softmax(clean, axis=1), log_softmax(edited, axis=1)
        return float((np.exp(before) * (before - after)).sum(1).mean())


@dataclass(frozen=True)
class FittedDirection:
    """Answers "used" if exchanging states along a fitted direction moves the output for held-out rows towards the other
    class (one-sided test at 5 %).

    One direction is fitted by gradient descent so that exchanging the coordinate along it between rows of two classes
    changes the behaviour by the class contrast; half of the groups are used for fitting, the others for measuring.

    Attributes:
        steps: number of steps of gradient descent.
    """

    steps: int = STEPS

    def __call__(self, case: Case) -> dict[Cell, Answer]:
        """Return an answer for every cell of a case, as the function `score` requires of a rule."""
        return {cell: self._answer(case, cell) for cell in case.cells}

    def _answer(self, case: Case, cell: Cell) -> Answer:
        rng = generator(case.seed, "plantbench", "direction")
        rows, z = two_classes(case, cell)
        half = rng.permutation(int(case.groups.max()) + 1)[case.groups[rows]] % 2
        contrast = _difference(case.instrument.clean()[rows[half == 0]], z[half == 0])
        direction = self._fit(case, cell, _donors(rows[half == 0], z[half == 0], rng), contrast)
        taken, donors, sign = _donors(rows[half == 1], z[half == 1], rng)
        h = torch.from_numpy(case.instrument.states(cell.place))
        with torch.no_grad():
            edited = _exchanged(h[taken], h[donors], direction)
        y = behaviour(case.instrument, cell.place.site, taken, {cell.place.position: edited.numpy()})
        size = float(contrast @ contrast) or 1.0
        moved = sign * ((y - case.instrument.clean()[taken]) @ contrast) / size
        p = float(ttest_1samp(moved, 0.0, alternative="greater").pvalue) if moved.std() > 0 else 1.0
        return Answer(
            "used" if p <= 1 - QUANTILE else "unused", score=float(moved.mean()), effect=float(moved.mean()), p=p
        )

    def _fit(self, case: Case, cell: Cell, pairs: tuple[Ints, Ints, Floats], contrast: Floats) -> torch.Tensor:
        taken, donors, sign = pairs
        h = torch.from_numpy(case.instrument.states(cell.place))
        clean = case.instrument.clean()[taken]
        wanted = torch.from_numpy((clean + sign[:, None] * contrast).astype(np.float32))
        start = generator(case.seed, "plantbench", "start").standard_normal(h.shape[1])
        direction = torch.from_numpy(start.astype(np.float32)).requires_grad_(True)
        optimiser = torch.optim.Adam([direction], lr=RATE)
        for _ in range(self.steps):
            given = {cell.place.position: _exchanged(h[taken], h[donors], direction)}
            loss = ((case.instrument.run_from(cell.place.site, taken, given) - wanted) ** 2).sum(1).mean()
            optimiser.zero_grad()
            if not loss.requires_grad:  # nothing of this place is read
                break
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        return direction.detach()


def two_classes(case: Case, cell: Cell) -> tuple[Ints, Ints]:
    """Return row numbers `(n,)` and a code 0 or 1 for each, `(n,)`: the rows of the first two classes with the code of
    their class; for real values all rows, with code 1 above the median.
    """
    z, k = case.labels[cell.property], case.n_classes[cell.property]
    if not k:
        return np.arange(len(z)), (z > np.median(z)).astype(np.int64)
    rows = np.flatnonzero(z < 2)
    return rows, np.asarray(z[rows], np.int64)


def _difference(values: Floats, z: Ints) -> Floats:
    """Return the mean of class 1 less the mean of class 0, `(P,)`."""
    means = sums_by(z, values, 2) / np.maximum(np.bincount(z, minlength=2), 1)[:, None]
    return np.asarray(means[1] - means[0])


def _donors(rows: Ints, z: Ints, rng: np.random.Generator) -> tuple[Ints, Ints, Floats]:
    """Return rows of both classes alike, for each a donor of the other class, and +1 where the donor is of class 1,
    else -1.
    """
    zero, one = (rng.permutation(rows[z == value]) for value in (0, 1))
    n = min(len(zero), len(one), FITTED_ROWS // 2)
    taken, donors = np.concatenate([zero[:n], one[:n]]), np.concatenate([one[:n], zero[:n]])
    return taken, donors, np.repeat([1.0, -1.0], n)


def _exchanged(h: torch.Tensor, donor: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    unit = direction / direction.norm()
    edited: torch.Tensor = h + ((donor - h) @ unit)[:, None] * unit
    return edited


def _root(h: NDArray[np.floating]) -> Floats:
    """Return the square root of the covariance, `(D, D)`."""
    values, vectors = np.linalg.eigh(np.cov(h.astype(np.float64), rowvar=False))
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0.0)))


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
    """Runs this package's protocol on a case: measures the effects of edits as `use` does, and answers for each cell
    (a property at a place) what the verdict on it says. The options, which stand for what other methods leave out, are
    those of `UseOptions`.

    Attributes:
        stratify: whether rows are compared only within strata.
        shared: whether one shift is used for all strata instead of one for each.
        folds: whether edits are fitted and measured on different rows.
    """

    stratify: bool = True
    shared: bool = False
    folds: bool = True

    def __call__(self, case: Case) -> dict[Cell, Answer]:
        """Return an answer for every cell of a case, as the function `score` requires of a rule."""
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
    """Return the answer that the verdict on a cell amounts to. `score` is the largest effect size of the two edits
    (along the natural contrast or as a whole), `effect` the mediated fraction of the interchange, and `p` the smallest
    adjusted p value of both edits.
    """
    cell = verdict.evidence
    if cell is None:
        return Answer(_SAID[verdict.word])
    edits = (cell.subspace, cell.whole)
    p = min(min(edit.p_adjusted, edit.whole_effect_p_adjusted) for edit in edits)
    return Answer(
        _SAID[verdict.word],
        score=max(max(abs(edit.effect_size), edit.whole_effect_size) for edit in edits),
        effect=math.nan if cell.whole.mediated_fraction is None else cell.whole.mediated_fraction,
        p=p,
        together="used" if verdict.word is Word.NOT_ALONE else "",
    )


RULES: Mapping[str, Callable[[Case], dict[Cell, Answer]]] = {
    "protocol": Protocol(),
    "protocol_without_strata": Protocol(stratify=False),
    "protocol_shared_shift": Protocol(shared=True),
    "protocol_without_folds": Protocol(folds=False),
}
