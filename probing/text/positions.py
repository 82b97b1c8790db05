"""Named positions of a prompt (`entity`, `entity.last`, `answer.before`, `end`), and the pieces (tokens) at each
position.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from probing.errors import AlignmentError, BadParameter, unknown_name
from probing.provenance import digest
from probing.text.alignment import Encoded, Ints, Rows
from probing.text.corpus import Corpus, Example

SCOPE = "position"
MAX_POSITIONS = 1000
WHOLE_SPAN = "all"
_WHOLE = ("start", "end", "input_start", "input_end")
_EDGES = {"first": ("first", 0), "last": ("last", 0), "before": ("first", -1), "after": ("last", 1)}
_FORM = re.compile(r"(?P<name>[A-Za-z_]\w*)(\.(?P<edge>first|last|before|after))?(?P<shift>[+-][0-9]{1,5})?")
_NEEDED = (
    "SPAN (all its pieces), or start, end, input_start, input_end, SPAN.first, SPAN.last, SPAN.before or SPAN.after, "
    "each with +N or -N"
)


@dataclass(frozen=True)
class Position:
    """Describes a position: a whole span, or an edge of a span, of the text or of the input, shifted by a number of
    pieces.

    A name alone always means the whole span: all pieces from its first to its last.

    Attributes:
        name: the position as text: `entity` for a whole span, or with its edge, `entity.last`.
        span: name of the span; "" if the position is relative to the text or the input.
        edge: `all` (all pieces of the span), `first` or `last` (of the span), `start` or `end` (of the text),
            `input_start` or `input_end`.
        shift: number of pieces to move from the edge, negative towards the beginning; special pieces are counted.
    """

    name: str
    span: str
    edge: str
    shift: int

    @classmethod
    def parse(cls, text: str) -> Position:
        """Parse a position: `end`, `entity` (the whole span), `entity.first`, `answer.before`, `end-2`,
        `entity.last+1`.

        Raises:
            BadParameter: the text has another form.
        """
        match = _FORM.fullmatch(text.strip())
        name, edge, shift = (match["name"], match["edge"], match["shift"] or "") if match else ("", None, "")
        if not match or (name in _WHOLE and edge):
            raise BadParameter(f"{text.strip()!r} is no position", needed=_NEEDED, found=repr(text.strip()))
        if name in _WHOLE:
            return cls(name + shift, "", name, int(shift or 0))
        if not edge and not shift:
            return cls(name, name, WHOLE_SPAN, 0)
        anchor, step = _EDGES[edge or "last"]
        return cls(f"{name}.{edge or 'last'}{shift}", name, anchor, step + int(shift or 0))


def parse_positions(text: str) -> tuple[Position, ...]:
    """Parse a text such as `entity.last,answer.before,end` and return its positions, in the order given.

    Raises:
        BadParameter: a position has another form or occurs twice, or there are too many.
    """
    found = tuple(Position.parse(part) for part in text.split(","))
    names = [position.name for position in found]
    if len(set(names)) < len(names) or len(names) > MAX_POSITIONS:
        raise BadParameter("a position is given twice", needed="different positions", found=", ".join(names))
    return found


def check_spans(corpus: Corpus, positions: Sequence[Position]) -> None:
    """Check that each named span occurs in at least one example, and that all these spans lie inside their text.

    Raises:
        UnknownName: no example has the span; the message names the nearest.
        AlignmentError: a span leaves its text; the message names the sentence.
    """
    wanted = dict.fromkeys(position.span for position in positions if position.span)
    known = {name for example in corpus.examples for name in example.spans}
    for name in wanted:
        if name not in known:
            raise unknown_name("span", name, known, where=corpus.source)
    for example in corpus.examples:
        for name in wanted:
            start, end = example.spans.get(name, (0, 0))
            if not 0 <= start <= end <= len(example.text):
                raise AlignmentError(
                    f"span {name!r} is not in its text",
                    needed=f"0 ≤ start ≤ end ≤ {len(example.text)}",
                    found=f"{start}:{end}",
                    where=f"sentence {example.id}",
                    next_step="correct the spans",
                )


def positions_identity(corpus: Corpus, positions: Sequence[Position]) -> dict[str, Any]:
    """Return, for a store's identity, the names of the positions and a hash of the spans they refer to."""
    names = sorted({position.span for position in positions if position.span})
    spans = [
        [list(example.spans[name]) if name in example.spans else None for name in names] for example in corpus.examples
    ]
    return {"position_names": [position.name for position in positions], "spans_sha256": digest([names, spans])}


def position_rows(examples: Sequence[Example], encoded: Sequence[Encoded], positions: Sequence[Position]) -> Rows:
    """Return one row per example and position at which the example has a piece (token), in the order of the examples
    and, within one, of the first piece of each row.

    A row of a whole span such as `entity` covers all its pieces, from the first to the last that share a character
    (other than white space) with the span; its states are pooled. The word of a row is that of its first piece.
    `missing` lists, by index, each position without a row and the reason: `nothing_selected` if the example has no such
    span, `truncated` if one of the span's pieces was cut off, else `no_pieces`.

    A piece is in a span if it shares a visible character with it; the row of a whole span pools all pieces from the
    first such piece to the last, and its word is the word of the first piece. `missing` lists every position without a
    row by its index, with the reason: `nothing_selected` if there is no such span, `truncated` if a piece of it was cut
    off, else `no_pieces`.
    """
    found: list[tuple[int, int, int, int, int]] = []  # example, first piece, last piece, position, word
    missing: list[tuple[int, int, str]] = []
    for e, (example, one) in enumerate(zip(examples, encoded, strict=True)):
        visible = _visible(example.text, one.offsets)
        pieces = [_pieces_at(position, example, one, visible) for position in positions]
        missing += [(e, p, piece) for p, piece in enumerate(pieces) if isinstance(piece, str)]
        rows = sorted((*ends, p) for p, ends in enumerate(pieces) if not isinstance(ends, str))
        starts = [start for start, _ in example.words]
        found += [(e, a, z, p, _word_at(int(visible[a]), one, a, example, starts)) for a, z, p in rows]
    example_of, first, last, position, word = np.array(found, dtype=np.int64).reshape(-1, 5).T
    counts, sizes = np.bincount(example_of, minlength=len(examples)), last + 1 - first
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    offsets = [one.offsets for one in encoded]
    char = np.array([(offsets[e][a, 0], offsets[e][z, 1]) for e, a, z, _, _ in found], dtype=np.int64).reshape(-1, 2)
    return Rows(
        offset=np.concatenate([[0], np.cumsum(counts)]),
        example=example_of,
        word=word,
        piece=np.stack([first, last + 1], axis=1),
        char=char,
        first=bounds,
        pieces=np.arange(bounds[-1]) + np.repeat(first - bounds[:-1], sizes),
        missing=tuple(missing),
        skipped=tuple((int(e), "nothing_selected") for e in np.flatnonzero(counts == 0)),
        position=position,
    )


def _pieces_at(position: Position, example: Example, one: Encoded, visible: Ints) -> tuple[int, int] | str:
    """Return the first and the last piece of a position, or why there is none."""
    if position.edge != WHOLE_SPAN:
        found = _piece_at(position, example, one, visible)
        return found if isinstance(found, str) else (found, found)
    first, last = (_piece_at(Position("", position.span, edge, 0), example, one, visible) for edge in ("first", "last"))
    if isinstance(first, str) or isinstance(last, str):
        return first if isinstance(first, str) else str(last)
    return first, last


def _piece_at(position: Position, example: Example, one: Encoded, visible: Ints) -> int | str:
    """Return the piece of a position, or why there is none."""
    content = np.flatnonzero(~one.special)
    if position.edge in ("input_start", "input_end"):
        target = (0 if position.edge == "input_start" else len(one) - 1) + position.shift
        return target if 0 <= target < len(one) else "no_pieces"
    inside = content
    if position.span:
        if position.span not in example.spans:
            return "nothing_selected"
        start, end = example.spans[position.span]
        inside = content[_overlaps(visible[content], one.offsets[content, 1], start, end)]
        is_cut = bool(_overlaps(_visible(example.text, one.cut), one.cut[:, 1], start, end).any())
    else:
        is_cut = one.is_truncated and (position.edge == "end" or not len(content))
    if is_cut or not len(inside):
        return "truncated" if is_cut else "no_pieces"
    target = int(inside[0] if position.edge in ("first", "start") else inside[-1]) + position.shift
    if one.is_truncated and target > content[-1]:
        return "truncated"
    return target if 0 <= target < len(one) else "no_pieces"


def _visible(text: str, offsets: Ints) -> Ints:
    """Return the first character of each piece that is not white space, `(T,)`; its end if there is none."""
    first = offsets[:, 0].copy()
    for t, (start, end) in enumerate(offsets.tolist()):
        if start < end and text[start].isspace():
            first[t] = start + len(text[start:end]) - len(text[start:end].lstrip())
    return first


def _overlaps(visible: Ints, end: Ints, span_start: int, span_end: int) -> Any:
    return (visible < end) & (visible < span_end) & (end > span_start)


def _word_at(char: int, one: Encoded, piece: int, example: Example, starts: list[int]) -> int:
    """Return the first of the words that hold a piece's first visible character; -1 for none and for special pieces."""
    index = bisect_right(starts, char) - 1
    if one.special[piece] or index < 0 or not example.words[index][0] <= char < example.words[index][1]:
        return -1
    return example.words.index(example.words[index])
