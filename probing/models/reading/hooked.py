"""Reads a module by forward hooks: a site is the output (or input) of an inner module that runs once per pass. A
*piece* is a token.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from probing.errors import NonFiniteStates, UnknownSite, UnsupportedModel, unknown_name
from probing.models.cpu_speed import bound_kernel_caches
from probing.models.discovery.tracing import Layout, first_tensor, given_state
from probing.models.site import Site


class HookedModule(ABC):
    """Base class of the adapters, which read the states of a model at its sites.

    Attributes:
        model: the whole model.
        trunk: the part of the model that is run to get states.
        family: name of the model's family, for messages.
        modules: for each site, the module path in the trunk.
        reads_input: sites that are the input of their module, not its output.
        added: sites that `add_site` made.
        lead: number of states before that of the first piece in a pass: 1 for a decoder that is given a start piece,
            else 0.
        n_heads: number of attention heads of a block; None: unknown.
        max_positions: largest number of pieces of an input; None: no limit known.
    """

    model: nn.Module
    trunk: nn.Module
    family: str
    lead: int = 0
    n_heads: int | None = None

    def __init__(self) -> None:
        bound_kernel_caches()
        self.modules: dict[str, str] = {}
        self.reads_input: set[str] = set()
        self.added: set[str] = set()
        self._held: dict[tuple[str, ...], _Held] = {}

    @abstractmethod
    def run(self, ids: Tensor, mask: Tensor) -> Any:
        """Run one forward pass of the trunk over ids and mask `(B, T)`."""

    def run_with_head(self, ids: Tensor, mask: Tensor) -> Any:
        """Run one forward pass of the whole model; return None if it has no head over the vocabulary."""
        return None

    @property
    @abstractmethod
    def vocabulary(self) -> int:
        """Number of ids in the vocabulary."""

    def identity(self) -> dict[str, Any]:
        """Return, for the `model` block of a store's identity, everything besides the weights that determines the
        states.
        """
        return {}

    @property
    def sites(self) -> tuple[str, ...]:
        """Site names in the order of a forward pass, followed by those that `add_site` added."""
        return tuple(self.modules)

    @property
    def max_positions(self) -> int | None:
        """Largest number of pieces that the position embeddings allow; None: no limit."""
        return None

    @property
    def counting_padding_id(self) -> int | None:
        """Padding id, if the model derives position numbers from the places of this id; else None."""
        return None

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.trunk.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Data type that the model computes in."""
        return next(self.trunk.parameters()).dtype

    def head_size(self, site: str, width: int) -> dict[str, int]:
        """Return `n_heads` and `head_dim` of a site `heads.l` with `width` features; an empty dictionary for other
        sites.
        """
        if Site.parse(site).stream != "heads" or site in self.added or not self.n_heads:
            return {}
        return {"n_heads": self.n_heads, "head_dim": width // self.n_heads}

    def add_site(self, site: str, path: str) -> None:
        """Add a site: the output of any module.

        Args:
            site: name of the new site, in the form `stream` or `stream.layer`.
            path: path of the module, from the loaded model or from its trunk.

        Raises:
            UnknownSite: the name has another form or is taken, or there is no such module; the message names the
                nearest.
        """
        Site.parse(site)
        inside = {id(module): name for name, module in self.trunk.named_modules()}
        modules = {name: inside[id(m)] for name, m in self.model.named_modules() if id(m) in inside}
        modules |= {name: name for name in inside.values()}
        if path not in modules:
            raise unknown_name("module", path, modules, where=f"model {self.family}", error=UnknownSite)
        if self.modules.get(site, modules[path]) != modules[path]:
            raise UnknownSite(f"site {site} is {self.modules[site]}", needed="another name", found=f"{site}={path}")
        self._add(site, modules[path])
        self.added.add(site)

    def remove_site(self, site: str) -> None:
        """Remove a site that `add_site` added."""
        self.added.remove(site)
        del self.modules[site]

    def _add(self, site: str, path: str, *, reads_input: bool = False) -> None:
        self.modules[site] = path
        if reads_input:
            self.reads_input.add(site)

    def read(self, ids: Tensor, mask: Tensor, sites: Sequence[str]) -> dict[str, Tensor]:
        """Run one forward pass of the trunk and return the states `(B, T, D)` at the sites; the pass is stopped once
        all are read.

        Raises:
            UnknownSite: the model does not have one of the sites.
            UnsupportedModel: a hook did not fire, or fired more than once.
        """
        self.check_sites(sites)
        with self._hooks(sites) as seen, suppress(_AllRead):
            self.run(ids, mask)
        return self._met(seen, ids, sites)

    def read_whole(self, run: Callable[[], Any], ids: Tensor, sites: Sequence[str]) -> tuple[Any, dict[str, Tensor]]:
        """Run a pass to its end, and return the output of `run` and the states `(B, T, D)` at the sites.

        Raises:
            UnknownSite, UnsupportedModel: as `read`.
        """
        self.check_sites(sites)
        with self._hooks(sites) as seen:
            seen[_END] = []  # never met
            output = run()
        return output, self._met(seen, ids, sites)

    def _met(self, seen: dict[str, list[Tensor]], ids: Tensor, sites: Sequence[str]) -> dict[str, Tensor]:
        for site in sites:
            if len(seen[site]) != 1:
                raise self.unsupported(f"site {site} was met {len(seen[site])} times", "once in a forward pass")
        return {site: self.aligned(seen[site][0], ids, site) for site in sites}

    def times_met(self, ids: Tensor, mask: Tensor, sites: Sequence[str]) -> dict[str, int]:
        """Count how often the module of each site is called in a whole forward pass, and return the counts by site;
        unlike `read`, the pass is not stopped early.
        """
        times = dict.fromkeys(sites, 0)

        def counter(site: str) -> Callable[..., None]:
            def hook(*_: object) -> None:
                times[site] += 1

            return hook

        modules = {site: self.trunk.get_submodule(self.modules[site]) for site in sites}
        handles = [module.register_forward_hook(counter(site)) for site, module in modules.items()]
        try:
            self.run(ids, mask)
        finally:
            for handle in handles:
                handle.remove()
        return times

    def aligned(self, state: Tensor, ids: Tensor, site: str) -> Tensor:
        """Return a state of a pass over `ids` as `(B, T, D)`, also if blocks flatten (B, T) or read a start piece
        first.

        Raises:
            UnsupportedModel: the state does not have one vector per piece.
        """
        shape = (ids.shape[0], ids.shape[1] + self.lead)
        found = self.layout_of(site).aligned(state, shape)
        if found is None:
            raise self.unsupported(f"{site} has shape {tuple(state.shape)}", f"({shape[0]}, {shape[1]}, width)")
        return found[:, self.lead :]

    def layout_of(self, site: str) -> Layout:
        """Return the layout of the states at a site in the tensor that is hooked there."""
        return Layout()

    def check_sites(self, sites: Sequence[str]) -> None:
        """Check that all of these sites exist.

        Raises:
            UnknownSite: one does not; the message names the nearest.
        """
        for site in sites:
            if site not in self.modules:
                raise unknown_name("site", site, self.modules, where=f"model {self.family}", error=UnknownSite)

    def unsupported(self, found: str, needed: str) -> UnsupportedModel:
        """Return the error for a model that does not work as the hooks assume."""
        return UnsupportedModel(
            f"models of the family {self.family!r} are not read: the self-check failed",
            needed=needed,
            found=found,
            where=type(self.model).__name__,
            next_step="read it by module paths alone (sites NAME=MODULE.PATH), or choose another model",
        )

    def not_finite(self, module: str, dtype: torch.dtype) -> NonFiniteStates:
        """Return the error for a model whose states are NaN or infinite at a module or site."""
        is_half = dtype == torch.float16
        return NonFiniteStates(
            f"states are not finite in {dtype}" + (": numbers beyond 65504 overflow" if is_half else ""),
            needed="finite numbers",
            found="NaN or infinity",
            where=f"{type(self.model).__name__}, {module}",
            next_step="compute in float32 or bfloat16, which reach further (dtype)"
            if is_half
            else "check the weights: they are damaged, or hold NaN or numbers that overflow",
        )

    @property
    def may_run_side_by_side(self) -> bool:
        """Whether two threads may run forward passes of this module at the same time."""
        return False

    @contextmanager
    def held(self, sites: Sequence[str]) -> Iterator[None]:
        """Within the block, keep the hooks of these sites registered; several threads may then `read` exactly these
        sites at the same time.

        Raises:
            UnknownSite: the model does not have one of the sites.
        """
        self.check_sites(sites)
        key = tuple(sites)
        with _HOLDING:
            held = self._held.setdefault(key, _Held())
            held.users += 1
            if held.users == 1:
                held.handles = [self._hook(site, held.own) for site in sites]
        try:
            yield
        finally:
            with _HOLDING:
                held.users -= 1
                if not held.users:
                    del self._held[key]
                    for handle in held.handles:
                        handle.remove()

    @contextmanager
    def _hooks(self, sites: Sequence[str]) -> Iterator[dict[str, list[Tensor]]]:
        """Within the block, hooks are on the wanted sites only; they are removed afterwards unless they are held."""
        with HookedModule.held(self, sites):
            own = self._held[tuple(sites)].own
            own.seen = {site: [] for site in sites}
            try:
                yield own.seen
            finally:
                own.seen = None

    def _hook(self, site: str, own: _Pass) -> torch.utils.hooks.RemovableHandle:
        module = self.trunk.get_submodule(self.modules[site])

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            take(given_state(args, kwargs))

        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            take(first_tensor(output))

        def take(state: object) -> None:
            seen = own.seen
            if seen is None:  # a pass that reads other sites
                return
            if isinstance(state, Tensor):
                seen[site].append(state)
            if all(seen.values()):
                raise _AllRead

        if site in self.reads_input:
            return module.register_forward_pre_hook(before, with_kwargs=True)
        return module.register_forward_hook(after)


class _Pass(threading.local):
    """The states that the pass of this thread has met so far, by site; None: this thread reads something else, or
    nothing.
    """

    seen: dict[str, list[Tensor]] | None = None


@dataclass
class _Held:
    """Hooks that are on, for how many blocks, and what they write to."""

    own: _Pass = field(default_factory=_Pass)
    users: int = 0
    handles: list[torch.utils.hooks.RemovableHandle] = field(default_factory=list)


_HOLDING = threading.Lock()
_END = ""


class _AllRead(Exception):
    """Raised when nothing that comes later in the forward pass is wanted."""
