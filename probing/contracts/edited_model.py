"""Instrument: the contract of models whose states can be replaced at fixed rows, and whose behaviour (a chosen part of
the output) is measured. A *piece* is a token.
"""

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
    """Names the place of an edit: a site and one of the positions that each row has.

    Attributes:
        site: name of the site, such as `resid.3`.
        position: name of the position, such as `subject`; "" where rows have a single position.
    """

    site: str
    position: str = ""

    def __str__(self) -> str:
        return f"{self.site}@{self.position}" if self.position else self.site


class Instrument(ABC):
    """Runs a model on N fixed rows and measures its behaviour, with the states at chosen places replaced or not.

    The state of a row at a place is one vector, even where it was pooled from several pieces (tokens). To set another
    state, its difference from the clean state is added to each of those pieces. Each row is edited in a separate run,
    so an edit of one row does not reach another row of the same text.
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
        """Run n rows with replaced states at one site and return the behaviour `(n, V)`, differentiable in `states`.

        Args:
            site: the site that is edited.
            rows: `(n,)` row numbers; a row may occur several times.
            states: by position, `(n, D)` states to set there; several positions are edited in one run. Gradients flow
                to those that require them.
            frozen_norms: whether later LayerNorms and RMSNorms divide by the scales of the clean run.

        Raises:
            UnknownName: there is no such site or position.
            ReplayUnavailable: the scales of this model's norms cannot be frozen.
        """

    @property
    def logits(self) -> bool:
        """Whether the behaviour consists of logits of alternatives, so that its softmax gives probabilities."""
        return False

    @property
    def answers(self) -> Answers:
        """For each answer, the pieces (tokens) whose logits are the behaviour; () where the behaviour is not made of
        logits of single pieces.
        """
        return ()

    @property
    def doubts(self) -> tuple[str, ...]:
        """Sentences that give reasons to doubt that the behaviour is measured correctly; () for none."""
        return ()

    @property
    def has_norms(self) -> bool:
        """Whether the scales of later norms can be held fixed (`frozen_norms`)."""
        return False

    @property
    def offsets(self) -> NDArray[np.int64] | None:
        """Distance of each row from the beginning of its text, `(N,)`; None where it is the same for all rows."""
        return None

    def batches(self, rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Split the rows into batches and return the indices into `rows` of each."""
        return np.array_split(np.arange(len(rows)), max(1, -(-len(rows) // 8192)))

    def slopes(self, rows: NDArray[np.int64], coefficients: NDArray[np.float64]) -> dict[Place, NDArray[np.float64]]:
        """Return, for each place, the derivatives `(n, D)` of ⟨coefficients, behaviour⟩ of each row with respect to its
        state, at the clean states.

        Args:
            rows: `(n,)` row numbers.
            coefficients: `(n, V)` weights of the behaviour's dimensions.
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
        """Run each of n rows with its state at a place replaced by that of its donor, another row, and return the
        behaviour `(n, V)`. Where a state was pooled from several pieces (tokens), they are replaced one by one.

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
        """Return, for each place, the first-order effect of `exchange` on ⟨coefficients, behaviour⟩ of each row,
        `(n,)`.
        """
        slopes = self.slopes(rows, coefficients)
        states = {place: self.states(place).astype(np.float64) for place in places}
        return {p: np.einsum("nd,nd->n", slopes[p], x[donors] - x[rows]) for p, x in states.items()}

    def check(self) -> None:
        """Check that edits work, before anything is measured: writing back the clean states must leave the behaviour
        unchanged.

        Raises:
            EditFailed: the behaviour changes, or another identity does not hold; the message names it.
        """
        rows = np.arange(min(self.n_rows, 32))
        clean = torch.from_numpy(self.clean()[rows])
        for place in self.places:
            states = torch.from_numpy(self.states(place)[rows])
            with torch.no_grad():
                again = self.run_from(place.site, rows, {place.position: states}).double()
            expect_equal(again, clean, "writing back the states that were read", str(place))

    def check_places(self, places: Sequence[Place]) -> None:
        """Check that all given places are among those of this instrument.

        Raises:
            UnknownName: one of them is missing.
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
    """Check that two outputs are equal within the precision of the data type.

    Args:
        found, expected: the outputs to compare, of the same shape.
        what: name of the identity that is checked, to complete the sentence "… does not hold".
        where: the place or row, for the message.
        dtype: data type of the computation: differences up to 1e-5 of the scale are allowed in float32 and float64, up
            to 1e-2 in half precision.
        scale: magnitude that the tolerance is relative to; None: the largest expected magnitude.

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
