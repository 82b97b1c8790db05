"""Finds blocks, piece embedding and final norm of a Transformer by running a small text: no family is known by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from probing.errors import UnsupportedModel
from probing.models.discovery.layout import PLAIN, Layout, shared_layout
from probing.models.discovery.tracing import ModuleCall, is_norm, is_same

NEXT_STEP = "read it by module paths alone (sites NAME=MODULE.PATH), or choose another model"


@dataclass(frozen=True)
class Blocks:
    """The blocks that a text goes through.

    Attributes:
        paths: of each, inside the part that was traced.
        modules: the blocks.
        layout: how the states between them lie.
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
    """Return the blocks: the longest list of modules whose members run once each, in a chain, on one state a piece.

    A list that does not run on text, such as the blocks of a vision tower, does not count, however long. Members that
    do not run, such as those that predict further pieces in training, are left out.

    Args:
        part: what has the blocks.
        calls: of a pass over a text.
        shape: (B, T) of that text.
        width: the width that the model's configuration names: among lists that will do, those of this width come first.
        family: what messages call it.

    Raises:
        UnsupportedModel: there is none, with the reason why the likeliest is not.
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
    """Return the piece embedding: the one that the model names, else the first module that is given ids; None: there is
    none.
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
    """Return the norm that takes the output of the last block, and whose output a module around the blocks returns."""
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
