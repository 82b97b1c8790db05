"""EffectSums: sums over the three rotations of the folds, from which an effect is estimated. `spared`: computes numbers
that no verdict needs, and notes a failure instead of raising it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probing.contracts.edited_model import Instrument
from probing.errors import EditFailed, ProbingError
from probing.results.use import UseCell
from probing.use.contrasts import FromTo
from probing.use.decoding import Dependence
from probing.use.row_weights import NaturalContrast

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass
class EffectSums:
    """Collects, over rotations, the sums from which the effect of one edit at one place is estimated (n rows).

    Attributes:
        tau, total, spread, size: τ, T, s_c and C of each rotation (see `Effect`).
        influence, through_c, of_total: `(n,)` influence values summed over rotations: of τ with the contrast held
            fixed, of τ through the fitted contrast, and of T.
        u, u_influences: U of each rotation, and its influence values `(n,)` with m° held fixed.
        w, w_influences: the same for W = ⟨Δ, P m°⟩, with P the inverse covariance of the clean behaviour and m°
            averaged over strata.
        w_own: the same with the rotation's own mean changes for m°, so that their noise enters squared.
        direction, of_direction: see `EditMeasurement.direction`.
        kl, flips: for logits, mean KL(clean ‖ edited) and share of rows whose most probable answer changes, of each
            rotation.
        alike: τ of each rotation when states of rows of the *same* value are exchanged; the other numbers are net of
            it.
        changes: changes `(n, V)` of the edited rows of each rotation.
        slopes: for each rotation, sides of sampled rows and derivatives `(n', D)` of τ with respect to their shift.
        rows: number of edited rows in all rotations.
        is_single, dimensions: see `EditMeasurement`.
        dependence: dependence among rows.
        exchanged: whether rows exchanged states, so that their influence counts with their set.
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
        """Add one rotation to τ, the effect along the natural contrast: the changes `(n, V)` in behaviour, with the
        influence of the measured rows and of the rows that the edit was fitted on.
        """
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
        """Add one rotation of the folds to U, an estimate of the squared size of the whole effect: the weighted
        mean of ⟨change, expected change⟩ over rows, both `(n, V)`, where the expected one is from another rotation.
        """
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
        """Add the W of one rotation's changes, computed with P times the expected changes, and with P times their own
        mean.
        """
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
    """Return the cell with the numbers that `measure` adds. If `measure` fails or gives numbers that are not finite,
    the cell is returned without them, with a note that says what is missing and why.

    Args:
        what: words for what is measured, for the note.
        cell: the cell with all numbers that the verdict needs.
        measure: a function that adds descriptive numbers to a cell.
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


def behaviour(
    instrument: Instrument,
    site: str,
    rows: Ints,
    states: Mapping[str, NDArray[np.floating]],
    *,
    frozen_norms: bool = False,
) -> Floats:
    """Run rows with the given states `(n, D)` by position, and return the behaviour `(n, V)`.

    Raises:
        EditFailed: the behaviour is not finite.
    """
    parts, found = instrument.batches(rows), []
    with torch.no_grad():
        for given, part in _given(parts, states):
            y = instrument.run_from(site, rows[part], given, frozen_norms=frozen_norms)
            found.append(y.double().cpu().numpy())
    outputs: Floats = np.concatenate(found)[_back(parts)]
    if not np.isfinite(outputs).all():
        raise EditFailed(
            "an edit gives outputs that are not finite",
            needed="finite outputs",
            found="NaN or infinity",
            where=site,
            next_step="choose smaller doses, or compute in float32",
        )
    return outputs


def slopes(
    instrument: Instrument,
    site: str,
    position: str,
    rows: Ints,
    states: NDArray[np.floating],
    coefficients: Floats,
    *,
    frozen_norms: bool = False,
) -> Floats:
    """Return the derivatives of each row's ⟨coefficients, behaviour⟩ with respect to its states `(n, D)`, at those
    states.

    Args:
        coefficients: `(m, n, V)`, m sets of coefficients; rows are run once for all sets.

    Returns:
        The derivatives, `(m, n, D)`.
    """
    parts, found = instrument.batches(rows), []
    with torch.enable_grad():
        for given, part in _given(parts, {position: states}):
            edited = given[position].requires_grad_(True)
            y = instrument.run_from(site, rows[part], given, frozen_norms=frozen_norms)
            if not y.requires_grad:  # a place may lie where nothing is read any more
                found.append(np.zeros((len(coefficients), *edited.shape)))
                continue
            sets = torch.from_numpy(coefficients[:, part]).to(y.device, y.dtype)
            found.append(
                np.stack(
                    [
                        torch.autograd.grad((y * one).sum(), edited, retain_graph=True)[0].double().cpu().numpy()
                        for one in sets
                    ]
                )
            )
    return np.concatenate(found, axis=1)[:, _back(parts)]


def _given(parts: list[Ints], states: Mapping[str, NDArray[np.floating]]) -> Iterator[tuple[dict[str, Tensor], Ints]]:
    for part in parts:
        yield {k: torch.from_numpy(np.ascontiguousarray(v[part])) for k, v in states.items()}, part


def _back(parts: list[Ints]) -> Ints:
    return np.argsort(np.concatenate(parts), kind="stable")
