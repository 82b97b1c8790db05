"""Batches: texts as pieces (tokens), padded, and sorted by length; and two forward passes at a time on a CPU, each with
half of the threads, which is faster than one pass with all threads. Inputs are read one by one where they cannot be
padded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Barrier
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from probing.errors import BadParameter, UnsupportedModel
from probing.models.cpu_speed import packed_linear_layers
from probing.models.reading.hooked import HookedModule
from probing.text.alignment import Encoded

T = TypeVar("T")
R = TypeVar("R")
_CHANGING_ROTATIONS = {"dynamic", "longrope"}  # rotary positions that one long input changes for all


class ParallelBatches:
    """Runs a function on items one after another, or on two items at a time.

    Attributes:
        count: number of items at a time.
    """

    def __init__(self, pool: ThreadPoolExecutor | None, count: int) -> None:
        self._pool = pool
        self.count = count

    @classmethod
    @contextmanager
    def opened(cls, count: int) -> Iterator[ParallelBatches]:
        """Within the block, divide PyTorch's threads among `count` workers and yield the object that runs functions on
        them; all workers have ended after the block.
        """
        if count == 1:
            yield cls(None, 1)
            return
        threads, ready = torch.get_num_threads(), Barrier(count + 1)

        def begin() -> None:
            torch.get_num_threads()  # a new thread takes over the number of others once, before its own is set
            torch.set_num_threads(threads // count)
            ready.wait()

        with ThreadPoolExecutor(count, "lane") as pool:
            for _ in range(count):
                pool.submit(begin)  # each in a thread of its own, since each waits for all
            ready.wait()
            torch.set_num_threads(threads)  # which the lanes also set for threads to come
            try:
                yield cls(pool, count)
            finally:
                pool.shutdown(cancel_futures=True)

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Apply `function` to every item and yield the results in the order of the items. If an item fails, its error
        is raised in place of its result, and items not yet begun are not computed.
        """
        if self._pool is None:
            return map(function, items)

        def in_lane(item: T) -> R:
            with torch.inference_mode():  # known to its own thread only
                return function(item)

        return self._pool.map(in_lane, items)


@contextmanager
def many_passes(trunk: HookedModule, sites: Sequence[str]) -> Iterator[ParallelBatches]:
    """Within the block, run forward passes that read exactly these sites faster where possible, and yield the object
    that runs them; the weights must not change.

    Linear layers are packed and hooks stay registered. On a CPU with an even number of threads, two passes run at a
    time with half of the threads each, if a pass does not change the model; otherwise one pass.

    Raises:
        UnknownSite: the model does not have one of the sites.
    """
    can_share = torch.get_num_threads() % 2 == 0 and trunk.may_run_side_by_side
    lanes = ParallelBatches.opened(2 if can_share else 1)
    with torch.inference_mode(), packed_linear_layers(trunk.trunk), trunk.held(sites), lanes as opened:
        yield opened


def keeps_state(model: nn.Module, passes: Sequence[Callable[[], Any]]) -> bool:
    """Return whether a forward pass changes an attribute of the model (a cache of positions, for example), so that
    simultaneous passes would conflict.
    """
    if any(_rotations(module) & _CHANGING_ROTATIONS for module in model.modules()):
        return True
    before = _attributes(model)
    with torch.inference_mode():
        for run in passes:
            run()
    after = _attributes(model)
    return before.keys() != after.keys() or any(
        after[key][0] is not value or after[key][1:] != rest for key, (value, *rest) in before.items()
    )


def _rotations(module: nn.Module) -> set[Any]:
    """Return the kinds of rotary positions of a module: one, or one for each kind of layer."""
    kind = getattr(module, "rope_type", None)
    return set(kind.values()) if isinstance(kind, dict) else {kind}


def _attributes(model: nn.Module) -> dict[tuple[str, str], list[Any]]:
    """Return every attribute of every module: the object itself, and its length or version."""
    found: dict[tuple[str, str], list[Any]] = {}
    for name, module in model.named_modules():
        for key, value in {**vars(module), **module._buffers, **module._parameters}.items():
            if not key.startswith("_forward"):  # hooks come and go
                found[name, key] = [value, *_mark(value)]
    return found


def _mark(value: Any) -> list[Any]:
    if isinstance(value, torch.Tensor):
        return [] if value.is_inference() else [value._version]
    return [len(value)] if isinstance(value, dict | list | set) else []


PASS_COST = 64


def length_sorted_batches(lengths: Sequence[int], tokens_per_batch: int, pass_cost: int = PASS_COST) -> list[list[int]]:
    """Group inputs of similar length into batches of at most `tokens_per_batch` padded pieces, and return the batches
    as lists of positions in `lengths`.

    The longest come first, ties in order. An input longer than the budget forms a batch alone; inputs of length 0 are
    left out. Dynamic programming finds, for that order, the batches with the smallest number of padded pieces +
    `pass_cost` · number of batches.

    Args:
        lengths: number of pieces of each input.
        tokens_per_batch: largest number of padded pieces of a batch.
        pass_cost: cost of one more forward pass, in pieces.
    """
    order = sorted((i for i, length in enumerate(lengths) if length), key=lambda i: (-lengths[i], i))
    best = np.zeros(len(order) + 1, np.int64)  # cost of the inputs from i on,
    cut = [0] * len(order)  # and where its batch ends
    sizes = np.arange(1, len(order) + 1)
    for i in range(len(order) - 1, -1, -1):
        longest = lengths[order[i]]
        largest = min(max(1, tokens_per_batch // longest), len(order) - i)
        costs = longest * sizes[:largest] + best[i + 1 : i + 1 + largest]
        smallest = int(costs.argmin())
        cut[i], best[i] = i + 1 + smallest, pass_cost + costs[smallest]
    batches, i = [], 0
    while i < len(order):
        batches.append(order[i : cut[i]])
        i = cut[i]
    return batches


@dataclass(frozen=True, eq=False)
class PaddedBatch:
    """Holds the inputs of one forward pass: a batch of B inputs of at most T pieces.

    Attributes:
        ids: `(B, T)` vocabulary ids.
        mask: `(B, T)` 1 for pieces, 0 for padding.
        position_ids: `(B, T)` positions; None: the model computes them itself.
    """

    ids: Tensor
    mask: Tensor
    position_ids: Tensor | None


def encoded(tokenizer: Any, texts: Sequence[str]) -> list[Encoded]:
    """Tokenise texts and return their pieces, with special pieces and without truncation."""
    if not texts:
        return []
    batch = tokenizer(
        list(texts),
        truncation=False,
        padding=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        verbose=False,
    )
    columns = zip(batch["input_ids"], batch["offset_mapping"], batch["special_tokens_mask"], strict=True)
    none = np.zeros((0, 2), dtype=np.int64)
    return [
        Encoded(
            np.array(ids, dtype=np.int64),
            np.array(offsets, dtype=np.int64).reshape(-1, 2),
            np.array(special, dtype=bool),
            none,
        )
        for ids, offsets, special in columns
    ]


def check_ids(batch: Sequence[Encoded], limit: int | None, tokenizer: Any, where: str) -> list[Encoded]:
    """Check that every id of a batch has an embedding vector, and return the batch.

    Raises:
        UnsupportedModel: the tokenizer has a piece that the embedding lacks.
    """
    if limit is None:
        return list(batch)
    every = np.concatenate([one.ids for one in batch]) if batch else np.zeros(0, np.int64)
    if not len(every) or 0 <= int(every.min()) <= int(every.max()) < limit:
        return list(batch)
    for one in batch:
        if len(one) and not 0 <= int(one.ids.min()) <= int(one.ids.max()) < limit:
            bad = next(int(i) for i in one.ids if not 0 <= i < limit)
            raise UnsupportedModel(
                "the tokenizer has a piece that the model has no vector for",
                needed=f"ids below {limit}",
                found=f"piece {tokenizer.convert_ids_to_tokens(bad)!r} with id {bad}, of {len(tokenizer)} pieces",
                where=where,
                next_step="use the tokenizer that the model was trained with",
            )
    return list(batch)


def padding_id(chosen: int | None, trunk: HookedModule) -> int:
    """Return the id to pad with: the tokenizer's padding id if it is in the model's vocabulary, else
    `counting_padding_id` of the model, else 0.
    """
    return next((i for i in (chosen, trunk.counting_padding_id) if i is not None and 0 <= i < trunk.vocabulary), 0)


def padded(
    batch: Sequence[Encoded], starts: Sequence[int], padding: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Pad a batch and return ids and mask `(B, T)`; `starts` is the column of each input's first piece.

    Raises:
        BadParameter: an input has no pieces.
    """
    lengths = np.array([len(e.ids) for e in batch], dtype=np.int64)
    if not lengths.all() or not len(lengths):
        raise BadParameter("an input without pieces cannot be run", needed="at least one piece", found="none")
    columns, first = np.arange(lengths.max()), np.asarray(starts, dtype=np.int64)[:, None]
    is_real = (columns >= first) & (columns < first + lengths[:, None])
    ids = np.full(is_real.shape, padding, dtype=np.int64)
    ids[is_real] = np.concatenate([e.ids for e in batch])
    mask = is_real.astype(np.int64)
    return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)


def decoder_inputs(ids: Tensor, mask: Tensor, start: int) -> dict[str, Tensor]:
    """Put the start piece just before the first real piece of every input, and return the arguments `decoder_input_ids`
    and `decoder_attention_mask`, `(B, T + 1)`.
    """
    before = torch.full_like(ids[:, :1], start)
    first = mask.argmax(1)
    shifted, shown = torch.cat([before, ids], 1), torch.cat([torch.zeros_like(before), mask], 1)
    rows = torch.arange(len(ids), device=ids.device)
    shifted[rows, first], shown[rows, first] = start, 1
    return {"decoder_input_ids": shifted, "decoder_attention_mask": shown}


Read = Callable[[Tensor, Tensor, Sequence[str]], dict[str, Tensor]]


def read_alone(read: Read, ids: Tensor, mask: Tensor, sites: Sequence[str]) -> dict[str, Tensor]:
    """Run inputs one at a time and return the states `(B, T, D)` at the sites, 0 at padding."""
    found: dict[str, Tensor] = {}
    for row, real in enumerate(mask.bool()):
        alone = read(ids[row, real][None], mask[row, real][None], sites)
        for site, state in alone.items():
            if site not in found:
                found[site] = state.new_zeros((*ids.shape, state.shape[-1]))
            found[site][row, real] = state[0]
    return found
