"""HeldNorms: runs a model with the scales of its norms frozen at those of a clean pass. SelfCheck: checks the sites. A
*piece* is a token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from probing.errors import ReplayUnavailable
from probing.models.adapters.huggingface import HuggingFaceTrunk
from probing.models.discovery.parts import refusing
from probing.models.discovery.tracing import broken_link, repeated_block
from probing.models.reading.hooked import HookedModule
from probing.text.alignment import Encoded

_EPSILONS = ("eps", "variance_epsilon", "epsilon")
Scale = Callable[[Tensor], Tensor]
PADDING = 0.0  # in place of a scale, which is positive: there is nothing to hold


class HeldNorms:
    """Finds the norms of a model by testing their outputs, and runs the model with their scales frozen.

    A norm N is a module without submodules, with "norm" in its class name and a one-dimensional weight. Its scale is
    σ(x) = √(var x + ε) or √(mean x² + ε), whichever makes (N(x) − b)·σ(x) linear in x.

    Attributes:
        scales: the function σ of each norm, by its module path.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.scales: dict[str, Scale] = {}
        self._unknown: list[str] = []
        for path, module in model.named_modules():
            if "norm" in type(module).__name__.lower() and not any(module.children()):
                scale = _scale_of(module)
                if scale is None:
                    self._unknown.append(path)
                else:
                    self.scales[path] = scale

    @property
    def are_known(self) -> bool:
        """Whether the model has norms and the scales of all of them can be frozen."""
        return bool(self.scales) and not self._unknown

    def check(self) -> None:
        """Check that the scales of the model's norms can be frozen.

        Raises:
            ReplayUnavailable: the model has a norm of an unknown kind, or none.
        """
        if not self.are_known:
            kinds = {type(self._model.get_submodule(path)).__name__ for path in self._unknown}
            raise ReplayUnavailable(
                "the scales of this model's norms cannot be held",
                needed="LayerNorm or RMSNorm, with a weight",
                found=", ".join(sorted(kinds)) or "no norm",
                where=(self._unknown or [type(self._model).__name__])[0],
                next_step="measure without frozen norms",
            )

    @contextmanager
    def recorded(self) -> Iterator[dict[str, Tensor]]:
        """Within the `with` block, record in the yielded mapping, by the name of each normalisation layer, the scale
        that it divides by, `(B, T, …)`, in the last forward pass.
        """
        found: dict[str, Tensor] = {}

        def recorder(path: str, scale: Scale) -> Callable[..., None]:
            def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
                found[path] = scale(args[0].detach())[..., 0]

            return hook

        with self._hooked(recorder):
            yield found

    @contextmanager
    def held(self, clean: Mapping[str, Tensor]) -> Iterator[None]:
        """Within the block, each norm outputs (N(x) − b)·σ(x)/σ(x₀) + b, where σ(x₀) is its scale in the clean run,
        from `clean`.

        At places where that scale is `PADDING`, the norm works as usual: states at padding must not grow, since an
        overflow there would become NaN at other places (0·∞ in attention).
        """

        def holder(path: str, scale: Scale) -> Callable[..., Tensor]:
            def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
                held = clean[path][..., None]
                is_text, now = held != PADDING, scale(args[0])
                ratio = torch.where(is_text, now / torch.where(is_text, held, 1.0), 1.0).to(output.dtype)
                bias = getattr(module, "bias", None)
                return output * ratio if bias is None else (output - bias) * ratio + bias

            return hook

        with self._hooked(holder):
            yield

    @contextmanager
    def _hooked(self, make: Callable[[str, Scale], Callable[..., object]]) -> Iterator[None]:
        handles = [self._model.get_submodule(p).register_forward_hook(make(p, s)) for p, s in self.scales.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _scale_of(module: nn.Module) -> Scale | None:
    """Return the function that gives σ of a norm; None: it is no norm of a known kind."""
    weight, epsilon = getattr(module, "weight", None), _epsilon(module)
    if not isinstance(weight, Tensor) or weight.ndim != 1 or epsilon is None:
        return None
    kinds: tuple[Scale, Scale] = (
        lambda x: (x.float().var(-1, keepdim=True, correction=0) + epsilon).sqrt(),
        lambda x: (x.float().square().mean(-1, keepdim=True) + epsilon).sqrt(),
    )
    return next((scale for scale in kinds if _is_linear(module, weight, scale)), None)


def _epsilon(module: nn.Module) -> float | None:
    found = next((getattr(module, name) for name in _EPSILONS if isinstance(getattr(module, name, None), float)), None)
    return None if found is None else float(found)


def _is_linear(module: nn.Module, weight: Tensor, scale: Scale) -> bool:
    """Return whether (N(x) − b)·σ(x) of a sum is the sum, and of three times a vector three times."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn((2, 1, 1, len(weight)), generator=generator).to(weight.device, weight.dtype)
    bias = getattr(module, "bias", None)

    def linear(v: Tensor) -> Tensor:
        found: Tensor = module(v).float()
        return (found if bias is None else found - bias.float()) * scale(v)

    with torch.no_grad():
        try:
            parts, whole = 3 * linear(x) + linear(y), linear(3 * x + y)
        except Exception:  # a norm that wants more than states, such as a gate
            return False
    loose = 1e-4 if weight.dtype in (torch.float32, torch.float64) else 5e-2
    return whole.shape == parts.shape and bool((whole - parts).abs().max() <= loose * parts.abs().max())


_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}  # relative; half precision: 2e-2


@dataclass(frozen=True)
class SelfCheck:
    """Checks that the sites of a model hold the states that their names promise.

    Attributes:
        trunk: the model to check.
        states: a function that returns the states `(B, T, D)` of a batch by site.
        padded: a function that returns ids and mask of a batch.
        first_piece: a function that returns the column of each input's first piece.
        special: ids of special pieces, which test inputs do not contain.
    """

    trunk: HookedModule
    states: Callable[[Sequence[Encoded], Sequence[str]], dict[str, Tensor]]
    padded: Callable[[Sequence[Encoded]], tuple[Tensor, Tensor]]
    first_piece: Callable[[Sequence[Encoded]], Any]
    special: Sequence[int]

    def model(self) -> None:
        """Check that blocks, if any, each run once in a chain, that states do not depend on the batch, and that
        `final_norm` is the norm after the last block.

        Raises:
            UnsupportedModel: a check failed; the message names the model's family.
        """
        with refusing(self.trunk.family, "it is checked", type(self.trunk.model).__name__):
            self._model()

    def _model(self) -> None:
        long, trunk = self.input_of(7), self.trunk
        if not isinstance(trunk, HuggingFaceTrunk) or not len(trunk.blocks):
            self.batches(trunk.sites)
            return
        with torch.inference_mode():
            repeated = repeated_block(trunk, *self.padded([long]))
        if repeated:
            raise trunk.unsupported(repeated, "once in a forward pass")
        self.batches(trunk.sites)
        with torch.inference_mode():
            broken = broken_link(trunk, *self.padded([long]))
        if broken:
            raise trunk.unsupported(f"{broken} is not what the block before it gave", "a chain of blocks")
        self._final_norm(trunk, long)

    def batches(self, sites: Sequence[str]) -> None:
        """Check that there is one finite state per piece, and that it is the same if an input is run alone and in a
        batch.

        Raises:
            UnsupportedModel: a check failed; the message names the site.
            NonFiniteStates: a state is NaN or infinite, such as by an overflow of float16.
        """
        trunk = self.trunk
        unsupported, short, long = trunk.unsupported, self.input_of(3), self.input_of(7)
        with torch.inference_mode():
            met = trunk.times_met(*self.padded([long]), [site for site in sites if site in trunk.added])
        for site, times in met.items():
            if times != 1:
                raise unsupported(f"site {site} is met {times} times", "a module that runs once in a forward pass")
        together, starts = self.states([short, long], sites), self.first_piece([short, long])
        for row, one in enumerate((short, long)):
            alone = self.states([one], sites)
            for site in sites:
                state = together[site]
                if state.ndim != 3 or state.shape[:2] != (2, len(long)):
                    raise unsupported(f"{site} has shape {tuple(state.shape)}", f"(2, {len(long)}, width)")
                mine = state[row, starts[row] : starts[row] + len(one)].float()
                if not bool(torch.isfinite(mine).all()):
                    raise trunk.not_finite(site, trunk.dtype)
                if not self._is_close(mine, alone[site][0].float()):
                    if not self._is_close(self.states([one], sites)[site].float(), alone[site].float()):
                        raise unsupported(f"{site} is another each time", "equal states of equal texts, in eval mode")
                    how = " padded on the left" if starts.any() else ""
                    raise unsupported(f"{site} changes with the batch{how}", "the same states alone and in a batch")

    def input_of(self, length: int) -> Encoded:
        """Return an input of the given number of ordinary pieces."""
        special = set(self.special)
        ids = [i for i in range(min(self.trunk.vocabulary, 1000 + len(special))) if i not in special]
        chosen = np.array([(ids or [0])[(7 * k) % len(ids or [0])] for k in range(1, length + 1)], dtype=np.int64)
        none = np.zeros((0, 2), dtype=np.int64)
        return Encoded(chosen, np.zeros((length, 2), dtype=np.int64), np.zeros(length, dtype=bool), none)

    def _final_norm(self, trunk: HuggingFaceTrunk, one: Encoded) -> None:
        """Check that the norm is the final one: norm(resid.L) is what the trunk returns."""
        if trunk.final_norm is None:
            return
        last = f"resid.{len(trunk.blocks)}"
        with torch.inference_mode():
            states = trunk.read(*self.padded([one]), (last, "final_norm"))
            normed = trunk.final_norm(states[last]).float()
        if not self._is_close(normed, states["final_norm"].float()):
            raise trunk.unsupported("the final norm is not applied to the last block's output", f"norm({last})")

    def _is_close(self, a: Tensor, b: Tensor) -> bool:
        tolerance = _TOLERANCE.get(self.trunk.dtype, 2e-2) * (float(b.abs().max()) or 1.0)
        return a.shape == b.shape and float((a - b).abs().max()) <= tolerance
