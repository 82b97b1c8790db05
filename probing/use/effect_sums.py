"""EffectSums: sums of effects over three rotations of the folds; numbers that decide nothing may fail without harm."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.errors import ProbingError
from probing.results.use import UseCell
from probing.use.contrasts import FromTo
from probing.use.dependence import Dependence
from probing.use.row_weights import NaturalContrast

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass
class EffectSums:
    """Collects sums over rotations of one kind of edit at one place; n rows of the experiment.

    Attributes:
        tau, total, spread, size: by rotation: τ, T, s_c, C.
        influence, through_c, of_total: `(n,)` summed influence values: of τ with the contrast held, what the contrast
            adds, of T.
        u, u_influences: U by rotation, and its influence values `(n,)` with m° held.
        w, w_influences: the same of ⟨Δ, P m°⟩, P the inverse covariance of the clean behaviour, m° of all strata alike.
        w_own: by rotation, the same with its own mean changes for m°: their noise is in it squared.
        direction, of_direction: see `EditMeasurement.direction`.
        kl, flips: by rotation, of logits: mean KL(clean ‖ edited), share of other most probable answers.
        alike: by rotation, τ of states of rows of the same value, which is taken off.
        changes: by rotation, `(n, V)` of the edited rows.
        slopes: by rotation, derivatives of τ in the shift, `(n', D)` of sampled rows with these sides.
        rows: edited in all.
        is_single, dimensions: see `EditMeasurement`.
        dependence: what depends on what.
        exchanged: whether the influence of measured rows counts with the set that they exchanged states in.
    """

    dependence: Dependence
    tau: list[float] = field(default_factory=list)
    total: list[float] = field(default_factory=list)
    spread: list[float] = field(default_factory=list)
    size: list[float] = field(default_factory=list)
    u: list[float] = field(default_factory=list)
    u_influences: list[Floats] = field(default_factory=list)
    w: list[float] = field(default_factory=list)
    w_influences: list[Floats] = field(default_factory=list)
    w_own: list[float] = field(default_factory=list)
    direction: list[float] = field(default_factory=list)
    of_direction: Floats = field(default_factory=lambda: np.zeros(0))
    kl: list[float] = field(default_factory=list)
    flips: list[float] = field(default_factory=list)
    alike: list[float] = field(default_factory=list)
    changes: list[Floats] = field(default_factory=list)
    slopes: list[tuple[FromTo, Floats]] = field(default_factory=list)
    rows: int = 0
    is_single: bool = False
    dimensions: int = 1
    exchanged: bool = False

    def __post_init__(self) -> None:
        n = len(self.dependence.groups)
        self.influence, self.through_c, self.of_total = (np.zeros(n) for _ in range(3))

    def add(
        self, natural: NaturalContrast, changes: Floats, *, through_edit: tuple[Ints, Floats] | None = None
    ) -> None:
        """Add one rotation's τ of these changes, and what the rows that the edit was fitted on add."""
        along = natural.along(changes)
        value = float(natural.weights.weights @ along)
        self.tau.append(value)
        self.rows += len(changes)
        self.changes.append(changes)
        self.influence[natural.f3] += natural.weights.centred(along)
        if through_edit is not None:
            self.influence[through_edit[0]] += through_edit[1]
        self.through_c[natural.f2] += natural.through_contrast(changes, value)
        total, of_total = natural.total
        self.total.append(total)
        self.of_total += of_total
        self.spread.append(natural.spread)
        self.size.append(natural.size)

    def add_u(
        self, natural: NaturalContrast, changes: Floats, expected: Floats, through_edit: tuple[Ints, Floats] | None
    ) -> None:
        """Add one rotation's U of these changes against the expected ones."""
        value, influence = self._product(natural, changes, expected, through_edit)
        self.u.append(value)
        self.u_influences.append(influence)

    def add_w(
        self,
        natural: NaturalContrast,
        changes: Floats,
        expected: Floats,
        own: Floats,
        through_edit: tuple[Ints, Floats] | None,
    ) -> None:
        """Add one rotation's W: its changes against the expected ones times P, and against its own mean times P."""
        value, influence = self._product(natural, changes, expected, through_edit)
        self.w.append(value)
        self.w_influences.append(influence)
        self.w_own.append(float(natural.weights.weights @ np.einsum("nv,nv->n", changes, own)))

    def _product(
        self, natural: NaturalContrast, changes: Floats, expected: Floats, through_edit: tuple[Ints, Floats] | None
    ) -> tuple[float, Floats]:
        along = np.einsum("nv,nv->n", changes, expected)
        influence = np.zeros_like(self.influence)
        influence[natural.f3] += natural.weights.centred(along)
        if through_edit is not None:
            influence[through_edit[0]] += through_edit[1]
        return float(natural.weights.weights @ along), influence


def spared(what: str, cell: UseCell, measure: Callable[[UseCell], UseCell]) -> UseCell:
    """Return the cell with what `measure` adds to it. Where that fails, or gives numbers that are not finite, the cell
    stays without them, and a note says what is missing and why.

    Args:
        what: is measured, for the note.
        cell: with all that the verdict needs.
        measure: gives a cell with more descriptive numbers.
    """
    try:
        measured = measure(cell)
    except Exception as error:  # whatever it is: hours of work that decide the verdict are not lost to a number beside
        why = error.message if isinstance(error, ProbingError) else f"{type(error).__name__}: {error}"
        return replace(cell, notes=(*cell.notes, f"{what} not measured: {why}"))
    kept: UseCell = _finite(measured, cell)
    if kept == measured:
        return measured
    return replace(kept, notes=(*kept.notes, f"{what} not measured: numbers that are not finite"))


def _finite(value: Any, before: Any) -> Any:
    """Return a value without the numbers that are not finite, each of which stays as it was before."""
    if value is before or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, float):
        return None
    if is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in fields(value)]
        return replace(value, **{name: _finite(getattr(value, name), getattr(before, name)) for name in names})
    if isinstance(value, tuple):
        return tuple(one for one in value if _is_finite(one))
    return {name: one for name, one in value.items() if _is_finite(one)} if isinstance(value, dict) else value


def _is_finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    if isinstance(value, tuple):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)
