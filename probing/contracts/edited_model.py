"""Defines `Instrument`, the base class of models whose states can be replaced while they run on fixed rows, and whose
behaviour (a chosen part of the output) is measured.
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
    """Base class that runs a model on N fixed rows (sentences or words of texts) and measures its behaviour, with or
    without other states at chosen places.

    A place is a site and perhaps a position. The state of a row at a place is one vector, even where it was pooled from
    several tokens; to replace it, the difference between new and original state is added at each of those tokens. Each
    row is edited in a run of its own, so an edit of one row does not reach another row of the same text.
    """

    @property
    @abstractmethod
    def places(self) -> tuple[Place, ...]:
        """The places that can be edited, from the first layer to the last."""

    @property
    @abstractmethod
    def n_rows(self) -> int:
        """Number of rows, N."""

    @abstractmethod
    def clean(self) -> NDArray[np.float64]:
        """Return the behaviour of the unedited model for all rows, V numbers each: an array `(N, V)`."""

    @abstractmethod
    def states(self, place: Place) -> NDArray[np.float32]:
        """Return the states `(N, D)` at a place.

        Raises:
            UnknownName: there is no such place.
        """

    @abstractmethod
    def run_from(
        self, site: str, rows: NDArray[np.int64], states: Mapping[str, Tensor], *, frozen_norms: bool = False
    ) -> Tensor:
        """Run n rows with replaced states at one site, and return their behaviour `(n, V)`. Gradients flow back to
        `states`.

        Args:
            site: the site that is edited.
            rows: `(n,)` row numbers; a row may occur several times.
            states: the new states `(n, D)` for each position; several positions are edited in one run.
            frozen_norms: whether later LayerNorms and RMSNorms divide by the scales of the unedited run.

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
        """Tokens whose logits are the behaviour, for each answer; an empty tuple if the behaviour does not consist of
        logits of single tokens.
        """
        return ()

    @property
    def doubts(self) -> tuple[str, ...]:
        """Reasons to doubt that the behaviour is measured correctly, each a sentence; an empty tuple if there
        are none.
        """
        return ()

    @property
    def has_norms(self) -> bool:
        """Whether the scales of later norms can be held fixed (`frozen_norms`)."""
        return False

    @property
    def offsets(self) -> NDArray[np.int64] | None:
        """Number of tokens before each row in its text, `(N,)`; None where it is the same for all rows."""
        return None

    def batches(self, rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Split the row numbers `rows` into batches, and return for each batch the indices of its rows in `rows`."""
        return np.array_split(np.arange(len(rows)), max(1, -(-len(rows) // 8192)))

    def slopes(self, rows: NDArray[np.int64], coefficients: NDArray[np.float64]) -> dict[Place, NDArray[np.float64]]:
        """Return, for each place, a gradient `(n, D)`: how a weighted sum of each row's behaviour changes with the
        row's state there, at the unedited states.

        Args:
            rows: `(n,)` row numbers.
            coefficients: `(n, V)` weights of the sum: for each row, one per number of the behaviour.
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
        """Run each of n rows (`rows`, row numbers `(n,)`) with its state at a place replaced by that of another row,
        its donor (`donors`, `(n,)`), and return the behaviour `(n, V)`. Where a state was pooled from several tokens,
        the states of these are replaced one by one.

        Raises:
            BadParameter: a row and its donor have different numbers of tokens there.
        """
        return self.run_from(place.site, rows, {place.position: torch.from_numpy(self.states(place)[donors])})

    def exchange_slopes(
        self,
        rows: NDArray[np.int64],
        donors: NDArray[np.int64],
        coefficients: NDArray[np.float64],
        places: Sequence[Place],
    ) -> dict[Place, NDArray[np.float64]]:
        """Return, for each place, a first-order estimate `(n,)`, from gradients, of how `exchange` with these rows and
        donors changes a weighted sum of each row's behaviour (`coefficients` are the weights, `(n, V)`). `places` are
        the places to estimate it for.
        """
        slopes = self.slopes(rows, coefficients)
        states = {place: self.states(place).astype(np.float64) for place in places}
        return {p: np.einsum("nd,nd->n", slopes[p], x[donors] - x[rows]) for p, x in states.items()}

    def check(self) -> None:
        """Check that edits work, before anything is measured: replacing states by themselves must leave the behaviour
        unchanged.

        Raises:
            EditFailed: the behaviour changes, or another check fails; the message says which.
        """
        rows = np.arange(min(self.n_rows, 32))
        clean = torch.from_numpy(self.clean()[rows])
        for place in self.places:
            states = torch.from_numpy(self.states(place)[rows])
            with torch.no_grad():
                again = self.run_from(place.site, rows, {place.position: states}).double()
            expect_equal(again, clean, "writing back the states that were read", str(place))

    def check_places(self, places: Sequence[Place]) -> None:
        """Check that the instrument has all the given places.

        Raises:
            UnknownName: it does not have one of them.
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
        what: name of the equality that is checked, to complete the sentence "… does not hold".
        where: the place or row, for the message.
        dtype: data type of the computation: differences up to 1e-5 of the scale are allowed in float32 and float64, up
            to 1e-2 in half precision.
        scale: magnitude that the tolerance is relative to; None means the largest expected magnitude.

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
