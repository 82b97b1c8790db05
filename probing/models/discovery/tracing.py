"""Records inputs and outputs of the modules of a model in one forward pass over a small text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

STATES = "hidden_states"  # what nearly every block of transformers calls its input


@dataclass(frozen=True)
class ModuleCall:
    """A call of one module: its inputs and its output.

    Attributes:
        path: the module's path.
        module: the module.
        given: its first tensor of floats, a copy; None: it was given none.
        output: the first tensor of floats that it gave, a copy; None: it gave none.
        ids: whether it was given whole numbers.
    """

    path: str
    module: nn.Module
    given: Tensor | None
    output: Tensor | None
    ids: bool


def trace_calls(roots: Sequence[nn.Module], run: Callable[[], object]) -> list[list[ModuleCall]]:
    """Return for each root the calls of all modules inside it in one pass, in the order they end; the last is its
    own.
    """
    traces: list[list[ModuleCall]] = [[] for _ in roots]
    handles = []
    for root, trace in zip(roots, traces, strict=True):
        running: set[bool] = set()  # a module that several roots share is also called when this one does not run
        handles.append(root.register_forward_pre_hook(lambda *_, running=running: running.add(True)))
        for path, module in root.named_modules():
            handles.append(module.register_forward_hook(_recorder(path, trace, running), with_kwargs=True))
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return traces


def _recorder(path: str, into: list[ModuleCall], running: set[bool]) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> None:
        if not running:
            return
        if not path:
            running.clear()
        first = args[0] if args else next(iter(kwargs.values()), None)
        is_ids = isinstance(first, Tensor) and not first.is_floating_point()
        into.append(ModuleCall(path, module, _copy(given_state(args, kwargs)), _copy(first_tensor(output)), is_ids))

    return hook


def first_tensor(output: object) -> object:
    """Return a module's hidden states: its output, or the first of a tuple, or the first value of a mapping."""
    if isinstance(output, Mapping):
        return next(iter(output.values()), None)
    return output[0] if isinstance(output, tuple | list) and output else output


def with_first(output: Any, state: Tensor) -> Any:
    """Return a module's output with other hidden states, in the form that it had."""
    if isinstance(output, Mapping):
        name = next(iter(output))
        return type(output)(**{**output, name: state})
    return type(output)((state, *output[1:])) if isinstance(output, tuple | list) else state


def given_state(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Return the hidden states that a module is given: its first tensor of floats; None: there is none."""
    name = _name_of_state(args, kwargs)
    found = None if name is None else args[name] if isinstance(name, int) else kwargs[name]
    return found if isinstance(found, Tensor) else None


def with_state(args: Sequence[Any], kwargs: Mapping[str, Any], state: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a module with other hidden states."""
    name = _name_of_state(args, kwargs)
    if isinstance(name, int):
        return (*args[:name], state, *args[name + 1 :]), dict(kwargs)
    return tuple(args), {**kwargs, STATES if name is None else name: state}


def _name_of_state(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int | str | None:
    """Return which argument has the hidden states, by place or name."""
    names: list[int | str] = [*range(len(args)), *([STATES] if STATES in kwargs else []), *kwargs]
    for name in names:
        value = args[name] if isinstance(name, int) else kwargs[name]
        if isinstance(value, Tensor) and value.is_floating_point():
            return name
    return None


def _copy(value: object) -> Tensor | None:
    return value.detach().clone() if isinstance(value, Tensor) and value.is_floating_point() else None


def is_norm(call: ModuleCall) -> bool:
    """Return whether a module is a norm: its output is the same for three times its input. It is known by this, not by
    name.
    """
    given, output = call.given, call.output
    if given is None or output is None or given.shape != output.shape or any(call.module.children()):
        return False
    large = 10 * given / given.float().square().mean().sqrt().clamp(min=1e-12).to(given.dtype)  # beside any epsilon
    with torch.no_grad():
        try:
            once, thrice = (first_tensor(call.module(factor * large)) for factor in (1, 3))
        except Exception:  # a module that wants more than states
            return False
    if not isinstance(once, Tensor) or not isinstance(thrice, Tensor) or once.shape != output.shape:
        return False
    return bool(once.any()) and is_close(thrice, once, loose=1e-2)


def is_same(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors are equal. NaN equals NaN, so that weights that give it are reported where their
    states are read.
    """
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def is_close(a: Tensor, b: Tensor, *, loose: float = 1e-5) -> bool:
    """Return whether two tensors agree, relative to the largest entry; in half precision within 2 percent."""
    tolerance = loose if b.dtype in (torch.float32, torch.float64) else 2e-2
    if a.shape != b.shape:
        return False
    return not b.numel() or float((a - b).abs().max()) <= tolerance * float(b.abs().max())
