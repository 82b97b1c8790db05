"""What attention and MLP of a block add to the residual stream: found by what they compute, not by their names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor, nn

from probing.models._discovery import first_tensor

_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-5}  # of the largest entry; half precision: 2e-2


@dataclass(frozen=True)
class Sublayers:
    """Module paths inside a block, the same in every block.

    Attributes:
        attention: its output is what attention adds to the stream.
        mlp: its output is what the MLP adds.
        cross: its output is what attention to an encoder adds; "" where there is none.
        projection: the layer whose input is the heads' outputs, concatenated.
    """

    attention: str
    mlp: str
    projection: str
    cross: str = ""


@dataclass(frozen=True)
class _Step:
    """One module's call: its first input and output, if they are tensors."""

    path: str
    module: nn.Module
    given: Tensor | None
    output: Tensor


def find_sublayers(
    blocks: nn.ModuleList, run: Callable[[], object], n_heads: int | None, *, has_cross: bool = False
) -> Sublayers | None:
    """Sublayers that add up in every block, or None.

    With x and y a block's input and output, a and m what its sublayers add: y = x + a + m where norms come before the
    sublayers (also in parallel blocks, and with a second norm behind each), and y = norm(x' + m), x' = norm(x + a)
    where they come after. With attention to an encoder, c, between them: y = x + a + c + m, and likewise. They are told
    apart by which ends first.

    Args:
        blocks: the blocks, which all run once in `run`.
        run: one forward pass over a batch of one.
        n_heads: heads per block; None: unknown, and nothing is found.
        has_cross: blocks also attend to an encoder.
    """
    traces = _trace(blocks, run)
    if not n_heads or not all(traces):
        return None
    for found in _candidates(traces[0], 3 if has_cross else 2):
        projection = _projection(traces[0], found[0], n_heads)
        if projection and all(_adds_up(trace, *found) for trace in traces):
            return Sublayers(found[0], found[-1], projection, found[1] if has_cross else "")
    return None


def _trace(blocks: nn.ModuleList, run: Callable[[], object]) -> list[list[_Step]]:
    """For each block the calls inside it, in the order they end; the last is the block's own."""
    traces: list[list[_Step]] = [[] for _ in blocks]
    handles = []
    for block, trace in zip(blocks, traces, strict=True):
        for path, module in block.named_modules():
            handles.append(module.register_forward_hook(_recorder(path, trace), with_kwargs=True))
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return traces


def _recorder(path: str, trace: list[_Step]) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: object) -> None:
        given, state = args[0] if args else kwargs.get("hidden_states"), first_tensor(output)
        if isinstance(state, Tensor) and state.is_floating_point():
            kept = given.detach().clone() if isinstance(given, Tensor) and given.is_floating_point() else None
            output_kept = state.detach().clone()
            if state.ndim == 2:  # some blocks flatten (B, T) for their MLP; B is 1 here
                kept, output_kept = None if kept is None else kept[None], output_kept[None]
            trace.append(_Step(path, module, kept, output_kept))

    return hook


def _candidates(trace: list[_Step], count: int) -> Iterator[tuple[str, ...]]:
    """Attention, then MLP, or with attention to an encoder between them, that may add up; the plainest first."""
    inside = trace[:-1]
    paths = [step.path for step in inside]
    shape = trace[-1].output.shape
    named: dict[int, str] = {}  # of modules with one output, such as a projection and the dropout behind it, one
    for place, step in enumerate(inside):
        if step.output.shape == shape and paths.count(step.path) == 1:
            same = next((p for p in named if torch.equal(inside[p].output, step.output)), place)
            named[same] = min(named.get(same, step.path), step.path, key=lambda path: path.count("."))
    for chosen in combinations(sorted(named), count):
        found = tuple(named[place] for place in chosen)
        if _adds_up(trace, *found):
            yield found


def _adds_up(trace: list[_Step], *sublayers: str) -> bool:
    steps = {step.path: step for step in trace}
    x, y = trace[-1].given, trace[-1].output
    if x is None or x.shape != y.shape or not all(path in steps for path in sublayers):
        return False
    added = [steps[path].output for path in sublayers]
    if any(part.shape != x.shape for part in added):
        return False
    if _is_close(sum(added, start=x), y):
        return True
    norms = [s for s in trace if "norm" in type(s.module).__name__.lower() and s.given is not None]
    return _is_chain(x, added, y, [s for s in norms if s.given is not None and s.given.shape == x.shape])


def _is_chain(x: Tensor, added: list[Tensor], y: Tensor, norms: list[_Step]) -> bool:
    """Whether y = norm(… norm(norm(x + first) + second) … + last)."""
    if not added:
        return torch.equal(x, y)
    after = [s.output for s in norms if s.given is not None and _is_close(x + added[0], s.given)]
    return any(_is_chain(state, added[1:], y, norms) for state in after)


def _is_close(a: Tensor, b: Tensor) -> bool:
    tolerance = _TOLERANCE.get(a.dtype, 2e-2) * float(b.abs().max())
    return a.shape == b.shape and float((a - b).abs().max()) <= tolerance


def _projection(trace: list[_Step], attention: str, n_heads: int) -> str:
    """The last linear layer that ends no later than attention does, if its input can be cut into heads."""
    found = ""
    for step in trace:
        weight = getattr(step.module, "weight", None)
        is_linear = isinstance(weight, Tensor) and weight.ndim == 2 and not isinstance(step.module, nn.Embedding)
        if is_linear and step.given is not None:
            is_cut = step.given.ndim == 3 and step.given.shape[-1] % n_heads == 0
            found = step.path if is_cut else ""
        if step.path == attention:
            break
    return found
