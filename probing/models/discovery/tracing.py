"""Records the inputs and outputs of modules in one pass over a small text, and the layout of the states of blocks. A
*piece* is a token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from probing.models.adapters.huggingface import HuggingFaceTrunk


STATES = "hidden_states"  # what nearly every block of transformers calls its input


@dataclass(frozen=True)
class ModuleCall:
    """Records a call of one module: its input and its output.

    Attributes:
        path: the module's path.
        module: the module.
        given: copy of its first floating-point input; None if there is none.
        output: copy of its first floating-point output; None if there is none.
        ids: whether its first input is a tensor of integers.
    """

    path: str
    module: nn.Module
    given: Tensor | None
    output: Tensor | None
    ids: bool


def trace_calls(roots: Sequence[nn.Module], run: Callable[[], object]) -> list[list[ModuleCall]]:
    """Run one pass and return, for each root, the calls of all modules inside it, in the order in which they end; the
    call of the root itself is the last.
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
    """Return the hidden states in a module's output: the output itself, the first element of a tuple or list, or the
    first value of a mapping.
    """
    if isinstance(output, Mapping):
        return next(iter(output.values()), None)
    return output[0] if isinstance(output, tuple | list) and output else output


def with_first(output: Any, state: Tensor) -> Any:
    """Return a module's output with its hidden states replaced, in its original form (tensor, tuple or mapping)."""
    if isinstance(output, Mapping):
        name = next(iter(output))
        return type(output)(**{**output, name: state})
    return type(output)((state, *output[1:])) if isinstance(output, tuple | list) else state


def given_state(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Return the hidden states in the arguments of a module: its first floating-point tensor; None if there is none."""
    name = _name_of_state(args, kwargs)
    found = None if name is None else args[name] if isinstance(name, int) else kwargs[name]
    return found if isinstance(found, Tensor) else None


def with_state(args: Sequence[Any], kwargs: Mapping[str, Any], state: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a module with its hidden states replaced."""
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
    """Return whether a module is a norm, tested not by its name but by scaling: an input multiplied by 3 gives the same
    output.
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
    """Return whether two tensors are equal; NaN counts as equal to NaN, so that weights that produce NaN are reported
    later, when states are read.
    """
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def is_close(a: Tensor, b: Tensor, *, loose: float = 1e-5) -> bool:
    """Return whether two tensors agree, relative to the largest entry; in half precision within 2 %."""
    tolerance = loose if b.dtype in (torch.float32, torch.float64) else 2e-2
    if a.shape != b.shape:
        return False
    return not b.numel() or float((a - b).abs().max()) <= tolerance * float(b.abs().max())


@dataclass(frozen=True)
class Layout:
    """Describes the axes of the tensors that blocks pass on: batch axis, axis of pieces, and index of the first piece.

    Nearly all blocks pass on `(B, T, D)`. Some put pieces first; some pass on several streams per piece, which are
    concatenated to its state; some lengthen inputs by padding or by additional pieces.

    Attributes:
        inputs, pieces: index of the batch axis and of the axis of pieces.
        skipped: number of places before the first piece; None: there are more places than pieces, and the index of the
            first piece is not known.
        is_longer: whether there are more places than pieces.
    """

    inputs: int = 0
    pieces: int = 1
    skipped: int | None = 0
    is_longer: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether states are `(B, T, D)`, possibly with B and T flattened into one axis."""
        return self == Layout()

    def aligned(self, state: Tensor, shape: tuple[int, int]) -> Tensor | None:
        """Return a state that blocks pass on, reshaped to `(B, T, D)`; None if its shape does not fit this layout."""
        n, length = shape
        if state.ndim < 2:
            return None
        if self.is_plain and (state.shape[:2] == shape or (state.ndim == 2 and len(state) == n * length)):
            return state.reshape(n, length, -1)
        if state.ndim <= max(self.inputs, self.pieces) or self.skipped is None or self.is_plain:
            return None
        moved = state.movedim((self.inputs, self.pieces), (0, 1))
        found = moved[:, self.skipped : self.skipped + length]
        return found.reshape(n, length, -1) if found.shape[:2] == shape else None

    def spread(self, states: Tensor, raw: Tensor) -> Tensor:
        """Return a copy of `raw` with its states replaced by `states` `(B, T, D)`: the inverse of `aligned`."""
        if self.is_plain:
            return states.reshape(raw.shape)
        moved, start, length = raw.movedim((self.inputs, self.pieces), (0, 1)), self.skipped or 0, states.shape[1]
        inner = states.reshape(*states.shape[:2], *moved.shape[2:])
        whole = torch.cat([moved[:, :start], inner, moved[:, start + length :]], 1)
        return whole.movedim((0, 1), (self.inputs, self.pieces))


PLAIN = Layout()


def layout_of(state: Tensor, shape: tuple[int, int]) -> Layout | None:
    """Return the layout of a state, inferred from `shape` (B, T), two sizes that no other axis has; None if it does not
    hold one state per piece.
    """
    n, length = shape
    if state.shape[:2] == shape or (state.ndim == 2 and len(state) == n * length):
        return Layout()
    axes = [[place for place, size in enumerate(state.shape) if size == wanted] for wanted in shape]
    if state.ndim >= 3 and all(len(places) == 1 for places in axes):
        return Layout(axes[0][0], axes[1][0])
    if state.ndim == 3 and len(state) == n and state.shape[1] > length:
        return Layout(skipped=None, is_longer=True)
    return None


def shared_layout(states: list[Tensor], shape: tuple[int, int]) -> Layout | None:
    """Return the layout that all these states have; None if there is none, or if their sizes differ."""
    found = {layout_of(state, shape) for state in states}
    sizes = {tuple(state.shape) for state in states if state.ndim > 2}
    return next(iter(found)) if len(found) == 1 and len(sizes) <= 1 else None


def repeated_block(trunk: HuggingFaceTrunk, ids: Tensor, mask: Tensor) -> str | None:
    """Return a phrase such as `block 3 runs 2 times` for the first block that does not run exactly once in a forward
    pass; None if all do.
    """
    times = trunk.times_met(ids, mask, [f"resid.{layer}" for layer in range(len(trunk.blocks))])
    return next((f"block {i} runs {n} times" for i, n in enumerate(times.values()) if n != 1), None)


def broken_link(trunk: HuggingFaceTrunk, ids: Tensor, mask: Tensor) -> str | None:
    """Return the first site `resid.l` that is not the output of block l-1, or is changed after it was read; None if
    there is none.
    """
    blocks = len(trunk.blocks)
    outputs: dict[int, list[Tensor]] = {layer: [] for layer in range(blocks)}
    inputs: dict[int, list[Tensor]] = {layer: [] for layer in range(blocks)}
    handles = [b.register_forward_hook(output_reader(outputs[i])) for i, b in enumerate(trunk.blocks)]
    handles += [b.register_forward_hook(copier(inputs[i]), with_kwargs=True) for i, b in enumerate(trunk.blocks)]
    try:
        states = trunk.read(ids, mask, [f"resid.{layer}" for layer in range(blocks + 1)])
    finally:
        for handle in handles:
            handle.remove()
    for layer in range(blocks + 1):
        site = f"resid.{layer}"
        state = states[site]
        chained = layer == 0 or is_same(state, trunk.aligned(outputs[layer - 1][0], ids, site))
        if not chained or (layer < blocks and not is_same(state, trunk.aligned(inputs[layer][0], ids, site))):
            return site
    return None


def copier(into: list[Tensor]) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        state = given_state(args, kwargs)
        if state is not None:
            into.append(state.clone())

    return hook


def output_reader(into: list[Tensor]) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        state = first_tensor(output)
        if isinstance(state, Tensor):
            into.append(state)

    return hook
