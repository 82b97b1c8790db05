"""Reads states of rows at places, block inputs and answers from one pass, or from a replay store."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding_bag

from probing.contracts.behaviour import Outputs
from probing.contracts.edited_model import Place
from probing.errors import NonFiniteStates, ProvenanceMismatch
from probing.models.site import Site
from probing.results.use import Answers, visible
from probing.states.extraction.replaying import Replay
from probing.use.edited_models._rows import Flat, Sequences, TextRows

Ints = NDArray[np.int64]


class Pieces:
    """The pieces of N rows at one position, laid end to end."""

    def __init__(self, pieces: Sequence[Ints]) -> None:
        self._flat = np.concatenate(pieces).astype(np.int64)
        self._bounds = np.concatenate([[0], np.cumsum([len(one) for one in pieces])]).astype(np.int64)

    def sizes(self, rows: Ints) -> Ints:
        """Return the number of pieces of each of these rows."""
        counts: Ints = self._bounds[rows + 1] - self._bounds[rows]
        return counts

    @property
    def are_single(self) -> bool:
        """Whether every row has exactly one piece."""
        return len(self._flat) == len(self._bounds) - 1

    def of(self, rows: Ints) -> tuple[Ints, Ints]:
        """Return which of the rows asked for each piece is of, `(M,)`, and the pieces, `(M,)`."""
        return np.repeat(np.arange(len(rows)), self.sizes(rows)), self._flat[self.ends_to_end(rows)]

    def ends_to_end(self, rows: Ints) -> Ints:
        """Return where the pieces of these rows stand among those of all, `(M,)`."""
        counts = self.sizes(rows)
        ends = np.cumsum(counts)
        starts: Ints = np.repeat(self._bounds[rows] - (ends - counts), counts)
        return np.arange(len(starts)) + starts


def block_input(site: str) -> str:
    """Return `resid.l` of the block that a site lies in."""
    return f"resid.{Site.parse(site).layer}"


def read_states(
    sequences: Sequences, rows: TextRows, pieces: Mapping[str, Pieces], places: Sequence[Place], replay: Replay | None
) -> dict[Place, Tensor]:
    """Return the means of each row's pieces by place, `(N, D)` float32; `sequences` is filled on the way.

    Raises:
        NonFiniteStates: naming the site.
        ProvenanceMismatch: the store is of other texts.
    """
    bases = dict.fromkeys(block_input(place.site) for place in places)
    found: dict[Place, Tensor] = {}
    for examples, at, states, first in _passes(sequences, rows, places, replay, bases):
        for site in bases:
            sequences.states[site][sequences.flat_index(examples)] = states[site]
        for place in places:
            which, piece = pieces[place.position].of(at)
            flat, ends = states[place.site], np.concatenate([[0], np.cumsum(np.bincount(which, minlength=len(at)))])
            into = found.setdefault(place, torch.zeros((len(rows.example), flat.shape[1])))
            into[torch.from_numpy(at)] = embedding_bag(
                torch.from_numpy(piece + first[which]),
                flat,
                torch.from_numpy(ends),
                mode="mean",
                include_last_offset=True,
            )
    return found


def read_pieces(
    sequences: Sequences, rows: TextRows, pieces: Mapping[str, Pieces], replay: Replay | None, places: Sequence[Place]
) -> dict[Place, Tensor]:
    """Return the states of the M pieces of all rows in order, by place, `(M, D)` float32; errors as `read_states`."""
    found: dict[Place, Tensor] = {}
    for _, at, states, first in _passes(sequences, rows, places, replay, ()):
        for place in places:
            which, piece = pieces[place.position].of(at)
            values, where = states[place.site][torch.from_numpy(piece + first[which])], pieces[place.position]
            number = int(where.sizes(np.arange(len(rows.example))).sum())
            into = found.setdefault(place, torch.zeros((number, values.shape[1])))
            into[torch.from_numpy(where.ends_to_end(at))] = values
    return found


def _passes(
    sequences: Sequences, rows: TextRows, places: Sequence[Place], replay: Replay | None, more: Iterable[str]
) -> Iterator[tuple[Ints, Ints, Flat, Ints]]:
    """Yield, part by part, examples, `(n,)` their rows, states of the examples' pieces by site, and where those of each
    row's example begin among them `(n,)`.
    """
    wanted = list(dict.fromkeys([*more, *(place.site for place in places)]))
    by_example = np.argsort(rows.example, kind="stable")
    firsts = np.searchsorted(rows.example[by_example], np.arange(len(rows.encoded) + 1))
    for examples, states in sequences.read(wanted) if replay is None else stored(replay, rows, wanted):
        at = np.concatenate([np.zeros(0, np.int64), *(by_example[firsts[e] : firsts[e + 1]] for e in examples)])
        starts = np.zeros(len(rows.encoded), dtype=np.int64)
        lengths = sequences.lengths[examples]
        starts[examples] = np.cumsum(lengths) - lengths
        for site, flat in states.items():
            _check_finite(site, flat)
        yield examples, at, states, starts[rows.example[at]]


def _check_finite(site: str, flat: Tensor) -> None:
    if not bool(torch.isfinite(flat).all()):
        raise NonFiniteStates(
            "states are not finite",
            needed="finite numbers",
            found="NaN or infinity",
            where=site,
            next_step="compute in float32",
        )


def stored(replay: Replay, rows: TextRows, sites: Sequence[str]) -> Iterator[tuple[Ints, Flat]]:
    """Yield what `Sequences.read` does from a replay store, one example after the other.

    Raises:
        ProvenanceMismatch: an example is not in the store, or is there with other pieces.
        UnknownSite: a site that the store lacks.
    """
    table = replay.store.rows
    example, ids = np.asarray(table.example), np.asarray(table.input_id)
    order = np.argsort(example, kind="stable")
    ordinals = np.zeros(len(rows.encoded), dtype=np.int64)
    ordinals[rows.example] = rows.ordinal
    for e, (ordinal, one) in enumerate(zip(ordinals, rows.encoded, strict=True)):
        first, last = np.searchsorted(example[order], [ordinal, ordinal + 1])
        mine = order[first:last]
        if not np.array_equal(ids[mine], one.ids):
            raise ProvenanceMismatch(
                "the store is of other texts",
                needed="the pieces that the model is given",
                where=f"example {ordinal}",
                found=f"{len(mine)} other pieces" if len(mine) else "nothing",
                next_step="extract a replay store of these examples",
            )
        yield np.array([e]), {site: torch.from_numpy(replay.store.read(site, mine)) for site in sites}


FAR = math.log(10)
_MARKS = ("\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}", "\N{LOWER ONE EIGHTH BLOCK}")  # spaces of BPE and SentencePiece


@dataclass(frozen=True)
class Twin:
    """A piece of an answer, and the piece that differs from it by a space at the beginning alone."""

    piece: int
    text: str
    twin: int
    twin_text: str


def twins_of(tokenizer: Any, answers: Answers) -> tuple[Twin, ...]:
    """Return the twins that the vocabulary has and that are no pieces of the answers themselves."""
    given = {piece for answer in answers for piece, _ in answer}
    found = []
    for piece, text in (one for answer in answers for one in answer):
        name = str(tokenizer.convert_ids_to_tokens(piece))
        marked = next((mark for mark in _MARKS if name.startswith(mark)), "")
        for other in [name.removeprefix(marked)] if marked else [mark + name for mark in _MARKS]:
            twin = tokenizer.convert_tokens_to_ids(other) if other else None
            # For a name that the vocabulary lacks some tokenizers give the unknown piece.
            if isinstance(twin, int) and tokenizer.convert_ids_to_tokens(twin) == other and twin not in given:
                found.append(Twin(piece, text, twin, text.removeprefix(" ") if marked else " " + text))
    return tuple(found)


class TwinWatch:
    """Compares answers with their twins in clean outputs, batch by batch.

    Attributes:
        answers: of the behaviour, as measured.
    """

    def __init__(self, tokenizer: Any, answers: Answers) -> None:
        self.answers = answers
        self._twins = twins_of(tokenizer, answers)
        self._sums: NDArray[np.float64] = np.zeros(len(self._twins))
        self._rows = 0

    def see(self, outputs: Outputs) -> None:
        """Add the logits `(B, V)` of B rows: their differences are those of log-probabilities.

        A piece that the tokenizer has and the model gives no logit of is no twin.
        """
        if not self._rows:
            self._twins = tuple(twin for twin in self._twins if twin.twin < outputs.values.shape[-1])
            self._sums = np.zeros(len(self._twins))
        if self._twins:
            ids = [[twin.piece for twin in self._twins], [twin.twin for twin in self._twins]]
            own, other = (outputs.values[:, one].double() for one in ids)
            self._sums += (other - own).sum(0).cpu().numpy()
            self._rows += len(outputs.values)

    def doubts(self) -> tuple[str, ...]:
        """Return a sentence for each answer whose twin is more than ten times as likely, in the mean of
        log-probabilities.
        """
        means = self._sums / max(self._rows, 1)
        return tuple(_sentence(twin, float(mean)) for twin, mean in zip(self._twins, means, strict=True) if mean > FAR)


def _sentence(twin: Twin, apart: float) -> str:
    times = f"{math.exp(apart):,.0f}" if apart < math.log(1e6) else f"10^{apart / math.log(10):.0f}"
    differs = "with a space before it" if len(twin.twin_text) > len(twin.text) else "without the space before it"
    return (
        f"the answer '{visible(twin.text)}' is hardly what the model says here: '{visible(twin.twin_text)}', the same "
        f"{differs}, is {times} times as likely; spaces in answers count, so write it as it follows the text"
    )
