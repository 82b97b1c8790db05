"""Locates positions among the rows of a piece store when it is read, just as extraction would have done."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import embedding_bag

from probing.errors import BadParameter
from probing.states.store import RowTable, Store
from probing.text.alignment import Encoded
from probing.text.corpus import Corpus
from probing.text.positions import SCOPE, Position, check_spans, position_rows
from probing.training.store_view import StoreView

Ints = NDArray[np.int64]
_CUT = 2 | 8  # flags of an example that is truncated, or read in windows


class PiecePositions(StoreView):
    """A piece store seen as a store of one position: the same rows and bits as a store extracted with `position`.

    A piece store has no special pieces, does not know how many follow the text, and not which pieces were cut off. A
    position that would need one of these in any example is refused, never guessed.

    Attributes:
        rows: where each of the R rows comes from.
        position_names: the one.
    """

    def __init__(self, store: Store, corpus: Corpus, position: Position) -> None:
        """Locate the rows of the position.

        Args:
            store: a store of pieces.
            corpus: the corpus it was made from.
            position: which.

        Raises:
            BadParameter: a position that is or may be a special piece in some example, or inputs that are cut.
            UnknownName: no example has such a span, with the nearest.
        """
        check_spans(corpus, [position])
        super().__init__(store, SCOPE)
        self.position_names = (position.name,)
        _refuse_cut(store, position)
        table = store.rows
        ordinals, first = np.unique(table.example, return_index=True)
        bounds = np.append(first, len(table.example))
        parts = [(a, b, _input(table, a, b, position)) for a, b in pairwise(bounds)]
        found = position_rows([corpus.examples[e] for e in ordinals], [one for *_, one in parts], [position])
        example = np.repeat(found.example, np.diff(found.first))  # of each piece
        for e, piece in zip(example.tolist(), found.pieces.tolist(), strict=True):
            if parts[e][2].special[piece]:
                raise _special(store, position, corpus.examples[ordinals[e]].id)
        by_row = {
            (e, piece): row
            for e, (a, b, _) in enumerate(parts)
            for row, piece in zip(range(a, b), table.piece_start[a:b].tolist(), strict=True)
        }
        pairs = zip(example.tolist(), found.pieces.tolist(), strict=True)
        self._home, self._bounds = np.array([by_row[pair] for pair in pairs], dtype=np.int64), found.first
        first, last = self._home[found.first[:-1]], self._home[found.first[1:] - 1]
        self.rows = RowTable(
            **{name: getattr(table, name)[first] for name in ("example", "word", "piece_start", "char_start")},
            **{name: getattr(table, name)[last] for name in ("piece_end", "char_end")},
            position=np.zeros_like(first),
        )

    def read(self, site: str, rows: Ints | None = None) -> NDArray[np.float32]:
        """Return the states `(N, D)` float32 of the rows asked for, of a whole span the mean of its pieces; None:
        all.
        """
        chosen = np.arange(len(self._bounds) - 1) if rows is None else np.asarray(rows, dtype=np.int64)
        counts = self._bounds[chosen + 1] - self._bounds[chosen]
        bounds = np.concatenate([[0], np.cumsum(counts)])
        places = np.repeat(self._bounds[chosen] - bounds[:-1], counts) + np.arange(bounds[-1])
        pieces = self._of_store(site, self._home[places])
        if len(pieces) == len(chosen):
            return pieces
        states, starts = torch.from_numpy(pieces), torch.from_numpy(bounds)
        index = torch.arange(len(states))
        pooled: NDArray[np.float32] = embedding_bag(
            index, states, starts, mode="mean", include_last_offset=True
        ).numpy()
        return pooled


def _input(table: RowTable, first: int, end: int, position: Position) -> Encoded:
    """Return the input of an example as its pieces give it; what is between, before and behind them is taken for
    special.
    """
    pieces = table.piece_start[first:end]
    length = int(pieces[-1]) + 2 + abs(position.shift)  # behind the last so many that a shift ends among them
    offsets, special = np.zeros((length, 2), dtype=np.int64), np.ones(length, dtype=bool)
    offsets[pieces] = np.stack([table.char_start[first:end], table.char_end[first:end]], axis=1)
    special[pieces] = False
    return Encoded(np.zeros(length, dtype=np.int64), offsets, special, np.zeros((0, 2), dtype=np.int64))


def _refuse_cut(store: Store, position: Position) -> None:
    flags: Any = [store.dataset(shard, "/examples/flags") for shard in store.shards]
    n_cut = int((np.concatenate([np.zeros(0, np.uint8), *flags]) & _CUT > 0).sum())
    if n_cut or position.edge in ("input_start", "input_end"):
        why = f"{n_cut} inputs that are cut or read in windows" if n_cut else f"{position.name}, a place of the input"
        raise _refused(store, position, why)


def _special(store: Store, position: Position, name: str) -> BadParameter:
    return _refused(store, position, f"a special piece, or none, in sentence {name}")


def _refused(store: Store, position: Position, found: str) -> BadParameter:
    return BadParameter(
        f"position {position.name} cannot be found in a piece store",
        needed="a piece of the text in every example",
        found=found,
        where=str(store.path),
        next_step=f"extract with --rows {SCOPE}:{position.name}",
    )
