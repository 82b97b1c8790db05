"""Runner: rows of a model run by a whole pass, or from a site on with an edit there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probing.contracts.behaviour import Behaviour, Outputs, Texts
from probing.contracts.edited_model import Place
from probing.errors import BadParameter
from probing.models.language_model import LanguageModel
from probing.models.reading.held_norms import PADDING, HeldNorms
from probing.models.site import Site
from probing.use.edited_models._hooks import adding, depth, only, output_layer
from probing.use.edited_models._reading import Pieces, block_input
from probing.use.edited_models._sequences import Batch, Sequences

Ints = NDArray[np.int64]


class Runner:
    """Runs a model over rows.

    Attributes:
        model: the model.
        texts: the rows.
        sequences: their examples, with states of block inputs.
        norms: of the model.
        read: `(N,)` pieces whose logits are read; None: something else is.
        dtype: the compute dtype.
    """

    def __init__(self, model: LanguageModel, texts: Texts, sequences: Sequences, behaviour: Behaviour) -> None:
        self.model, self.texts, self.sequences = model, texts, sequences
        self.norms = HeldNorms(model.suffix.model)
        self.source = behaviour.source
        self._head = output_layer(model, behaviour)
        self.read = behaviour.pieces(texts)
        self.dtype: torch.dtype = getattr(torch, model.dtype)
        self._final = "final_norm" if "final_norm" in model.sites else f"resid.{depth(model)}"
        self._scales: dict[str, Tensor] | None = None

    def batch(self, rows: Ints) -> Batch:
        """Return the examples of the rows."""
        return self.sequences.batch(self.texts.example[rows])

    def outputs(
        self,
        rows: Ints,
        batch: Batch,
        site: str | None = None,
        delta: Tensor | None = None,
        *,
        frozen_norms: bool = False,
        states: Tensor | None = None,
        read: Ints | None = None,
    ) -> Outputs:
        """Return the outputs of the model.

        Args:
            rows: `(B,)`.
            batch: of their examples.
            site: None: a whole pass; else the pass begins at the input of the site's block.
            delta: `(B, T, D)` added at the site; None: nothing.
            frozen_norms: hold norms at their clean scales.
            states: `(B, T, D)` block input instead of that stored.
            read: `(B,)` pieces whose logits are read instead of the rows' own.
        """
        own = None if self.read is None else (self.read[rows] if read is None else read) + batch.start
        with ExitStack() as stack:
            if own is not None:
                stack.enter_context(only(self._head, own))
            wanted = [self._final] if self.source == "states" else []
            output, found = self.run(stack, batch, site, delta, wanted, states=states, frozen_norms=frozen_norms)
        return self._told(output, found, batch, own)

    def run(
        self,
        stack: ExitStack,
        batch: Batch,
        site: str | None,
        delta: Tensor | None,
        wanted: list[str],
        *,
        states: Tensor | None = None,
        frozen_norms: bool = False,
    ) -> tuple[Any, Mapping[str, Tensor]]:
        """Run one pass, and return its output and the states `(B, T, D)` at the sites wanted; hooks are closed with the
        stack.
        """
        if frozen_norms:
            clean = {name: self.sequences.at(flat, batch) for name, flat in self._clean_scales().items()}
            stack.enter_context(self.norms.held(clean))
        if site is None:
            return self.model.suffix.run(batch.inputs, wanted)
        base = block_input(site)
        if states is None:
            states = self.sequences.at(self.sequences.states[base], batch).to(self.dtype)
        if delta is not None and site == base:
            states = states + delta
        elif delta is not None:
            stack.enter_context(adding(self.model, site, delta))
        return self.model.suffix.run(batch.inputs, wanted, site=base, states=states)

    def with_shifts(self, rows: Ints, batch: Batch, sites: Sequence[str]) -> tuple[Outputs, dict[str, Tensor]]:
        """Run one pass, and return outputs and for each site a zero shift `(B, T, D)` added there, for gradients of the
        states.
        """
        first = min(self.sequences.states, key=lambda name: Site.parse(name).order)
        shape, device = batch.inputs.ids.shape, batch.inputs.ids.device
        shifts = {
            site: torch.zeros((*shape, self.model.width(site)), dtype=self.dtype, device=device, requires_grad=True)
            for site in sites
        }
        with ExitStack() as stack, torch.enable_grad():
            for site, shift in shifts.items():
                stack.enter_context(adding(self.model, site, shift))
            states = self.sequences.at(self.sequences.states[first], batch).to(self.dtype)
            return self.outputs(rows, batch, first, states=states), shifts

    @property
    def deepest(self) -> str:
        """Last site whose states are kept."""
        return max(self.sequences.states, key=lambda name: Site.parse(name).order)

    def clean(self) -> Iterator[Outputs]:
        """Yield the outputs of all rows in order, from the deepest states kept on."""
        longest = int(self.sequences.lengths[self.texts.example].max())
        size = max(1, self.sequences.tokens_per_batch // longest)
        for start in range(0, len(self.texts.example), size):
            rows = np.arange(start, min(start + size, len(self.texts.example)))
            with torch.no_grad():
                found = self.outputs(rows, self.batch(rows), self.deepest)
            yield found

    def _told(self, output: Any, found: Mapping[str, Tensor], batch: Batch, own: Ints | None) -> Outputs:
        content, real = ~self.sequences.at(self.sequences.special, batch), batch.inputs.mask.bool()
        if self.source == "states":
            return Outputs(found[self._final].masked_fill(~real[..., None], 0.0), content, real)
        values = self.model.suffix.logits(output)
        if own is not None:
            column = own if values.shape[1] == real.shape[1] else np.zeros_like(own)
            values = values[np.arange(len(own)), column]
        return Outputs(values, content, real)

    def _clean_scales(self) -> dict[str, Tensor]:
        """Return the scales of every norm, `(P + 1, …)`, from one clean pass over all examples."""
        if self._scales is None:
            self.norms.check()

            def scales(batch: Batch) -> Mapping[str, Tensor]:
                with self.norms.recorded() as found, torch.no_grad():
                    self.model.suffix.run(batch.inputs)
                return found

            self._scales = self.sequences.gather(scales, PADDING)
        return self._scales


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
