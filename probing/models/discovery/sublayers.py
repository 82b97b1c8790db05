"""Finds what attention and MLP of a block add to the residual stream, by what they compute and not by their names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import torch
from torch import Tensor, nn

from probing.models.discovery.tracing import ModuleCall, is_close, is_norm, trace_calls


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


def find_sublayers(
    blocks: nn.ModuleList,
    run: Callable[[], object],
    n_heads: int | None,
    *,
    has_cross: bool = False,
    is_attention: Sequence[bool] = (),
) -> list[Sublayers | None]:
    """Return for each block the sublayers whose outputs add up to the block's, or None.

    With x and y a block's input and output, a and m what its sublayers add: y = x + a + m where norms come before the
    sublayers (also in parallel blocks, and with a second norm behind each), and y = norm(x' + m), x' = norm(x + a)
    where they come after. With attention to an encoder, c, between them: y = x + a + c + m, and likewise. They are told
    apart by which ends first.

    Modules that add up in every block come first. Where none do, since blocks are of several kinds (attention here, a
    recurrence there), each kind of block has its own, and only blocks of attention have heads.

    Args:
        blocks: the blocks, which all run once in `run`.
        run: one forward pass over a batch of one.
        n_heads: heads per block; None: unknown, and no block has any.
        has_cross: blocks also attend to an encoder.
        is_attention: of each block, whether the configuration says that it attends; empty: it does not say.
    """
    traces = [[_of_one(call) for call in trace if call.output is not None] for trace in trace_calls(list(blocks), run)]
    count = 3 if has_cross else 2
    if not n_heads or not all(traces):
        return [None] * len(blocks)
    attends = [*is_attention] if len(is_attention) == len(blocks) else [True] * len(blocks)
    if all(attends) or not any(attends):  # else the configuration tells kinds of blocks apart
        for found in _candidates(traces[0], count):
            projection = _projection(traces[0], found[0], n_heads)
            if projection and all(_adds_up(trace, *found) for trace in traces):
                return [Sublayers(found[0], found[-1], projection, found[1] if has_cross else "")] * len(blocks)
    return (
        [
            next(_of_block(trace, n_heads if mine else 0, count), None)
            for trace, mine in zip(traces, attends, strict=True)
        ]
        if is_attention
        else [None] * len(blocks)
    )


def _of_block(trace: list[ModuleCall], n_heads: int, count: int) -> Iterator[Sublayers]:
    """Yield the sublayers that add up in this block alone; without heads its first sublayer is not attention."""
    for found in _candidates(trace, count):
        projection = _projection(trace, found[0], n_heads) if n_heads else ""
        if projection or not n_heads:
            yield Sublayers(found[0], found[-1], projection, found[1] if count > 2 else "")


def _of_one(call: ModuleCall) -> ModuleCall:
    """Return a call with states `(1, T, D)`: some blocks flatten (B, T) for their MLP, and B is 1 here."""
    given, output = call.given, call.output
    if output is None or output.ndim != 2:
        return call
    return replace(call, given=None if given is None else given[None], output=output[None])


def _candidates(trace: list[ModuleCall], count: int) -> Iterator[tuple[str, ...]]:
    """Yield attention, then MLP (or with attention to an encoder between them) that may add up; the plainest first."""
    inside = trace[:-1]
    paths = [step.path for step in inside]
    whole = trace[-1].output
    assert whole is not None  # for the reader of types: calls without are left out
    shape = whole.shape
    named: dict[int, str] = {}  # of modules with one output, such as a projection and the dropout behind it, one
    for place, step in enumerate(inside):
        if step.output is not None and step.output.shape == shape and paths.count(step.path) == 1:
            same = next((p for p in named if _is_equal(inside[p].output, step.output)), place)
            named[same] = min(named.get(same, step.path), step.path, key=lambda path: path.count("."))
    for chosen in combinations(sorted(named), count):
        found = tuple(named[place] for place in chosen)
        if _adds_up(trace, *found):
            yield found


def _is_equal(a: Tensor | None, b: Tensor | None) -> bool:
    return a is not None and b is not None and torch.equal(a, b)


def _adds_up(trace: list[ModuleCall], *sublayers: str) -> bool:
    steps = {step.path: step for step in trace}
    x, y = trace[-1].given, trace[-1].output
    if x is None or y is None or x.shape != y.shape or not all(path in steps for path in sublayers):
        return False
    added = [output for path in sublayers if (output := steps[path].output) is not None]
    if len(added) < len(sublayers) or any(part.shape != x.shape for part in added):
        return False
    if is_close(sum(added, start=x), y):
        return True
    return _is_chain(x, added, y, trace[:-1])


def _is_chain(x: Tensor, added: list[Tensor], y: Tensor, inside: list[ModuleCall]) -> bool:
    """Return whether y = norm(… norm(norm(x + first) + second) … + last)."""
    if not added:
        return torch.equal(x, y)
    total = x + added[0]
    norms = [call for call in inside if call.given is not None and is_close(total, call.given) and is_norm(call)]
    return any(call.output is not None and _is_chain(call.output, added[1:], y, inside) for call in norms)


def _projection(trace: list[ModuleCall], attention: str, n_heads: int) -> str:
    """Return the last linear layer that ends no later than attention does, if its input can be cut into heads."""
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
