"""Norms whose scale is held: LayerNorm and RMSNorm made linear, each position at the scale it has in a clean pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from probing.errors import ReplayUnavailable

_EPSILONS = ("eps", "variance_epsilon", "epsilon")
Scale = Callable[[Tensor], Tensor]
PADDING = 0.0  # in place of a scale, which is positive: there is nothing to hold


class HeldNorms:
    """Finds the norms of a model by what they compute, and runs the model with their scales frozen.

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
        """Within the block, record the scale `(B, T, …)` of each norm in the passes that are run, in the yielded
        mapping.
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

        Where that scale is `PADDING`, the norm works as usual: the state of a padded place must not grow, since one
        that overflows would reach other places as 0·∞ through attention that gives it weight 0.
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
