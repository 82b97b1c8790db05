"""Instrument: the contract of the use stage. N rows of a model whose states can be exchanged, and its behaviour."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probing.errors import EditFailed, UnknownName, unknown_name


@dataclass(frozen=True, order=True)
class Place:
    """Where an edit happens: a site, and which of the positions that each row names.

    Attributes:
        site: `resid.3`.
        position: `subject`, `query`, …; "" where rows have one position only.
    """

    site: str
    position: str = ""

    def __str__(self) -> str:
        return f"{self.site}@{self.position}" if self.position else self.site


class Instrument(ABC):
    """A model and its behaviour on N fixed rows, run again from a place on with other states there.

    The state of a row at a place is one vector, whatever number of pieces it was pooled from: what is given is put
    there by adding the difference to each of those pieces. Rows are edited one by one: an edit of one row is not seen
    by another of the same text.
    """

    @property
    @abstractmethod
    def places(self) -> tuple[Place, ...]:
        """In the order of depth."""

    @property
    @abstractmethod
    def n_rows(self) -> int:
        """N."""

    @abstractmethod
    def clean(self) -> NDArray[np.float64]:
        """The behaviour `(N, V)` of the model as it is."""

    @abstractmethod
    def states(self, place: Place) -> NDArray[np.float32]:
        """States `(N, D)` at a place.

        Raises:
            UnknownName: no such place.
        """

    @abstractmethod
    def run_from(
        self, site: str, rows: NDArray[np.int64], states: Mapping[str, Tensor], *, frozen_norms: bool = False
    ) -> Tensor:
        """The behaviour `(n, V)`, differentiable in `states`, when n rows have other states at one site.

        Args:
            site: of the edit.
            rows: `(n,)` rows, any number of times each.
            states: `(n, D)` by position; several are edited together. Gradients flow where they ask for them.
            frozen_norms: later LayerNorm and RMSNorm scales are held at their clean values.

        Raises:
            UnknownName: no such site or position.
            ReplayUnavailable: scales cannot be held.
        """

    @property
    def logits(self) -> bool:
        """Whether the behaviour is logits of alternatives, of which a softmax gives probabilities."""
        return False

    @property
    def has_norms(self) -> bool:
        """Whether scales of later norms can be held (`frozen_norms`)."""
        return False

    @property
    def offsets(self) -> NDArray[np.int64] | None:
        """`(N,)` how far into its text each row lies; None: all alike."""
        return None

    def batches(self, rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Indices into `rows`, in parts that are well run at once."""
        return np.array_split(np.arange(len(rows)), max(1, -(-len(rows) // 8192)))

    def check(self) -> None:
        """Prove that edits do what they say; once, before anything is measured.

        Raises:
            EditFailed: which identity does not hold.
        """
        rows = np.arange(min(self.n_rows, 32))
        clean = torch.from_numpy(self.clean()[rows])
        for place in self.places:
            states = torch.from_numpy(self.states(place)[rows])
            with torch.no_grad():
                again = self.run_from(place.site, rows, {place.position: states}).double()
            expect_equal(again, clean, "writing back the states that were read", str(place))

    def check_places(self, places: Sequence[Place]) -> None:
        """
        Raises:
            UnknownName: one of them is not here.
        """
        for place in places:
            if place not in self.places:
                raise unknown_name("place", str(place), [str(known) for known in self.places], error=UnknownName)


RunFrom = Callable[[str, NDArray[np.int64], Mapping[str, Tensor], bool], Tensor]


def expect_equal(
    found: Tensor, expected: Tensor, what: str, where: str, *, dtype: torch.dtype = torch.float32,
    scale: float | None = None,
) -> None:  # fmt: skip
    """Refuse an instrument whose outputs are not what an identity says.

    Args:
        found, expected: of one shape.
        what: the identity, as it ends the sentence "… does not hold".
        where: place, or row.
        dtype: what was computed in: float32 and float64 may differ by 1e-5 of the scale, half precision by 1e-2.
        scale: None: the largest expected number.

    Raises:
        EditFailed: they differ by more, or are not finite.
    """
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    allowed = 1e-5 if dtype in (torch.float32, torch.float64) else 1e-2
    size = float(expected.abs().max()) if scale is None and expected.numel() else scale or 0.0
    same = found.shape == expected.shape
    worst = float((found - expected).abs().max()) if same and found.numel() else 0.0
    if not same or not worst <= allowed * size:
        relative = worst / size if size else worst
        raise EditFailed(
            f"an identity does not hold: {what}", needed=f"a difference of at most {allowed:g} of the largest number",
            found=f"{relative:.2g}" if same else f"shape {tuple(found.shape)}, not {tuple(expected.shape)}",
            where=where, next_step="edits of this model cannot be trusted here; choose another model or place",
        )  # fmt: skip
