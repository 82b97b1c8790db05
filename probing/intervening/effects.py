"""Effects of an edit at one place: τ, T, U and their influence values, over three rotations of the folds.

Rows of fold F1 fit what is put in, F2 the contrast in behaviour, F3 is measured. With weights p over the edited rows,
changes Δ, and c the natural contrast between start and goal in the row's stratum, fitted on F2 (c' on F3):

    C = sqrt(Σ p |c|²)      τ = Σ p ⟨Δ, c⟩ / C      T = Σ p ⟨c', c⟩ / C      U = Σ p ⟨Δ, m°⟩

m° are the mean changes of the rotation before: measured on F2 under what was fitted on F3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.instrument import Instrument, Place
from probing.intervening.contrasts import Averaged, Contrast, Sides, contrast
from probing.intervening.experiment import FOLDS, Experiment, goals
from probing.intervening.natural import Natural
from probing.intervening.options import SLOPE_ROWS
from probing.intervening.pairing import reciprocal_pairs
from probing.intervening.responding import behaviour, slopes
from probing.seeds import child_seed, generator

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass
class Tally:
    """Sums over rotations of one kind of edit at one place; n rows.

    Attributes:
        tau, total, spread: by rotation: τ, T, s_c.
        influence, through_c, of_total: `(n,)` summed influence values: of τ with the contrast held, what the contrast
            adds, of T.
        u, u_influences: U by rotation, and its influence values `(n,)` with m° held.
        kl, flips: by rotation, of logits: mean KL(clean ‖ edited), share of other most probable answers.
        rows: edited in all.
        pairs: `(m, 2)` rows that exchanged states, if they did.
    """

    n: int
    tau: list[float] = field(default_factory=list)
    total: list[float] = field(default_factory=list)
    spread: list[float] = field(default_factory=list)
    u: list[float] = field(default_factory=list)
    u_influences: list[Floats] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    flips: list[float] = field(default_factory=list)
    rows: int = 0
    pairs: Ints | None = None

    def __post_init__(self) -> None:
        self.influence, self.through_c, self.of_total = (np.zeros(self.n) for _ in range(3))

    def add(self, natural: Natural, changes: Floats, *, through_edit: tuple[Ints, Floats] | None = None) -> None:
        """One rotation: τ of these changes, and what the rows that the edit was fitted on add."""
        along = natural.along(changes)
        value = float(natural.weights.weights @ along)
        self.tau.append(value)
        self.rows += len(changes)
        self.influence[natural.f3] += natural.weights.centred(along)
        if through_edit is not None:
            self.influence[through_edit[0]] += through_edit[1]
        self.through_c[natural.f2] += natural.through_contrast(changes, value)
        total, of_total = natural.total
        self.total.append(total)
        self.of_total += of_total
        self.spread.append(natural.spread)

    def add_u(
        self, natural: Natural, changes: Floats, expected: Floats, through_edit: tuple[Ints, Floats] | None
    ) -> None:
        """One rotation: U of these changes against the expected ones."""
        along = np.einsum("nv,nv->n", changes, expected)
        self.u.append(float(natural.weights.weights @ along))
        influence = np.zeros(self.n)
        influence[natural.f3] += natural.weights.centred(along)
        if through_edit is not None:
            influence[through_edit[0]] += through_edit[1]
        self.u_influences.append(influence)


@dataclass(frozen=True, eq=False)
class Bench:
    """One experiment on one instrument.

    Attributes:
        y: `(n, V)` clean behaviour of the experiment's rows.
        seed: of goals, pairs and samples.
        shared: one shift for all strata, for comparison.
        folded: False: one fold fits and is measured, for comparison.
        slope_rows: see `UseOptions`.
    """

    instrument: Instrument
    experiment: Experiment
    y: Floats
    seed: int
    shared: bool = False
    folded: bool = True
    slope_rows: int = SLOPE_ROWS
    _shifts: dict[Place, list[Contrast]] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(
        cls, instrument: Instrument, experiment: Experiment, *, seed: int, shared: bool = False, folded: bool = True,
        slope_rows: int = SLOPE_ROWS,
    ) -> Bench:  # fmt: skip
        """With the instrument's clean behaviour."""
        return cls(instrument, experiment, instrument.clean()[experiment.rows], seed, shared, folded, slope_rows)

    def folds(self, r: int) -> tuple[Ints, Ints, Ints]:
        """Rows of F1, F2, F3 in rotation r."""
        if not self.folded:
            return self.experiment.fold(r + 2), self.experiment.fold(r + 2), self.experiment.fold(r + 2)
        return self.experiment.fold(r), self.experiment.fold(r + 1), self.experiment.fold(r + 2)

    @cached_property
    def goals(self) -> list[NDArray[Any]]:
        """By fold, what its rows are edited to."""
        return [goals(self.experiment, self.experiment.fold(k), seed=self.seed) for k in range(FOLDS)]

    def sides(self, fold: int) -> Sides:
        """Of all rows of a fold."""
        e, rows = self.experiment, self.experiment.fold(fold)
        return Sides(e.strata[rows], e.z[rows], self.goals[fold % FOLDS])

    @cached_property
    def pairs(self) -> list[Ints]:
        """By fold, rows that exchange states."""
        e = self.experiment
        offsets = None if self.instrument.offsets is None else self.instrument.offsets[e.rows]
        return [
            reciprocal_pairs(e, e.fold(k), seed=child_seed(self.seed, "pairs", k), offsets=offsets)
            for k in range(FOLDS)
        ]

    @cached_property
    def naturals(self) -> list[Natural]:
        """By rotation, for edits of all rows of F3."""
        found = []
        for r in range(FOLDS):
            _, f2, f3 = self.folds(r)
            found.append(Natural(self.experiment, self.y, f2, f3, self.sides(r + 2)))
        return found

    @cached_property
    def paired_naturals(self) -> list[Natural]:
        """By rotation, for rows of F3 that exchange states."""
        found = []
        for r in range(FOLDS):
            f2, f3 = self.folds(r)[1], self.pairs[(r + 2) % FOLDS].T.reshape(-1)
            found.append(Natural(self.experiment, self.y, f2, f3, self._paired_sides(r + 2)))
        return found

    def _paired_sides(self, fold: int) -> Sides:
        e, pairs = self.experiment, self.pairs[fold % FOLDS]
        own, partner = pairs.T.reshape(-1), pairs[:, ::-1].T.reshape(-1)
        return Sides(e.strata[own], e.z[own], e.z[partner])

    def states(self, place: Place) -> NDArray[np.floating]:
        """`(n, D)` of the experiment's rows."""
        return self.instrument.states(place)[self.experiment.rows]

    def shift(self, states: NDArray[np.floating], fitted_on: Ints) -> Contrast:
        """How states differ between values, fitted on these rows."""
        e = self.experiment
        fitted = contrast(states[fitted_on], e.z[fitted_on], e.strata[fitted_on], n_classes=e.n_classes)
        return Averaged(fitted, e.shares) if self.shared else fitted

    def shifts(self, place: Place) -> list[Contrast]:
        """By rotation, fitted on F1; those of one place are kept until another is asked for."""
        if place not in self._shifts:
            self._shifts.clear()
            states = self.states(place)
            self._shifts[place] = [self.shift(states, self.folds(r)[0]) for r in range(FOLDS)]
        return self._shifts[place]

    def run(self, place: Place, rows: Ints, states: NDArray[np.floating], *, frozen_norms: bool = False) -> Floats:
        """Changes `(n, V)` in behaviour when rows of the experiment have these states."""
        return self.run_many(place.site, rows, {place.position: states}, frozen_norms=frozen_norms)

    def run_folds(
        self, site: str, rows: Sequence[Ints], states: Mapping[str, Sequence[NDArray[np.floating]]], *,
        frozen_norms: bool = False,
    ) -> list[Floats]:  # fmt: skip
        """As `run_many`, of the rows of several folds in one go."""
        joined = {position: np.concatenate(parts) for position, parts in states.items()}
        changes = self.run_many(site, np.concatenate(rows), joined, frozen_norms=frozen_norms)
        return np.split(changes, np.cumsum([len(part) for part in rows])[:-1])

    def run_many(
        self, site: str, rows: Ints, states: Mapping[str, NDArray[np.floating]], *, frozen_norms: bool = False
    ) -> Floats:
        """As `run`, at several positions together."""
        y = behaviour(self.instrument, site, self.experiment.rows[rows], states, frozen_norms=frozen_norms)
        return y - self.y[rows]

    @cached_property
    def samples(self) -> list[tuple[Ints, Floats]]:
        """By rotation, which of the edited rows slopes are taken of, and their weights."""
        return [
            natural.weights.sample(self.slope_rows, generator(self.seed, "use", "slopes", r))
            for r, natural in enumerate(self.naturals)
        ]

    def through_edit(
        self, place: Place, r: int, shift: Contrast, edited: NDArray[np.floating], aims: Sequence[Floats], *,
        frozen_norms: bool = False,
    ) -> list[Floats]:  # fmt: skip
        """What the rows that a shift was fitted on add to Σ p ⟨aim, behaviour⟩, for each of several aims `(n, V)`.

        Args:
            place: of the edit.
            r: rotation.
            shift: fitted on F1.
            edited: `(n, D)` states of F3.
            aims: directions of behaviour, by row of F3.
            frozen_norms: later norms are held.
        """
        sides, given = self.sampled_slopes(place, r, edited, aims, frozen_norms=frozen_norms)
        return [shift.influence(sides, one) for one in given]

    def sampled_slopes(
        self, place: Place, r: int, edited: NDArray[np.floating], aims: Sequence[Floats], *,
        frozen_norms: bool = False,
    ) -> tuple[Sides, Floats]:  # fmt: skip
        """Sides of the sampled rows of F3, and `(m, n', D)` slopes of Σ p ⟨aim, behaviour⟩ in their states."""
        natural, (few, weights) = self.naturals[r], self.samples[r]
        coefficients = np.stack([weights[:, None] * aim[few] for aim in aims])
        rows = self.experiment.rows[natural.f3[few]]
        found = slopes(self.instrument, place.site, place.position, rows, edited[few], coefficients,
                       frozen_norms=frozen_norms)  # fmt: skip
        return natural.sides.take(few), found
