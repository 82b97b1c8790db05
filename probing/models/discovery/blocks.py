"""Finds blocks, piece (token) embedding, final norm and sublayers of a model by running it on a small text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import torch
from torch import Tensor, nn

from probing.errors import UnsupportedModel
from probing.models.discovery.tracing import (
    PLAIN,
    Layout,
    ModuleCall,
    is_close,
    is_norm,
    is_same,
    shared_layout,
    trace_calls,
)

NEXT_STEP = "read it by module paths alone (sites NAME=MODULE.PATH), or choose another model"


@dataclass(frozen=True)
class Blocks:
    """Lists the blocks that a text passes through.

    Attributes:
        paths: module path of each block, relative to the module that was traced.
        modules: the blocks.
        layout: layout of the states that the blocks pass on.
    """

    paths: tuple[str, ...]
    modules: nn.ModuleList
    layout: Layout


@dataclass(frozen=True)
class _List:
    """A list of modules, which of them ran, and why it is no list of blocks ("": it is one)."""

    path: str
    calls: tuple[ModuleCall, ...]
    reason: str
    layout: Layout = PLAIN

    @property
    def width(self) -> int:
        state = self.calls[0].output if self.calls else None
        return 0 if state is None else state.shape[-1]


def find_blocks(
    part: nn.Module, calls: Sequence[ModuleCall], shape: tuple[int, int], *, width: int | None, family: str
) -> Blocks:
    """Find the blocks and return them: the longest list of modules that run once each, in a chain, on one state per
    piece.

    A list that does not run on text, such as the blocks of a vision tower, is not considered, however long it is.
    Members that do not run, such as those that predict further pieces in training, are left out.

    Args:
        part: the module that contains the blocks.
        calls: the module calls recorded in a pass over a text.
        shape: (B, T) of that pass.
        width: the hidden size in the model's configuration; lists with states of this width are preferred.
        family: name of the model's family, for messages.

    Raises:
        UnsupportedModel: no list qualifies (the message says why the likeliest does not), or two qualify equally.
    """
    lists = [
        _examined(path, module, calls, shape)
        for path, module in part.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module)
    ]
    sound = [found for found in lists if not found.reason and not _is_stage(part, found.path)]
    outer = [x for x in sound if not any(x is not y and x.path.startswith(y.path + ".") for y in sound)]
    if not outer:
        raise _no_blocks(part, lists, family)
    ranked = sorted(outer, key=lambda x: (x.width == width, len(x.calls)), reverse=True)
    best = ranked[0]
    if len(ranked) > 1 and (ranked[1].width, len(ranked[1].calls)) == (best.width, len(best.calls)):
        raise UnsupportedModel(
            f"models of the family {family!r} are not read",
            needed="one list of blocks that a text goes through",
            found=f"{best.path} and {ranked[1].path}, of {len(best.calls)} each",
            where=type(part).__name__,
            next_step=NEXT_STEP,
        )
    return Blocks(
        tuple(call.path for call in best.calls), nn.ModuleList(call.module for call in best.calls), best.layout
    )


def _is_stage(part: nn.Module, path: str) -> bool:
    """Return whether a list is one of several inside another list: stages of blocks, which hand on states of other
    shapes.
    """
    outer = part.get_submodule(path.rpartition(".")[0]) if "." in path else None
    return isinstance(outer, nn.ModuleList) and len(outer) > 1


def _examined(
    path: str, modules: nn.ModuleList | nn.Sequential, calls: Sequence[ModuleCall], shape: tuple[int, int]
) -> _List:
    order = {id(module): place for place, module in enumerate(modules)}
    mine = tuple(call for call in calls if id(call.module) in order and call.path.rpartition(".")[0] == path)
    if not mine:
        return _List(path, (), "its blocks do not run on text")
    places = [order[id(call.module)] for call in mine]
    for place in sorted(set(places)):
        if places.count(place) > 1:
            return _List(path, mine, f"block {place} runs {places.count(place)} times")
    if places != sorted(places):
        return _List(path, mine, "its blocks do not run in order")
    states = [state for call in mine for state in (call.given, call.output)]
    layout = shared_layout([state for state in states if state is not None], shape)
    if layout is None or any(state is None for state in states):
        sizes = ["none" if state is None else str(tuple(state.shape)) for state in states]
        listed = ", ".join(dict.fromkeys(sizes))
        return _List(path, mine, f"for a text of {shape} its blocks hand on states {listed}, not one a piece")
    for before, after, place in zip(mine, mine[1:], places[1:], strict=False):
        assert before.output is not None and after.given is not None  # for the reader of types: asked above
        if before.output.numel() != after.given.numel() or not is_same(
            before.output.reshape(after.given.shape), after.given
        ):
            return _List(path, mine, f"what block {place} is given is not what the block before it gave")
    return _List(path, mine, "", layout)


def _no_blocks(part: nn.Module, lists: Sequence[_List], family: str) -> UnsupportedModel:
    """Return the error, with the reason of the list that holds the most of the model among those that run."""
    ran = [x for x in lists if x.calls]
    likely = max(
        ran or lists, key=lambda x: sum(p.numel() for c in x.calls for p in c.module.parameters()), default=None
    )
    reason = f"none in {type(part).__name__}" if likely is None else f"{likely.path}: {likely.reason}"
    return UnsupportedModel(
        f"models of the family {family!r} are not read",
        where=type(part).__name__,
        found=reason,
        next_step=NEXT_STEP,
        needed="a list of Transformer blocks that run once each, in a chain, on one state a piece",
    )


def _size(found: _List) -> int:
    return sum(weight.numel() for call in found.calls for weight in call.module.parameters())


def find_embedding(part: nn.Module, calls: Sequence[ModuleCall]) -> nn.Module | None:
    """Return the piece embedding: the module that `get_input_embeddings` returns, else the first lookup table that
    receives ids; None if there is none.
    """
    try:
        named = part.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError, TypeError):
        named = None
    if isinstance(named, nn.Embedding) and (not calls or any(call.module is named for call in calls)):
        return named
    return next((call.module for call in calls if call.ids and call.output is not None and _is_table(call)), None)


def _is_table(call: ModuleCall) -> bool:
    """Return whether a module looks vectors up: its weight has a row for each id, as wide as its output."""
    weight, output = getattr(call.module, "weight", None), call.output
    return (
        isinstance(weight, Tensor) and weight.ndim == 2 and output is not None and weight.shape[1] == output.shape[-1]
    )


def find_final_norm(blocks: Blocks, calls: Sequence[ModuleCall]) -> tuple[str, nn.Module] | None:
    """Return path and module of the norm whose input is the output of the last block and whose output is returned by a
    module that contains the blocks; None if there is none.
    """
    last = next(place for place, call in enumerate(calls) if call.path == blocks.paths[-1])
    state = calls[last].output
    norms = [
        call
        for call in calls[last + 1 :]
        if call.given is not None
        and state is not None
        and call.given.numel() == state.numel()
        and is_same(call.given.reshape(state.shape), state)
        and is_norm(call)
        and sum(other.path == call.path for other in calls) == 1
    ]
    around = [call for call in calls[last + 1 :] if not call.path or blocks.paths[-1].startswith(f"{call.path}.")]
    final = [norm for norm in norms if any(_is_equal(norm.output, call.output) for call in around)]
    return (final[-1].path, final[-1].module) if final else None


def _is_equal(a: Tensor | None, b: Tensor | None) -> bool:
    return a is not None and b is not None and is_same(a, b)


@dataclass(frozen=True)
class Sublayers:
    """Holds the module paths of the sublayers of a block, relative to the block.

    Attributes:
        attention: module whose output attention adds to the residual stream.
        mlp: module whose output the MLP adds to it.
        cross: module whose output attention to an encoder adds to it; "" if there is none.
        projection: linear layer whose input is the concatenated outputs of the heads; "" if the block has no heads.
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
    """Find, for each block, the sublayers whose outputs add up to the block's output; None for a block where none do.

    Let x and y be a block's input and output, and a and m the outputs of attention and MLP. Then y = x + a + m if norms
    come before the sublayers (also in parallel blocks, and if a second norm follows each), and y = norm(x' + m), x' =
    norm(x + a) if they come after. With attention to an encoder, c, the sums are y = x + a + c + m, or with three
    norms. The sublayer that ends first is attention.

    Modules that add up in every block are preferred. If there are none, because blocks are of several kinds (attention
    in some, a recurrence in others), sublayers are searched in each block separately, and only attention blocks have
    heads.

    Args:
        blocks: the blocks, which all run once in `run`.
        run: a function that runs one forward pass over a batch of one input.
        n_heads: number of heads of a block; None: unknown, so that no block gets heads.
        has_cross: whether blocks also attend to an encoder.
        is_attention: for each block, whether the configuration calls it attention; empty: the configuration does not
            list kinds.
    """
    traces = [[_of_one(call) for call in trace if call.output is not None] for trace in trace_calls(list(blocks), run)]
    count = 3 if has_cross else 2
    if not n_heads or not all(traces):
        return [None] * len(blocks)
    attends = [*is_attention] if len(is_attention) == len(blocks) else [True] * len(blocks)
    if all(attends) or not any(attends):  # else the configuration tells kinds of blocks apart
        # In a block that writes nothing all sublayers look the same: if the first shows none, that which writes most.
        tried = (traces[0], max(traces, key=_change))
        for shown, found in ((trace, found) for trace in tried for found in _candidates(trace, count)):
            projection = _projection(shown, found[0], n_heads)
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


def _change(trace: list[ModuleCall]) -> float:
    """Return how far a block's output is from its input, as a share of the largest entry of the input."""
    x, y = trace[-1].given, trace[-1].output
    if x is None or y is None or x.shape != y.shape:
        return 0.0
    return float((y - x).abs().max() / x.abs().max().clamp_min(1e-30))


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
            same = next((p for p in named if _has_same_bits(inside[p].output, step.output)), place)
            named[same] = min(named.get(same, step.path), step.path, key=lambda path: path.count("."))
    for chosen in combinations(sorted(named), count):
        found = tuple(named[place] for place in chosen)
        if _adds_up(trace, *found):
            yield found


def _has_same_bits(a: Tensor | None, b: Tensor | None) -> bool:
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
