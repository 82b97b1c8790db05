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
from probing.results.use import Answers


@dataclass(frozen=True, order=True)
class Place:
    """The place of an edit: a site, and one of the positions that each row names.

    Attributes:
        site: `resid.3`.
        position: `subject`, `query`, …; "" where rows have one position only.
    """

    site: str
    position: str = ""

    def __str__(self) -> str:
        return f"{self.site}@{self.position}" if self.position else self.site


class Instrument(ABC):
    """A model and its behaviour on N fixed rows; it can be run again from a place on with other states there.

    The state of a row at a place is one vector, whatever number of pieces it was pooled from: what is given is put
    there by adding the difference to each of those pieces. Rows are edited one by one: an edit of one row is not seen
    by another of the same text.
    """

    @property
    @abstractmethod
    def places(self) -> tuple[Place, ...]:
        """The places that can be edited, in the order of depth."""

    @property
    @abstractmethod
    def n_rows(self) -> int:
        """Number of rows, N."""

    @abstractmethod
    def clean(self) -> NDArray[np.float64]:
        """Return the behaviour `(N, V)` of the unedited model."""

    @abstractmethod
    def states(self, place: Place) -> NDArray[np.float32]:
        """Return the states `(N, D)` at a place.

        Raises:
            UnknownName: no such place.
        """

    @abstractmethod
    def run_from(
        self, site: str, rows: NDArray[np.int64], states: Mapping[str, Tensor], *, frozen_norms: bool = False
    ) -> Tensor:
        """Return the behaviour `(n, V)` when n rows have other states at one site; it is differentiable in `states`.

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
        """Whether the behaviour consists of logits of alternatives, so that its softmax gives probabilities."""
        return False

    @property
    def answers(self) -> Answers:
        """The pieces whose logits are the behaviour, answer by answer; () where the behaviour is something else."""
        return ()

    @property
    def doubts(self) -> tuple[str, ...]:
        """Reasons to doubt the behaviour, as sentences."""
        return ()

    @property
    def has_norms(self) -> bool:
        """Whether the scales of later norms can be held fixed (`frozen_norms`)."""
        return False

    @property
    def offsets(self) -> NDArray[np.int64] | None:
        """How far into its text each row lies, `(N,)`; None where all rows are alike in this."""
        return None

    def batches(self, rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Return indices into `rows`, in parts that are well run at once."""
        return np.array_split(np.arange(len(rows)), max(1, -(-len(rows) // 8192)))

    def slopes(self, rows: NDArray[np.int64], coefficients: NDArray[np.float64]) -> dict[Place, NDArray[np.float64]]:
        """Return, by place, the derivatives `(n, D)` of each row's ⟨coefficients, behaviour⟩ in its states, at the
        clean states.

        Args:
            rows: `(n,)`.
            coefficients: `(n, V)`.
        """
        found: dict[Place, list[NDArray[np.float64]]] = {place: [] for place in self.places}
        parts = self.batches(rows)
        for site, part in ((site, part) for site in dict.fromkeys(p.site for p in self.places) for part in parts):
            here = [place for place in self.places if place.site == site]
            given = {p.position: torch.from_numpy(self.states(p)[rows[part]]).requires_grad_() for p in here}
            with torch.enable_grad():
                y = self.run_from(site, rows[part], given)
                aim = (y * torch.from_numpy(coefficients[part]).to(y.device, y.dtype)).sum()
            for place, slope in zip(here, torch.autograd.grad(aim, list(given.values())), strict=True):
                found[place].append(slope.double().cpu().numpy())
        back = np.argsort(np.concatenate(parts), kind="stable")
        return {place: np.concatenate(slopes)[back] for place, slopes in found.items()}

    def exchange(self, place: Place, rows: NDArray[np.int64], donors: NDArray[np.int64]) -> Tensor:
        """Return the behaviour `(n, V)` when each of n rows has at a place the state of its donor, another row. The
        exchange is piece by piece where the state was pooled from several.

        Raises:
            BadParameter: a row and its donor have different numbers of pieces there.
        """
        return self.run_from(place.site, rows, {place.position: torch.from_numpy(self.states(place)[donors])})

    def exchange_slopes(
        self,
        rows: NDArray[np.int64],
        donors: NDArray[np.int64],
        coefficients: NDArray[np.float64],
        places: Sequence[Place],
    ) -> dict[Place, NDArray[np.float64]]:
        """Return, by place, what `exchange` does to each row's ⟨coefficients, behaviour⟩ to first order, `(n,)`."""
        slopes = self.slopes(rows, coefficients)
        states = {place: self.states(place).astype(np.float64) for place in places}
        return {p: np.einsum("nd,nd->n", slopes[p], x[donors] - x[rows]) for p, x in states.items()}

    def check(self) -> None:
        """Prove that edits do what they should; called once, before anything is measured.

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
        """Refuse places that this instrument does not have.

        Raises:
            UnknownName: one of them is not here.
        """
        for place in places:
            if place not in self.places:
                raise unknown_name("place", str(place), [str(known) for known in self.places], error=UnknownName)


RunFrom = Callable[[str, NDArray[np.int64], Mapping[str, Tensor], bool], Tensor]


def expect_equal(
    found: Tensor,
    expected: Tensor,
    what: str,
    where: str,
    *,
    dtype: torch.dtype = torch.float32,
    scale: float | None = None,
) -> None:
    """Refuse an instrument whose outputs break an identity that they must meet.

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
            f"an identity does not hold: {what}",
            needed=f"a difference of at most {allowed:g} of the largest number",
            found=f"{relative:.2g}" if same else f"shape {tuple(found.shape)}, not {tuple(expected.shape)}",
            where=where,
            next_step="edits of this model cannot be trusted here; choose another model or place",
        )
