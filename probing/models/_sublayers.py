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
        projection: the layer whose input is the heads' outputs, concatenated.
    """

    attention: str
    mlp: str
    projection: str


@dataclass(frozen=True)
class _Step:
    """One module's call: its first input and output, if they are tensors."""

    path: str
    module: nn.Module
    given: Tensor | None
    output: Tensor


def find_sublayers(blocks: nn.ModuleList, run: Callable[[], object], n_heads: int | None) -> Sublayers | None:
    """Sublayers that add up in every block, or None.

    With x and y a block's input and output, a and m what its sublayers add: y = x + a + m where norms come before the
    sublayers (also in parallel blocks, and with a second norm behind each), and y = norm(x' + m), x' = norm(x + a)
    where they come after. Attention is the one that ends first.

    Args:
        blocks: the blocks, which all run once in `run`.
        run: one forward pass over a batch of one.
        n_heads: heads per block; None: unknown, and nothing is found.
    """
    traces = _trace(blocks, run)
    if not n_heads or not all(traces):
        return None
    for found in _candidates(traces[0]):
        projection = _projection(traces[0], found[0], n_heads)
        if projection and all(_adds_up(trace, *found) for trace in traces):
            return Sublayers(*found, projection)
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


def _candidates(trace: list[_Step]) -> Iterator[tuple[str, str]]:
    """Pairs (attention, MLP) that may add up, the plainest first."""
    inside = trace[:-1]
    paths = [step.path for step in inside]
    shape = trace[-1].output.shape
    named: dict[int, str] = {}  # of modules with one output, such as a projection and the dropout behind it, one
    for place, step in enumerate(inside):
        if step.output.shape == shape and paths.count(step.path) == 1:
            same = next((p for p in named if torch.equal(inside[p].output, step.output)), place)
            named[same] = min(named.get(same, step.path), step.path, key=lambda path: path.count("."))
    for first, second in combinations(sorted(named), 2):
        if _adds_up(trace, named[first], named[second]):
            yield named[first], named[second]


def _adds_up(trace: list[_Step], attention: str, mlp: str) -> bool:
    steps = {step.path: step for step in trace}
    x, y = trace[-1].given, trace[-1].output
    if x is None or attention not in steps or mlp not in steps:
        return False
    a, m = steps[attention].output, steps[mlp].output
    if x.shape != y.shape or a.shape != x.shape or m.shape != x.shape:
        return False
    if _is_close(x + a + m, y):
        return True
    norms = [s for s in trace if "norm" in type(s.module).__name__.lower() and s.given is not None]
    middle = [s for s in norms if s.given is not None and s.given.shape == x.shape and _is_close(x + a, s.given)]
    last = [s for s in norms if torch.equal(s.output, y)]
    return any(_is_close(s.output + m, t.given) for s in middle for t in last if t.given is not None)


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
