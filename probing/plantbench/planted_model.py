"""PlantedModel: a model whose states can be read and replaced and whose norms can be frozen. PromptInstrument: an
instrument for N prompts of such a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from probing.contracts.edited_model import Instrument, Place
from probing.errors import UnknownName, unknown_name
from probing.plantbench.prompts import POSITIONS, Language, Prompts

BATCH = 256  # prompts at once: thousands take longer

_BLOCKS = ("transformer.h", "model.layers", "bert.encoder.layer", "encoder.layer")


@dataclass(frozen=True, eq=False)
class PlantedModel:
    """A model that gives an answer to every prompt.

    Attributes:
        model: a GPT-2, Llama or BERT model with its head.
        language: language of its prompts.
        pooled: weights `(D, K)` of a readout from the mean of the last states, for a model without a head; else None.
    """

    model: PreTrainedModel
    language: Language
    pooled: Tensor | None = None

    @cached_property
    def blocks(self) -> Sequence[nn.Module]:
        """The blocks, in order."""
        for path in _BLOCKS:
            try:
                return list(self.model.get_submodule(path).children())
            except AttributeError:
                continue
        raise unknown_name("family", type(self.model).__name__, _BLOCKS)

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites resid.0 … resid.L."""
        return tuple(f"resid.{layer}" for layer in range(len(self.blocks) + 1))

    @property
    def norms(self) -> list[nn.Module]:
        """Every LayerNorm and RMSNorm of the model."""
        return [m for m in self.model.modules() if isinstance(m, nn.LayerNorm) or type(m).__name__.endswith("RMSNorm")]

    def answers(self, ids: Tensor) -> Tensor:
        """Run prompts `(B, T)` and return the answer logits at the query minus their mean, `(B, K)`; for a model
        without a head, the readout `pooled`.
        """
        if self.pooled is not None:
            states: Tensor = self.model(input_ids=ids).last_hidden_state
            return states.mean(1) @ self.pooled
        first = self.language.first_answer
        with _hooks([self.model.base_model], _at_the_query):
            logits = self.model(input_ids=ids).logits[:, -1, first : first + self.language.answers]
        return logits - logits.mean(1, keepdim=True)  # type: ignore[no-any-return]

    @contextmanager
    def reading(self, layers: Sequence[int]) -> Iterator[list[Tensor]]:
        """Within the block, each forward pass appends the states `(B, T, D)` at `resid.l`, for the l of `layers` in the
        order of the blocks, to the yielded list.
        """
        states: list[Tensor] = []
        with ExitStack() as stack:
            for layer in layers:
                stack.enter_context(self._hooked(layer, lambda state: states.append(state)))
            yield states

    def states_at(self, prompts: Prompts, places: Sequence[Place]) -> dict[Place, NDArray[np.float32]]:
        """Return the states `(N, D)` of many prompts at each place."""
        layers = sorted({self.sites.index(place.site) for place in places})
        found: dict[Place, list[Tensor]] = {place: [] for place in places}
        for start in range(0, len(prompts), BATCH):
            some = prompts.take(slice(start, start + BATCH))
            with torch.no_grad(), self.reading(layers) as states, suppress(_Enough), self._hooked(layers[-1], _stop):
                self.answers(torch.from_numpy(some.ids))
            for place in places:
                state = states[layers.index(self.sites.index(place.site))]
                found[place].append(state[np.arange(len(some)), some.position(place.position)])
        return {place: torch.cat(parts).numpy() for place, parts in found.items()}

    @contextmanager
    def setting(self, layer: int, given: Sequence[tuple[Tensor, Tensor]]) -> Iterator[None]:
        """Within the block, replace the states at `resid.layer` (a do-intervention): `given` has pairs of positions
        `(B,)` and the states `(B, D)` to set there.
        """

        def replaced(state: Tensor) -> Tensor:
            rows = torch.arange(len(state))
            state = state.clone()
            for position, value in given:
                state[rows, position] = value
            return state

        with self._hooked(layer, replaced):
            yield

    @contextmanager
    def _hooked(self, layer: int, hook: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
        def before(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            found = hook(args[0])
            return None if found is None else (found, *args[1:])

        def after(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
            found = hook(output[0] if isinstance(output, tuple) else output)
            return None if found is None else (found, *output[1:]) if isinstance(output, tuple) else found

        if layer < len(self.blocks):
            handle = self.blocks[layer].register_forward_pre_hook(before)
        else:
            handle = self.blocks[-1].register_forward_hook(after)
        try:
            yield
        finally:
            handle.remove()

    @cached_property
    def _forms(self) -> list[int | None]:
        """Length of the tuple that each block returns; None: it returns a tensor."""
        found: list[int | None] = []

        def note(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
            found.append(len(output) if isinstance(output, tuple) else None)

        with torch.no_grad(), _hooks(self.blocks, note):
            self.model(input_ids=torch.ones((1, 1), dtype=torch.long))
        return found

    @contextmanager
    def starting(self, layer: int, states: Tensor) -> Iterator[None]:
        """Within the block, forward passes begin at `resid.layer` with `states` `(B, T, D)`; earlier blocks are
        skipped.
        """
        bypassed = list(zip(self.blocks, self._forms, strict=True))[:layer]
        try:
            for block, form in bypassed:
                block.__dict__["forward"] = _bypass(form, states)
            with self._hooked(layer, lambda _: states):
                yield
        finally:
            for block, _ in bypassed:
                block.__dict__.pop("forward", None)

    @contextmanager
    def with_norms_of(self, ids: Tensor) -> Iterator[None]:
        """Within the block, freeze the scales of all norms: each divides by the scale that it had in a clean pass of
        the prompts `ids`, whatever its input is now.
        """
        held: dict[nn.Module, Tensor] = {}

        def note(module: nn.Module, args: tuple[Any, ...], _: Any) -> None:
            held[module] = _scale(module, args[0])

        with torch.no_grad(), _hooks(self.norms, note):
            self.answers(ids)

        def hold(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            bias = getattr(module, "bias", None)
            shift = torch.zeros(()) if bias is None else bias
            return (output - shift) * (_scale(module, args[0]) / held[module]) + shift

        with _hooks(self.norms, hold):
            yield


class _Enough(Exception):
    """Ends a forward pass of which no later state is asked for."""


def _stop(_: Tensor) -> None:
    raise _Enough


def _at_the_query(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
    """Cut the states to the last position, where alone the head is run."""
    output["last_hidden_state"] = output["last_hidden_state"][:, -1:]
    return output


def _bypass(form: int | None, states: Tensor) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        return states if form is None else (states, *[None] * (form - 1))

    return forward


def _scale(module: nn.Module, x: Tensor) -> Tensor:
    """Return what the norm divides by, `(B, T, 1)`."""
    if isinstance(module, nn.LayerNorm):
        return (x.var(-1, keepdim=True, unbiased=False) + module.eps).sqrt()
    epsilon = float(module.variance_epsilon)  # type: ignore[arg-type]
    return (x.square().mean(-1, keepdim=True) + epsilon).sqrt()


@contextmanager
def _hooks(modules: Sequence[nn.Module], hook: Callable[..., Any]) -> Iterator[None]:
    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_hook(hook).remove)
        yield


class PromptInstrument(Instrument):
    """An instrument for N prompts of a planted model, all of one length. It works on piece ids, without a tokenizer.

    Args:
        planted: the model, in evaluation mode.
        prompts: the rows.
        places: pairs (site, position) to read; None means all.
    """

    def __init__(self, planted: PlantedModel, prompts: Prompts, *, places: Sequence[Place] | None = None) -> None:
        self._planted, self._prompts = planted, prompts
        every = [Place(site, position) for site in planted.sites for position in POSITIONS]
        self._places = tuple(every if places is None else places)
        self._ids = torch.from_numpy(prompts.ids)
        self._clean, self._whole = self._read()

    def _read(self) -> tuple[NDArray[np.float64], dict[int, Tensor]]:
        """Return the behaviour, and the states `(N, T, D)` by layer."""
        layers = sorted({self._layer(place.site) for place in self._places})
        clean: list[Tensor] = []
        found: dict[int, list[Tensor]] = {layer: [] for layer in layers}
        for start in range(0, len(self._ids), BATCH):
            with torch.no_grad(), self._planted.reading(layers) as states:
                clean.append(self._planted.answers(self._ids[start : start + BATCH]))
            for layer, state in zip(layers, states, strict=True):
                found[layer].append(state)
        y = torch.cat(clean).numpy().astype(np.float64)
        return y, {layer: torch.cat(parts) for layer, parts in found.items()}

    def _layer(self, site: str) -> int:
        if site not in self._planted.sites:
            raise unknown_name("site", site, self._planted.sites, error=UnknownName)
        return self._planted.sites.index(site)

    @property
    def places(self) -> tuple[Place, ...]:
        return self._places

    @property
    def n_rows(self) -> int:
        return len(self._prompts)

    @property
    def logits(self) -> bool:
        return self._planted.pooled is None

    @property
    def has_norms(self) -> bool:
        return True

    @property
    def offsets(self) -> NDArray[np.int64]:
        return self._prompts.subject

    def clean(self) -> NDArray[np.float64]:
        return self._clean

    def states(self, place: Place) -> NDArray[np.float32]:
        self.check_places([place])
        at = torch.from_numpy(self._prompts.position(place.position))
        return self._whole[self._layer(place.site)][torch.arange(self.n_rows), at].numpy()

    def run_from(
        self, site: str, rows: NDArray[np.int64], states: Mapping[str, Tensor], *, frozen_norms: bool = False
    ) -> Tensor:
        layer = self._layer(site)
        for position in states:
            self.check_places([Place(site, position)])
        parts = []
        for start in range(0, len(rows), BATCH):
            some = rows[start : start + BATCH]
            ids, whole = self._ids[some], self._whole[layer][some].clone()
            for position, value in states.items():
                at = torch.from_numpy(self._prompts.position(position)[some])
                whole[torch.arange(len(some)), at] = value[start : start + BATCH]
            with ExitStack() as stack:
                if frozen_norms:
                    stack.enter_context(self._planted.with_norms_of(ids))
                stack.enter_context(self._planted.starting(layer, whole))
                parts.append(self._planted.answers(ids))
        return torch.cat(parts)
