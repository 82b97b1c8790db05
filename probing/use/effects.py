"""Measures the effects of an edit at one place on the behaviour (the measured output): τ, T, U (docs/use.md) and their
influence values.

There are three rotations of the folds: in each, edits are fitted on the rows of fold F1, the natural contrast (the
difference in unedited behaviour between rows of two values of the property) on F2, and the effect is measured on F3;
each fold takes each role once.

With weights p over the edited rows, changes Δ of their behaviour, and c the natural contrast between start and goal in
the row's stratum, fitted on F2 (c' on F3):

    C = sqrt(Σ p |c|²)      τ = Σ p ⟨Δ, c⟩ / C      T = Σ p ⟨c', c⟩ / C      U = Σ p ⟨Δ, m°⟩

m° are the mean changes in the rotation before, in which F2 was measured under an edit fitted on F3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.contracts.edited_model import Instrument, Place
from probing.errors import BadParameter
from probing.seeds import child_seed, generator
from probing.use.contrasts import Averaged, Contrast, FromTo, contrast
from probing.use.decoding import Dependence
from probing.use.discriminant import FoldStates
from probing.use.effect_sums import behaviour, slopes
from probing.use.experiment import FOLDS, Experiment, goals
from probing.use.pairing import Exchanges, exchanges
from probing.use.row_weights import NaturalContrast

DOSES = (0.5, 1.0, 1.5, 2.0)
SLOPE_ROWS = 64


@dataclass(frozen=True)
class UseOptions:
    """Holds the options of `intervene`.

    Attributes:
        seed: seed of everything that is random.
        epsilon: smallest effect that counts, in standard deviations of the unedited model's output.
        doses: factors by which the class-mean shift, the difference between the mean states of two classes, is
            multiplied. The verdict is based on dose 1 or, if probes of the states edited by it read the new class too
            rarely, on the smallest larger dose at which they read it (if there is one).
        curve: whether to measure the effect at all doses, not only at the one that the verdict is based on.
        details: whether to measure how edits change other properties (selectivity) and, where there is an effect, how
            large it is with one shift for all rows and with the scales of later norms held fixed.
        null: whether to estimate, at the place of the largest effect, how much effects vary if labels are shuffled.
        deals: number of times that the measurement is repeated with another random division of the groups (sentences
            or documents) outside the measured fold into those that the shift is fitted on and those that the natural
            contrast is fitted on; a verdict that changes with the division becomes inconclusive.
        slope_rows: approximate number of rows of a fold for which gradients are computed, for standard errors; 0 means
            all.
        permutations: number of permutations of the labels for a test at the place of the largest effect; 0 means none.
        control_properties: number of random properties of word forms that are measured in the same way; 0 means none.
        comparisons: other interventions to report, such as `leace`; if there are any, random subspaces and a control
            task are added to them, and a `random_subspace` of your own is ignored.
        stratify: whether rows are compared only within strata, sets of rows that agree in all covariates. False, only
            to show how much this changes, compares all rows.
        shared: True, only to show how much this changes, uses one shift for all strata instead of one for each.
        folds: whether edits are fitted and measured on different rows; False only shows how much this changes.
    """

    seed: int = 0
    epsilon: float = 0.1
    doses: tuple[float, ...] = DOSES
    curve: bool = True
    details: bool = True
    null: bool = True
    deals: int = 4
    slope_rows: int = SLOPE_ROWS
    permutations: int = 0
    control_properties: int = 0
    comparisons: tuple[str, ...] = ()
    stratify: bool = True
    shared: bool = False
    folds: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.epsilon < 2:
            raise BadParameter("epsilon out of range", needed="0 < ε < 2 SD", found=str(self.epsilon))
        if not self.doses or min(self.doses) <= 0:
            raise BadParameter("doses must be positive", needed="such as 0.5, 1, 1.5, 2", found=str(self.doses))
        if min(self.permutations, self.control_properties, self.slope_rows, self.deals) < 0:
            raise BadParameter("a number of draws or rows is negative", needed="0 or more", found="less")


Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
SMALLEST_VARIANCE = 1e-12  # of the largest, of outputs in float32: a direction of less is rounding


@dataclass(frozen=True, eq=False)
class AtPlace:
    """Holds the states and shifts at one place; only those of the place used last are held in memory.

    Attributes:
        states: states by fold.
        shifts: for each rotation, how states differ between values of the property, fitted on F1.
        swapped: by dose, the edited states that `EditMeasurement.swapped_states` returned.
    """

    states: FoldStates
    shifts: list[Contrast]
    swapped: dict[float, list[Floats]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class EditMeasurement:
    """Runs the edits of one experiment with one instrument (a model whose states can be replaced) and measures their
    effects, in three rotations of the folds F1, F2, F3 (see the module). An instance is named `bench` in the code.

    Attributes:
        y: `(n, V)` behaviour of the experiment's rows in the unedited model.
        seed: seed of goals, pairs and samples.
        shared, folded: the options `shared` and `folds` of `UseOptions`.
        slope_rows: see `UseOptions`.
    """

    instrument: Instrument
    experiment: Experiment
    y: Floats
    seed: int
    shared: bool = False
    folded: bool = True
    slope_rows: int = SLOPE_ROWS
    _at: dict[Place, AtPlace] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(
        cls,
        instrument: Instrument,
        experiment: Experiment,
        *,
        seed: int,
        shared: bool = False,
        folded: bool = True,
        slope_rows: int = SLOPE_ROWS,
    ) -> EditMeasurement:
        """Run the unedited model, and return an `EditMeasurement` for the rows of the experiment.

        Args:
            instrument: model on fixed rows of text, whose states can be replaced.
            experiment: the rows to edit, with their strata and folds.
            seed: seed of goals, pairs and samples.
            shared, folded, slope_rows: see the attributes of the class.
        """
        return cls(instrument, experiment, instrument.clean()[experiment.rows], seed, shared, folded, slope_rows)

    def fold_numbers(self, r: int) -> tuple[int, int, int]:
        """Return the numbers of the folds F1, F2 and F3 in rotation r."""
        first, second = (r, r + 1) if self.folded else (r + 2, r + 2)
        return first % FOLDS, second % FOLDS, (r + 2) % FOLDS

    def folds(self, r: int) -> tuple[Ints, Ints, Ints]:
        """Return the rows of F1, F2, F3 in rotation r."""
        f1, f2, f3 = (self.experiment.fold(k) for k in self.fold_numbers(r))
        return f1, f2, f3

    @cached_property
    def goals(self) -> list[NDArray[Any]]:
        """Goal of each row, by fold: the class (or value) that the edit is to give it."""
        return [goals(self.experiment, self.experiment.fold(k), seed=self.seed) for k in range(FOLDS)]

    def sides(self, fold: int) -> FromTo:
        """Return, for every row of a fold, its value of the property before (start) and after (goal) the edit, and its
        stratum.
        """
        e, rows = self.experiment, self.experiment.fold(fold)
        return FromTo(e.strata[rows], e.z[rows], self.goals[fold % FOLDS])

    @cached_property
    def exchanges(self) -> list[Exchanges]:
        """The exchanges of states in each fold: for every edited row, the row whose state it is given."""
        e = self.experiment
        offsets = None if self.instrument.offsets is None else self.instrument.offsets[e.rows]
        return [exchanges(e, e.fold(k), seed=child_seed(self.seed, "pairs", k), offsets=offsets) for k in range(FOLDS)]

    @cached_property
    def dependence(self) -> Dependence:
        """Dependence between rows, for standard errors: rows of one group are dependent."""
        return Dependence(self.experiment.groups)

    @cached_property
    def dependence_of_exchanges(self) -> Dependence:
        """Dependence between rows, for standard errors: within a group, and within a set that exchanges states."""
        sets, first = np.full(len(self.y), -1, np.int64), 0
        for one in self.exchanges:
            sets[one.own] = first + one.sets
            first += int(one.sets.max(initial=-1)) + 1
        e = self.experiment
        return Dependence(e.groups, sets, e.strata * FOLDS + e.folds)

    @cached_property
    def mean(self) -> Floats:
        """Mean of the unedited behaviour, `(V,)`."""
        return np.asarray(self.y.mean(0))

    @cached_property
    def spread(self) -> float:
        """Standard deviation of the whole unedited behaviour, s_Y: the root of the summed variances of its columns."""
        return float(np.sqrt(((self.y - self.mean) ** 2).sum() / len(self.y)))

    @cached_property
    def _contrasts(self) -> list[Contrast]:
        """Contrasts of the clean behaviour, by fold."""
        e, folds = self.experiment, [self.experiment.fold(k) for k in range(FOLDS)]
        return [contrast(self.y[rows], e.z[rows], e.strata[rows], n_classes=e.n_classes) for rows in folds]

    def _natural(self, r: int, f3: Ints, sides: FromTo, *, exchanged: bool = False) -> NaturalContrast:
        _, k2, k3 = self.fold_numbers(r)
        fitted, measured = self._contrasts[k2], self._contrasts[k3]
        f2, sign = self.experiment.fold(k2), self.sign_of(fitted)
        return NaturalContrast(self.experiment, self.y, self.mean, f2, f3, sides, fitted, measured, sign, exchanged)

    @cached_property
    def dimensions(self) -> int:
        """Number of directions in which the behaviour varies."""
        lengths = np.linalg.svd(self.y - self.mean, compute_uv=False)
        return int((lengths > 1e-6 * lengths[0]).sum())

    @cached_property
    def precision(self) -> Floats:
        """Pseudo-inverse P `(V, V)` of the covariance of the unedited behaviour: m' P m is the square of the largest
        number of SDs that a change m amounts to along any direction in which the behaviour varies.
        """
        centred = self.y - self.mean
        return np.asarray(
            np.linalg.pinv(centred.T @ centred / len(centred), rcond=SMALLEST_VARIANCE, hermitian=True), np.float64
        )

    @cached_property
    def _by_spread(self) -> EditMeasurement:
        """The experiment's behaviour times the root of its covariance: angles between such vectors are those between
        effects in SDs.
        """
        centred = self.y - self.mean
        values, vectors = np.linalg.eigh(centred.T @ centred / len(centred))
        bench = replace(self, y=self.y @ (vectors * np.sqrt(np.maximum(values, 0.0)) @ vectors.T))
        vars(bench).update({name: of for name, of in vars(self).items() if name in ("goals", "exchanges")})  # of rows
        return bench

    def direction(self, *, exchanged: bool) -> tuple[list[float], Floats]:
        """Estimate the squared cosine of the angle between the fitted and the true natural contrast, and return it for
        each rotation, with its influence values.

        Since effects are in SDs, which differ between directions, it is the angle between vectors Σ^½ c, with Σ the
        covariance of the unedited behaviour.

        Returns:
            T / C of Σ^½ y by rotation, and its influence values `(n,)` summed over rotations.
        """
        bench, values, influence = self._by_spread, [], np.zeros(len(self.y))
        for natural in bench.exchanged_naturals if exchanged else bench.naturals:
            total, of_total = natural.total
            values.append(total / natural.size)
            influence += of_total / natural.size
        return values, influence

    @property
    def is_single(self) -> bool:
        """Whether there is only one stratum with one pair of classes, and the behaviour varies in one dimension only,
        so that the contrasts of all folds lie on one line.
        """
        return self.experiment.n_cells == 1 and self.dimensions == 1

    def sign_of(self, fitted: Contrast) -> float:
        """Return -1 if there is a single contrast and it points the other way than in the first fold, else 1.

        If the natural contrast is near zero, its sign differs between folds, and effects of an edit would cancel.
        """
        if not self.is_single:
            return 1.0
        there = FromTo(np.zeros(1, np.int64), np.zeros(1, np.int64), np.ones(1, np.int64))
        same = float((fitted.difference(there) * self._contrasts[0].difference(there)).sum())
        return -1.0 if same < 0 else 1.0

    @cached_property
    def naturals(self) -> list[NaturalContrast]:
        """Natural contrast (see the module) for each rotation of the folds, if all rows of fold F3 are edited."""
        return [self._natural(r, self.folds(r)[2], self.sides(r + 2)) for r in range(FOLDS)]

    @cached_property
    def exchanged_naturals(self) -> list[NaturalContrast]:
        """Natural contrast for each rotation of the folds, if only the rows of F3 that exchange states are edited."""
        e, found = self.experiment, []
        for r in range(FOLDS):
            one = self.exchanges[(r + 2) % FOLDS]
            sides = FromTo(e.strata[one.own], e.z[one.own], e.z[one.donor])
            found.append(self._natural(r, one.own, sides, exchanged=True))
        return found

    def states(self, place: Place) -> NDArray[np.floating]:
        """Return the states `(n, D)` of the experiment's rows at a place."""
        return self.instrument.states(place)[self.experiment.rows]

    def dtype(self, place: Place) -> np.dtype[np.floating]:
        """Return the data type of the states at a place."""
        return self.instrument.states(place).dtype

    def shift(self, states: NDArray[np.floating], fitted_on: Ints) -> Contrast:
        """Fit the differences of states `(n, D)` between values of the property on the rows `fitted_on`, and return
        them as a contrast.
        """
        return self._shift(states[fitted_on], fitted_on)

    def _shift(self, values: NDArray[np.floating], rows: Ints) -> Contrast:
        e = self.experiment
        fitted = contrast(values, e.z[rows], e.strata[rows], n_classes=e.n_classes)
        return Averaged(fitted, e.shares) if self.shared else fitted

    def at(self, place: Place) -> AtPlace:
        """Return the states and shifts of a place; they are cached until another place is asked for."""
        if place not in self._at:
            self._at.clear()
            states = FoldStates.of(self.experiment, self.states(place))
            numbers = (self.fold_numbers(r)[0] for r in range(FOLDS))
            self._at[place] = AtPlace(states, [self._shift(states.blocks[k], self.experiment.fold(k)) for k in numbers])
        return self._at[place]

    def swapped_states(self, place: Place, dose: float) -> list[Floats]:
        """Return, for each rotation, the states `(n, D)` of the rows of F3 after the class-mean swap with the shifts
        fitted on F1, times `dose`. Those of the last dose are cached.
        """
        at = self.at(place)
        if dose not in at.swapped:
            at.swapped.clear()
            at.swapped[dose] = [
                at.states.blocks[self.fold_numbers(r)[2]] + dose * shift.difference(natural.sides)
                for r, (shift, natural) in enumerate(zip(at.shifts, self.naturals, strict=True))
            ]
        return at.swapped[dose]

    def run(self, place: Place, rows: Ints, states: NDArray[np.floating], *, frozen_norms: bool = False) -> Floats:
        """Run n `rows` of the experiment with these states at a place, and return the changes in behaviour `(n, V)`."""
        return self.run_many(place.site, rows, {place.position: states}, frozen_norms=frozen_norms)

    def run_folds(
        self,
        site: str,
        rows: Sequence[Ints],
        states: Mapping[str, Sequence[NDArray[np.floating]]],
        *,
        frozen_norms: bool = False,
    ) -> list[Floats]:
        """Run the rows of several folds at once, as `run_many` does, and return the changes of each fold."""
        joined = {position: np.concatenate(parts) for position, parts in states.items()}
        changes = self.run_many(site, np.concatenate(rows), joined, frozen_norms=frozen_norms)
        return np.split(changes, np.cumsum([len(part) for part in rows])[:-1])

    def run_many(
        self, site: str, rows: Ints, states: Mapping[str, NDArray[np.floating]], *, frozen_norms: bool = False
    ) -> Floats:
        """Run n `rows` with these states `(n, D)` at several positions of a site together, and return the changes in
        behaviour `(n, V)`.
        """
        y = behaviour(self.instrument, site, self.experiment.rows[rows], states, frozen_norms=frozen_norms)
        return y - self.y[rows]

    @cached_property
    def samples(self) -> list[tuple[Ints, Floats]]:
        """Indices and weights, for each rotation, of the edited rows for which gradients (slopes) are computed."""
        return [
            natural.weights.sample(self.slope_rows, generator(self.seed, "use", "slopes", r))
            for r, natural in enumerate(self.naturals)
        ]

    def sampled_slopes(
        self,
        place: Place,
        edited: Sequence[NDArray[np.floating]],
        aims: Sequence[Sequence[Floats]],
        *,
        frozen_norms: bool = False,
    ) -> list[tuple[FromTo, Floats]]:
        """Return, for each rotation, start and goal of sampled rows of F3, and the gradients `(m, n', D)` of m weighted
        sums of their behaviour (the weights are the `aims`) with respect to their states.
        """
        each = list(zip(self.naturals, self.samples, edited, aims, strict=True))
        coefficients = [np.stack([p[:, None] * aim[few] for aim in own]) for _, (few, p), _, own in each]
        rows = np.concatenate([self.experiment.rows[natural.f3[few]] for natural, (few, _), _, _ in each])
        states = np.concatenate([h[few] for _, (few, _), h, _ in each])
        found = slopes(
            self.instrument,
            place.site,
            place.position,
            rows,
            states,
            np.concatenate(coefficients, axis=1),
            frozen_norms=frozen_norms,
        )
        parts = np.split(found, np.cumsum([len(few) for few, _ in self.samples])[:-1], axis=1)
        sides = (natural.sides.take(few) for natural, (few, _), _, _ in each)
        return list(zip(sides, parts, strict=True))
