"""Aligns words with tokens by character offsets of the source text, and lists the tokens of each row of a store (a
word, sentence or token). Names in the code call tokens "pieces".

All functions process several examples at once: their texts are concatenated, so that one binary search assigns every
token to its word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.errors import AlignmentError

Ints = NDArray[np.int64]
Spans = Sequence[tuple[int, int]]

_SPACES = np.array([c for c in range(0x3001) if chr(c).isspace()], dtype=np.uint32)


@dataclass(frozen=True)
class Encoded:
    """Holds a text as T tokens, the input of a model.

    Attributes:
        ids: `(T,)` int64 vocabulary ids, special tokens included.
        offsets: `(T, 2)` int64 half-open span of each token in code points of the text.
        special: `(T,)` bool, true at tokens outside the text, such as those that the tokenizer or a chat template adds.
        cut: `(M, 2)` int64 half-open span in the text of each token that was cut off.
    """

    ids: Ints
    offsets: Ints
    special: NDArray[np.bool_]
    cut: Ints

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def is_truncated(self) -> bool:
        """Whether tokens were cut off."""
        return len(self.cut) > 0

    def emptied(self) -> Encoded:
        """Return the input with no tokens, not even special ones; all tokens of the text are listed in `cut`."""
        return Encoded(self.ids[:0], self.offsets[:0], self.special[:0], self.offsets[~self.special])

    def truncated(self, limit: int) -> Encoded:
        """Return the input with at most `limit` tokens: tokens of the text are dropped from the end, special tokens
        stay.
        """
        content = np.flatnonzero(~self.special)
        excess = len(self) - limit
        if excess <= 0 or not len(content):
            return self
        lost = content[-min(excess, len(content)) :]
        keep = np.ones(len(self), dtype=bool)
        keep[lost] = False
        cut = np.concatenate([self.offsets[lost], self.cut])
        return Encoded(self.ids[keep], self.offsets[keep], self.special[keep], cut)


@dataclass(frozen=True)
class Rows:
    """Lists the tokens of each of the R rows (words, sentences or tokens) of E examples, ordered by example, then
    token.

    Attributes:
        offset: `(E+1,)`; the rows of example e are `offset[e]:offset[e+1]`.
        example: `(R,)` index of the row's example among the E examples.
        word: `(R,)` word index, -1 for none.
        piece: `(R, 2)` half-open span of the row's tokens in the input.
        char: `(R, 2)` half-open span of the row's characters; (0, 0) for special tokens.
        first: `(R+1,)`; row r is pooled from `pieces[first[r]:first[r+1]]`.
        pieces: indices, in the example's input, of the tokens that are pooled.
        missing: (index of the example, index of the word, reason) for each word without a row.
        skipped: (index of the example, reason) for each example without any row.
        position: `(R,)` index of the named position, if rows are positions; `missing` then has this index in place of
            the word.
    """

    offset: Ints
    example: Ints
    word: Ints
    piece: Ints
    char: Ints
    first: Ints
    pieces: Ints
    missing: tuple[tuple[int, int, str], ...] = ()
    skipped: tuple[tuple[int, str], ...] = ()
    position: Ints | None = None

    def __len__(self) -> int:
        return len(self.example)


def check_words(words: Sequence[Spans], lengths: Sequence[int], names: Sequence[str]) -> None:
    """Check that word spans can be aligned with tokens.

    Args:
        words: word spans of every example.
        lengths: text lengths in code points.
        names: sentence ids, for messages.

    Raises:
        AlignmentError: a span lies outside its text, is out of order, or partly overlaps another.
    """
    spans, example = _flat_spans(words)
    start, end = spans[:, 0], spans[:, 1]
    bad = (start < 0) | (end < start) | (end > np.asarray(lengths, dtype=np.int64)[example])
    later = np.zeros(len(spans), dtype=bool)
    equal = (start[1:] == start[:-1]) & (end[1:] == end[:-1])
    later[1:] = (example[1:] == example[:-1]) & (start[1:] < end[:-1]) & ~equal
    for index in np.flatnonzero(bad | later)[:1]:
        e = int(example[index])
        raise AlignmentError(
            "word spans cannot be aligned to pieces",
            needed="spans inside the text, in order, disjoint or equal",
            found=f"{start[index]}:{end[index]} in a text of {lengths[e]} characters",
            where=f"sentence {names[e]}",
            next_step="correct the spans of this sentence",
        )


def word_rows(texts: Sequence[str], words: Sequence[Spans], encoded: Sequence[Encoded], pool: str = "mean") -> Rows:
    """Return one row per word that has tokens.

    A token belongs to the word that contains its first non-space character (a byte-level token may include the space
    before it). Words that share one span, such as those of a multiword token, each have all tokens of the span. A word
    of which a token was cut off has no row, so that no incomplete word is pooled.

    Args:
        texts: source texts.
        words: half-open spans of every text, checked by `check_words`.
        encoded: the tokenised texts.
        pool: `first` or `last` to use only that token; for other names all tokens are pooled.
    """
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    base = np.concatenate([[0], np.cumsum(lengths)])
    spans, example = _flat_spans(words)
    spans = spans + base[example][:, None]
    table, span_of_word = _distinct(spans)
    following = _next_visible("".join(texts))

    sizes = np.array([len(e) for e in encoded], dtype=np.int64)
    owner = _owners(table, following, base, [np.where(e.special[:, None], 0, e.offsets) for e in encoded])
    lost = _owners(table, following, base, [e.cut for e in encoded])
    kept = np.bincount(owner[owner >= 0], minlength=len(table))
    cut = np.bincount(lost[lost >= 0], minlength=len(table)) > 0

    has_span = span_of_word >= 0
    safe = np.where(has_span, span_of_word, 0)
    n_pieces = np.where(has_span, kept[safe], 0) if len(table) else np.zeros(len(spans), dtype=np.int64)
    is_cut = has_span & cut[safe] if len(table) else np.zeros(len(spans), dtype=bool)
    chosen = np.flatnonzero((n_pieces > 0) & ~is_cut)
    word_index = np.arange(len(spans)) - np.concatenate([[0], np.cumsum([len(w) for w in words])])[example]
    missing = tuple(
        (int(example[w]), int(word_index[w]), "truncated" if is_cut[w] else "no_pieces")
        for w in np.flatnonzero((n_pieces == 0) | is_cut)
    )

    by_span = np.argsort(owner, kind="stable")[int((owner < 0).sum()) :]
    span_first = np.concatenate([[0], np.cumsum(kept)])
    within = by_span - np.repeat(np.cumsum(sizes) - sizes, sizes)[by_span]
    groups = (span_first[span_of_word[chosen]], n_pieces[chosen])
    return _rows(
        example[chosen],
        word_index[chosen],
        spans[chosen] - base[example[chosen]][:, None],
        within,
        *groups,
        pool=pool,
        n_examples=len(texts),
        missing=missing,
        empty="nothing_selected",
    )


def piece_rows(
    texts: Sequence[str], words: Sequence[Spans], encoded: Sequence[Encoded], *, with_special: bool = False
) -> Rows:
    """Return one row per token that is not special; its `word` is the first word that the token belongs to, -1 if there
    is none.

    With `with_special`, special tokens have rows too, with word -1 and characters 0 to 0. Arguments are those of
    `word_rows`. Words that have no row in `word_rows` are listed in `missing`, so that later pooling also leaves them
    out.
    """
    offsets = [np.where(e.special[:, None], 0, e.offsets) for e in encoded]
    base = np.concatenate([[0], np.cumsum([len(text) for text in texts])]).astype(np.int64)
    spans, example = _flat_spans(words)
    table, span_of_word = _distinct(spans + base[example][:, None])
    owner = _owners(table, _next_visible("".join(texts)), base, offsets)
    n_before = np.concatenate([[0], np.cumsum([len(w) for w in words])])
    first_word = np.full(len(table), -1, dtype=np.int64)
    has_span = np.flatnonzero(span_of_word >= 0)[::-1]
    first_word[span_of_word[has_span]] = (np.arange(len(spans)) - n_before[example])[has_span]
    word = np.where(owner >= 0, first_word[owner], -1) if len(table) else np.full(len(owner), -1, dtype=np.int64)

    sizes = np.array([len(e) for e in encoded], dtype=np.int64)
    special = np.concatenate([np.zeros(0, dtype=bool), *(e.special for e in encoded)])
    chosen = np.flatnonzero(~special | with_special)
    of_example = np.repeat(np.arange(len(encoded)), sizes)
    within = np.arange(len(special)) - (np.cumsum(sizes) - sizes)[of_example]
    char = _stacked(offsets)[chosen]
    groups = (chosen, np.ones(len(chosen), dtype=np.int64))
    return _rows(
        of_example[chosen],
        word[chosen],
        char,
        within,
        *groups,
        pool="mean",
        n_examples=len(texts),
        missing=word_rows(texts, words, encoded).missing,
        empty="no_pieces",
    )


def sentence_rows(encoded: Sequence[Encoded], pool: str = "mean", cls_id: int | None = None) -> Rows:
    """Return one row per example that has tokens; the row pools all tokens that are not special, or is the CLS token
    (vocabulary id `cls_id`) if `pool` is `cls`.

    Raises:
        AlignmentError: `pool` is `cls` and an input has no CLS token.
    """
    content = []
    for e in encoded:
        found = np.flatnonzero(e.ids == cls_id)[:1] if pool == "cls" else np.flatnonzero(~e.special)
        if pool == "cls" and len(e) and not len(found):
            raise AlignmentError(
                "sentence:cls needs a CLS piece",
                needed="an input that holds the tokenizer's CLS piece",
                found="none",
                next_step="use sentence:last or sentence:mean",
            )
        content.append(found)
    counts = np.array([len(c) for c in content], dtype=np.int64)
    chosen = np.flatnonzero(counts)
    within = np.concatenate([np.zeros(0, dtype=np.int64), *content])
    starts = (np.cumsum(counts) - counts)[chosen]
    char = [
        (0, 0) if pool == "cls" else (encoded[e].offsets[content[e][0], 0], encoded[e].offsets[content[e][-1], 1])
        for e in chosen.tolist()
    ]
    return _rows(
        chosen,
        np.full(len(chosen), -1, dtype=np.int64),
        np.array(char, dtype=np.int64).reshape(-1, 2),
        within,
        starts,
        counts[chosen],
        pool=pool,
        n_examples=len(encoded),
        missing=(),
        empty="no_pieces",
    )


def _rows(
    example: Ints,
    word: Ints,
    char: Ints,
    within: Ints,
    start: Ints,
    count: Ints,
    *,
    pool: str,
    n_examples: int,
    missing: tuple[tuple[int, int, str], ...],
    empty: str,
) -> Rows:
    """Return rows of which the r-th pools `within[start[r] : start[r] + count[r]]`."""
    last = start + count - 1
    piece = np.stack([within[start], within[last] + 1], axis=1) if len(start) else np.zeros((0, 2), dtype=np.int64)
    if pool == "last":
        start = last
    if pool in ("first", "last"):
        count = np.ones_like(count)
    first = np.concatenate([[0], np.cumsum(count)])
    pieces = within[np.repeat(start - first[:-1], count) + np.arange(first[-1])]
    per_example = np.bincount(example, minlength=n_examples)
    skipped = tuple((int(e), empty) for e in np.flatnonzero(per_example == 0))
    offset = np.concatenate([[0], np.cumsum(per_example)])
    return Rows(offset, example, word, piece, char, first, pieces, missing, skipped)


def _flat_spans(words: Sequence[Spans]) -> tuple[Ints, Ints]:
    """Return all spans `(W, 2)` and the example of each `(W,)`."""
    flat = np.array([span for spans in words for span in spans], dtype=np.int64).reshape(-1, 2)
    return flat, np.repeat(np.arange(len(words)), [len(spans) for spans in words])


def _distinct(spans: Ints) -> tuple[Ints, Ints]:
    """Return the distinct non-empty spans in order, and for each span its index among them (-1: empty)."""
    filled = spans[:, 1] > spans[:, 0]
    kept = spans[filled]
    new = np.ones(len(kept), dtype=bool)
    new[1:] = (kept[1:] != kept[:-1]).any(axis=1)
    index = np.full(len(spans), -1, dtype=np.int64)
    index[filled] = np.cumsum(new) - 1
    return kept[new], index


def _next_visible(text: str) -> Ints:
    """Return, for every position of the text, the first position from it on that is not white space; its length if
    none.
    """
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    places = np.where(np.isin(codes, _SPACES), len(codes), np.arange(len(codes)))
    return np.append(np.minimum.accumulate(places[::-1])[::-1], len(codes))


def _owners(table: Ints, following: Ints, base: Ints, offsets: list[Ints]) -> Ints:
    """Return the span of `table` that holds each piece's first visible character; -1 for none and for zero-width
    pieces.
    """
    flat = _stacked(offsets) + np.repeat(base[:-1], [len(o) for o in offsets])[:, None]
    char = following[flat[:, 0]]
    if not len(table):
        return np.full(len(flat), -1, dtype=np.int64)
    index = np.searchsorted(table[:, 0], char, side="right") - 1
    inside = (char < flat[:, 1]) & (index >= 0) & (char < table[index, 1])
    return np.where(inside, index, -1)


def _stacked(parts: list[Any]) -> Ints:
    return np.concatenate([np.zeros((0, 2), dtype=np.int64), *parts])
