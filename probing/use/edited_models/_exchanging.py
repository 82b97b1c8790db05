"""Exchanges: put states of one row into another piece by piece, for rows that cover as many pieces."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probing.contracts.edited_model import Place
from probing.errors import BadParameter
from probing.use.edited_models._reading import Pieces
from probing.use.edited_models._sequences import Batch

Ints = NDArray[np.int64]


class Exchanges:
    """The pieces and states that an `Exchange` needs, by place.

    Args:
        pieces: of the rows, by position.
        states: `(N, D)` by place.
        read: reads the states of all pieces of some places, which costs a pass: only where rows have several.
    """

    def __init__(
        self,
        pieces: Mapping[str, Pieces],
        states: Mapping[Place, Tensor],
        read: Callable[[list[Place]], Mapping[Place, Tensor]],
    ) -> None:
        self._pieces, self._states, self._read = pieces, states, read
        self._several: Mapping[Place, Tensor] | None = None

    def at(self, place: Place) -> Exchange:
        """Return the exchange at one place."""
        pieces = self._pieces[place.position]
        if pieces.are_single:
            return Exchange(pieces, self._states[place])
        if self._several is None:
            self._several = self._read([p for p in self._states if not self._pieces[p.position].are_single])
        return Exchange(pieces, self._several[place])


class Exchange:
    """The pieces of N rows at one position, and the states `(M, D)` of these pieces at one site."""

    def __init__(self, pieces: Pieces, states: Tensor) -> None:
        self._pieces, self._states = pieces, states

    def check(self, place: Place, rows: Ints, donors: Ints) -> None:
        """Refuse rows and donors that do not match.

        Raises:
            BadParameter: a row and its donor cover different numbers of pieces.
        """
        check_sizes(place.position, self._pieces.sizes(rows), self._pieces.sizes(donors))

    def apart(self, rows: Ints, donors: Ints) -> Tensor:
        """Return the donors' states less the rows' own, at the pieces of the rows one after the other, `(m, D)`."""
        own, other = (torch.from_numpy(self._pieces.ends_to_end(of)) for of in (rows, donors))
        return self._states[other] - self._states[own]

    def shift(self, rows: Ints, donors: Ints, batch: Batch) -> Tensor:
        """Return a shift `(B, T, D)` that puts the donors' states there when it is added."""
        which, piece = self._pieces.of(rows)
        apart = self.apart(rows, donors).to(batch.inputs.ids.device)
        shift = apart.new_zeros((*batch.inputs.ids.shape, apart.shape[1]))
        at = (torch.from_numpy(which).to(shift.device), torch.from_numpy(piece + batch.start[which]).to(shift.device))
        return shift.index_put(at, apart)


def check_sizes(position: str, rows: Ints, donors: Ints) -> None:
    """Refuse to exchange, piece by piece, spans of different numbers of pieces.

    Raises:
        BadParameter: naming the first pair.
    """
    unequal = np.flatnonzero(rows != donors)
    if len(unequal):
        first = unequal[0]
        raise BadParameter(
            f"{position!r} has not equally many pieces in both prompts of a pair, and is exchanged piece by piece",
            needed="as many pieces in the one as in the other",
            found=f"{len(unequal)} of {len(rows)} pairs, such as pair {first + 1}: {rows[first]} and {donors[first]}",
            next_step=f"patch one piece of it: {position}.first or {position}.last",
        )
