"""Activation patching puts states of one prompt into the run of another, at every site and position; attribution
patching estimates its effects from derivatives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from probing.contracts.edited_model import Instrument, Place
from probing.errors import BadParameter, DegenerateDesign
from probing.results.patching import PatchingError, PatchingResult

__all__ = ["PatchingError", "PatchingResult", "attribute", "patch"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def patch(
    instrument: Instrument,
    pairs: ArrayLike,
    *,
    direction: ArrayLike | None = None,
    places: Sequence[Place] | None = None,
    advance: Callable[[int, int], None] | None = None,
) -> PatchingResult:
    """Run the first prompt of each pair with the states of the second at one place after another (activation patching),
    and return the effects.

    A place of several pieces, such as a whole span, is exchanged piece by piece. With Δ the change in the first
    prompt's behaviour and d the second's behaviour minus the first's, the effect is the mean of ⟨Δ, d⟩/|d|, and its
    share Σ⟨Δ, d⟩ / Σ|d|². Along a direction u, the effect is the mean of ⟨Δ, u⟩ in the unit of u (for one logit minus
    another, the change of this difference), and the share uses the parts of Δ and d along u.

    Args:
        instrument: instrument whose rows contain both prompts of each pair.
        pairs: `(n, 2)` row numbers: the prompt that is run, and its donor.
        direction: direction of the behaviour to measure along, such as one logit minus another, `(V,)` or one per pair
            `(n, V)`; None: the whole behaviour.
        places: places to patch; None: all of the instrument.
        advance: called with two numbers: places done, and places in all.

    Raises:
        UnknownName: there is no such place.
        BadParameter: a pair is not of rows of the instrument, or its prompts have different numbers of pieces at a
            place.
        DegenerateDesign: the prompts of every pair give the same behaviour.

    References:
        Zhang and Nanda 2024, Towards Best Practices of Activation Patching. Heimersheim and Nanda 2024, How to Use and
        Interpret Activation Patching.
    """
    design = _Pairs.of(instrument, pairs, direction)
    chosen = tuple(places) if places is not None else instrument.places
    instrument.check_places(chosen)
    found = {}
    for place in chosen:
        with torch.no_grad():
            y = instrument.exchange(place, design.rows, design.donors)
        found[place] = np.einsum("nv,nv->n", y.double().cpu().numpy() - design.clean, design.aims)
        if advance is not None:
            advance(len(found), len(chosen))
    return design.told(found, "activation")


def attribute(
    instrument: Instrument,
    pairs: ArrayLike,
    *,
    direction: ArrayLike | None = None,
    places: Sequence[Place] | None = None,
) -> PatchingResult:
    """Estimate the effects of `patch` to first order, from gradients of the unedited run (attribution patching), and
    return them.

    ⟨Δ, d⟩ ≈ ⟨∂⟨y, d⟩/∂h, h(donor) − h⟩. Use it to find candidate places, not as a measurement: norms and saturated
    units make it inaccurate (`PatchingResult.error_of` compares it with `patch`). Arguments and errors are those of
    `patch`.

    References:
        Nanda 2023, Attribution Patching. Syed, Rager and Conmy 2023, Attribution Patching Outperforms Automated Circuit
        Discovery.
    """
    design = _Pairs.of(instrument, pairs, direction)
    chosen = tuple(places) if places is not None else instrument.places
    instrument.check_places(chosen)
    found = instrument.exchange_slopes(design.rows, design.donors, design.aims, chosen)
    return design.told(found, "attribution")


@dataclass(frozen=True, eq=False)
class _Pairs:
    """The n pairs to patch, and the difference to measure.

    Attributes:
        rows, donors: `(n,)`.
        clean: `(n, V)` behaviour of the rows.
        aims: `(n, V)` what changes are multiplied by.
        parts: `(n,)` the difference between donor and row is, along the aim, so many aims.
    """

    rows: Ints
    donors: Ints
    clean: Floats
    aims: Floats
    parts: Floats

    @classmethod
    def of(cls, instrument: Instrument, pairs: ArrayLike, direction: ArrayLike | None) -> _Pairs:
        both = np.asarray(pairs)
        is_sound = both.ndim == 2 and both.shape[1:] == (2,) and len(both) and both.dtype.kind in "iu"
        if not is_sound or both.min() < 0 or both.max() >= instrument.n_rows:
            raise BadParameter(
                "pairs are two rows each",
                needed=f"(n, 2) of 0 to {instrument.n_rows - 1}",
                found=f"shape {both.shape} of {both.dtype}",
            )
        clean = instrument.clean()
        rows, donors = both.astype(np.int64).T
        differences = clean[donors] - clean[rows]
        lengths = np.linalg.norm(differences, axis=1)
        aims = np.divide(differences, lengths[:, None], out=np.zeros_like(differences), where=lengths[:, None] > 0)
        if direction is not None:
            along = np.asarray(direction, dtype=np.float64)
            if along.shape not in (clean.shape[1:], differences.shape) or not along.any(axis=-1).all():
                raise BadParameter(
                    "a direction of the behaviour", needed=f"({clean.shape[1]},), not 0", found=f"shape {along.shape}"
                )
            aims = np.array(np.broadcast_to(along, differences.shape))
            lengths = np.einsum("nv,nv->n", differences, aims) / np.square(aims).sum(1)
        if not lengths.any():
            raise DegenerateDesign(
                "the prompts of every pair give the same behaviour",
                needed="a difference",
                found="none",
                next_step="choose other pairs, or another behaviour",
            )
        return cls(rows, donors, clean[rows], aims, lengths)

    def told(self, products: dict[Place, Floats], method: str) -> PatchingResult:
        """Return the result from ⟨Δ, aim⟩ `(n,)` by place."""
        sites = tuple(dict.fromkeys(place.site for place in products))
        positions = tuple(dict.fromkeys(place.position for place in products))
        whole = float(np.square(self.parts[:, None] * self.aims).sum())
        effect, share = np.full((2, len(sites), len(positions)), np.nan)
        for place, product in products.items():
            at = sites.index(place.site), positions.index(place.position)
            effect[at], share[at] = product.mean(), product @ self.parts / whole
        return PatchingResult(sites, positions, effect, share, len(self.rows), method)
