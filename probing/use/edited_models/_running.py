"""Runner: runs rows by a whole pass or from a site on with an edit there, by hooks; and exchanges of states."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from probing.contracts.behaviour import Behaviour, Ints, Outputs, Texts
from probing.contracts.edited_model import Place
from probing.errors import BadParameter, NoBehaviour
from probing.models.discovery.tracing import first_tensor, given_state, with_first, with_state
from probing.models.language_model import LanguageModel
from probing.models.reading.self_check import PADDING, HeldNorms
from probing.models.site import Site, select_sites
from probing.use.edited_models._reading import Pieces, block_input
from probing.use.edited_models._rows import Batch, Sequences

STREAMS = ("resid", "attn_out", "mlp_out", "heads")


def editable_sites(patterns: str | Sequence[str], model: LanguageModel) -> tuple[str, ...]:
    """Return the sites that can be edited, in the order of depth.

    Raises:
        UnknownSite: a pattern that matches nothing.
        BadParameter: another kind of site.
    """
    found = select_sites(patterns, model.sites)
    for site in found:
        if Site.parse(site).stream not in STREAMS:
            raise BadParameter(
                "this site is not edited",
                needed=", ".join(f"{name}.l" for name in STREAMS),
                found=site,
                next_step="resid.0 is what enters the first block",
            )
    return tuple(sorted(found, key=lambda site: (Site.parse(site).layer or 0, STREAMS.index(Site.parse(site).stream))))


def depth(model: LanguageModel) -> int:
    """Return the number of blocks, L."""
    return max(Site.parse(site).layer or 0 for site in model.sites if Site.parse(site).stream == "resid")


def output_layer(model: LanguageModel, behaviour: Behaviour) -> nn.Module | None:
    """Return the layer that makes logits of states; None where it need not be known.

    Raises:
        NoBehaviour: the behaviour needs a head that the model lacks.
    """
    network = model.suffix.model
    if behaviour.source == "states":
        return None
    is_language = model.suffix.head is not None
    if is_language != (behaviour.source == "logits"):
        raise NoBehaviour(
            "this model does not have the behaviour",
            where=model.name,
            needed="a language-model head" if behaviour.source == "logits" else "a head over whole texts",
            found=type(network).__name__,
            next_step="load it with another head, or use the behaviour `readout`",
        )
    get: Any = getattr(network, "get_output_embeddings", None)
    found = get() if is_language and get is not None else None
    return found if isinstance(found, nn.Module) else None


@contextmanager
def only(head: nn.Module | None, columns: Ints) -> Iterator[None]:
    """Within the block the output layer runs at one column of each row: logits `(B, 1, V)`."""
    if head is None:
        yield
        return
    rows = torch.arange(len(columns))

    def choose(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        given = args[0]
        if given.ndim != 3 or len(given) != len(columns):
            return None
        return (given[rows, torch.from_numpy(columns)][:, None], *args[1:])

    handle = head.register_forward_pre_hook(choose, prepend=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def changing(
    model: LanguageModel, site: str, change: Callable[[Tensor], Tensor], shape: tuple[int, int] | None = None
) -> Iterator[None]:
    """Within the block the states at a site become `change(states)`, of the same shape, `(B, T, D)`.

    Args:
        model: the model.
        site: where.
        change: what is done.
        shape: (B, T); None: as the states lie in the model.

    Raises:
        UnsupportedModel: the site was not met exactly once.
    """
    trunk = model.suffix.trunk
    module, fired = trunk.trunk.get_submodule(trunk.modules[site]), 0

    layout = trunk.layout_of(site)

    def changed(state: Tensor) -> Tensor:
        nonlocal fired
        fired += 1
        pieces = state if layout.is_plain or shape is None else layout.aligned(state, shape)
        assert pieces is not None  # for the reader of types: the site was read so
        return change(pieces) if pieces is state else layout.spread(change(pieces), state)

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        state = given_state(args, kwargs)
        assert state is not None  # for the reader of types: the site was read so
        return with_state(args, kwargs, changed(state))

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        state = first_tensor(output)
        assert isinstance(state, Tensor)  # for the reader of types: the site was read so
        return with_first(output, changed(state))

    handle = (
        module.register_forward_pre_hook(before, prepend=True, with_kwargs=True)
        if site in trunk.reads_input
        else module.register_forward_hook(after, prepend=True)
    )
    try:
        yield
    finally:
        handle.remove()
    if fired != 1:
        raise trunk.unsupported(f"site {site} was met {fired} times", "once in a forward pass")


@contextmanager
def adding(model: LanguageModel, site: str, delta: Tensor) -> Iterator[None]:
    """Within the block `delta` `(B, T, D)` is added at a site; gradients flow into it.

    Raises:
        UnsupportedModel: the site was not met exactly once.
    """
    shape = (delta.shape[0], delta.shape[1])
    with changing(model, site, lambda states: states + delta.reshape(states.shape), shape):
        yield


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
