"""Presents the rows of a store as a task reads them: pieces (tokens) pooled into words or sentences, or one position of
several.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import embedding_bag

from probing.errors import BadParameter, ProvenanceMismatch, unknown_name
from probing.labels import Pieces
from probing.states.store import RowTable, Store
from probing.text.alignment import Encoded
from probing.text.corpus import Corpus
from probing.text.positions import SCOPE, Position, check_spans, parse_positions, position_rows, positions_identity


class StoreView:
    """Base of views of a store with other rows; everything that does not depend on the rows is taken from the store.

    Attributes:
        base: the store that is viewed; for a view of a view, the store below both.
        identity: the store's identity, with `rows` replaced by that of the view.
        sites, path, store_id, content_id, environment, inputs, unknown_pieces, cut_inputs, max_length: those of the
            store.
    """

    def __init__(self, store: Any, rows: str) -> None:
        self._store, self.base = store, getattr(store, "base", store)
        self.identity = store.identity | {"extraction": store.identity["extraction"] | {"rows": rows}}
        self.sites, self.path = store.sites, store.path
        self.store_id, self.content_id = store.store_id, store.content_id
        self.environment = store.environment
        self.inputs, self.unknown_pieces = store.inputs, store.unknown_pieces
        self.cut_inputs, self.max_length = store.cut_inputs, store.max_length

    def width(self, site: str) -> int:
        """Return the number of features at a site."""
        width: int = self._store.width(site)
        return width

    def _of_store(self, site: str, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return states `(N, D)` of rows of the store itself."""
        states: NDArray[np.float32] = self._store.read(site, rows)
        return states


_CUT = 2 | 8  # flags of an example that is truncated, or read in windows


class PiecePositions(StoreView):
    """Presents one position of each example of a piece store as a store, with the same rows and bits as a store
    extracted with that position.

    A piece store has no special pieces, and does not record how many follow the text or which pieces were cut off. A
    position that needs such information in any example is refused.

    Attributes:
        rows: example and word of each of the R rows.
        position_names: the name of the position.
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
        """Return the states `(N, D)` float32 of these rows (for a whole span the mean of its pieces); None: of all
        rows.
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


Ints = NDArray[np.int64]
POOLINGS = (
    "word:first",
    "word:last",
    "word:mean",
    "word:max",
    "sentence:first",
    "sentence:last",
    "sentence:mean",
    "sentence:max",
)


def with_rows(store: Any, corpus: Corpus, rows: str | None, level: str) -> Any:
    """Return the store with the requested rows: unchanged, a piece store pooled to `rows` (default: the mean at this
    level), or one position (`position:NAME`) of a store of positions or pieces.

    Raises:
        BadParameter: the store cannot give such rows.
        ProvenanceMismatch: the positions in the store were made from other spans than the corpus has.
    """
    own = store.identity["extraction"]["rows"]
    if own == SCOPE:
        return PositionStore(store, corpus, rows)
    if own != "piece":
        if rows not in (None, own):
            raise BadParameter(
                "only a piece store is pooled when it is read",
                needed=f"rows {own}",
                found=f"rows {rows}",
                where=str(getattr(store, "path", "")),
                next_step="leave rows out, or extract with --rows piece",
            )
        return store
    scope, _, name = (rows or "").partition(":")
    if scope == SCOPE and name:
        return PositionStore(PiecePositions(store, corpus, Position.parse(name)), corpus, rows)
    return PooledStore(store, corpus, rows or f"{level}:mean")


class PooledStore(StoreView):
    """Presents a piece store as a store of words or sentences. States equal those pooled at extraction, up to the
    rounding of the stored dtype.

    Attributes:
        rows: example and word of each of the R pooled rows.
    """

    def __init__(self, store: Store, corpus: Corpus, rows: str) -> None:
        """Group the pieces into rows.

        Args:
            store: a store of pieces.
            corpus: the corpus it was made from.
            rows: one of `POOLINGS`.

        Raises:
            BadParameter: another pooling, with the nearest.
        """
        if rows not in POOLINGS:
            raise unknown_name("pooling of pieces", rows, POOLINGS, error=BadParameter)
        super().__init__(store, f"{rows} of pieces")
        scope, _, self._how = rows.partition(":")
        table = store.rows
        lost = {(e, w) for e, w, _ in store.missing_words}
        words_of = _words(corpus, lost) if scope == "word" else None
        self._first, self._bounds, example, word = _groups(table, words_of)
        last = self._bounds - 1
        self.rows = RowTable(
            example=example,
            word=word,
            piece_start=table.piece_start[self._first],
            piece_end=table.piece_end[last],
            char_start=table.char_start[self._first],
            char_end=table.char_end[last],
        )

    def read(self, site: str, rows: Ints | None = None) -> NDArray[np.float32]:
        """Return the pooled states `(N, D)` float32 of these rows; None: of all rows."""
        chosen = np.arange(len(self._first)) if rows is None else np.asarray(rows)
        first, end = self._first[chosen], self._bounds[chosen]
        if self._how == "first":
            return self._of_store(site, first)
        if self._how == "last":
            return self._of_store(site, end - 1)
        pieces = self.pieces(site, chosen)
        states, bounds = torch.from_numpy(pieces.states), torch.from_numpy(pieces.bounds)
        pooled: NDArray[np.float32] = embedding_bag(
            torch.arange(len(states)), states, bounds, mode=self._how, include_last_offset=True
        ).numpy()
        return pooled

    def pieces(self, site: str, rows: Ints) -> Pieces:
        """Return the states of the pieces of these rows, not pooled."""
        first, counts = self._first[rows], self._bounds[rows] - self._first[rows]
        bounds = np.concatenate([[0], np.cumsum(counts)])
        places = np.repeat(first - bounds[:-1], counts) + np.arange(bounds[-1])
        return Pieces(self._of_store(site, places), bounds)


class PositionStore(StoreView):
    """Presents one position of a store of positions as a store with at most one row per example.

    Attributes:
        one_of_several: name of the position if the store has others as well, else "".
        rows: example and word of each row; the other attributes are those of `StoreView`.
    """

    def __init__(self, store: Store | PiecePositions, corpus: Corpus, rows: str | None) -> None:
        """Choose the rows of the position.

        Args:
            store: a store of positions, or a piece store seen as one.
            corpus: the corpus it was made from.
            rows: `position:NAME`; None where the store has one position only.

        Raises:
            BadParameter: no such position, or none chosen of several.
            ProvenanceMismatch: the corpus has other spans.
        """
        names = store.position_names
        _check_spans(store, corpus)
        scope, _, asked = (rows or f"{SCOPE}:{names[0] if len(names) == 1 else ''}").partition(":")
        name = parse_positions(asked)[0].name if scope == SCOPE and asked else asked
        if scope != SCOPE or name not in names:
            raise BadParameter(
                "which position?",
                needed=" or ".join(f"rows {SCOPE}:{name}" for name in names),
                found=f"rows {rows}" if rows else "none chosen",
                where=str(store.path),
                next_step=f"{name} is the whole span; this store has its last piece: rows {SCOPE}:{name}.last"
                if f"{name}.last" in names
                else "choose one with rows (--rows), or extract again with the positions you want",
            )
        super().__init__(store, f"{SCOPE}:{name}")
        table = store.rows
        self._chosen = np.flatnonzero(np.asarray(table.position) == names.index(name))
        self.one_of_several = name if len(names) > 1 else ""
        columns = ("example", "piece_start", "piece_end", "char_start", "char_end")
        self.rows = RowTable(
            word=np.full(len(self._chosen), -1, dtype=np.int64),
            **{column: getattr(table, column)[self._chosen] for column in columns},
        )

    def read(self, site: str, rows: Ints | None = None) -> NDArray[np.float32]:
        """Return the states `(N, D)` float32 of these rows; None: of all rows."""
        return self._of_store(site, self._chosen if rows is None else self._chosen[np.asarray(rows)])


def _check_spans(store: Store | PiecePositions, corpus: Corpus) -> None:
    recorded = store.identity["extraction"].get("spans_sha256")
    positions = parse_positions(",".join(store.position_names))
    if recorded is not None and positions_identity(corpus, positions)["spans_sha256"] != recorded:
        raise ProvenanceMismatch(
            "the states of this store were read at other spans",
            needed="the spans the store was extracted with",
            found=f"other spans in {corpus.source}",
            where=str(store.path),
            next_step="give the same corpus and reader options as for `probing extract`",
        )


def _words(corpus: Corpus, lost: set[tuple[int, int]]) -> Callable[[int, int], Sequence[int]]:
    """Return a function that gives the words that have the pieces of a word: itself and those of the same span, as in a
    multiword token.
    """

    def words_of(example: int, word: int) -> Sequence[int]:
        spans = corpus.examples[example].words
        end = word + 1
        while end < len(spans) and spans[end] == spans[word]:
            end += 1
        return [w for w in range(word, end) if (example, w) not in lost]

    return words_of


def _groups(table: RowTable, words_of: Callable[[int, int], Sequence[int]] | None) -> tuple[Ints, Ints, Ints, Ints]:
    """Return, for each pooled row, its first piece row, one past its last, its example and its word."""
    change = np.ones(len(table.example), dtype=bool)
    change[1:] = table.example[1:] != table.example[:-1]
    if words_of is not None:
        change[1:] |= table.word[1:] != table.word[:-1]
    first = np.flatnonzero(change)
    end = np.append(first[1:], len(change))
    if words_of is None:
        return first, end, table.example[first], np.full(len(first), -1, dtype=np.int64)
    found = [
        (a, b, e, w)
        for a, b, e, word in zip(first, end, table.example[first].tolist(), table.word[first].tolist(), strict=True)
        if word >= 0
        for w in words_of(e, word)
    ]
    columns = np.array(found, dtype=np.int64).reshape(-1, 4)
    return columns[:, 0], columns[:, 1], columns[:, 2], columns[:, 3]
