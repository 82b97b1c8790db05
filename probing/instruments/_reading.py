"""States of rows at places, and whole sequences of block inputs, from one pass or from a replay store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding_bag

from probing.errors import NonFiniteStates, ProvenanceMismatch
from probing.extraction.replaying import Replay
from probing.instrument import Place
from probing.instruments._rows import TextRows
from probing.instruments._sequences import Flat, Sequences
from probing.site import Site

Ints = NDArray[np.int64]


class Pieces:
    """The pieces of N rows at one position, laid end to end."""

    def __init__(self, pieces: Sequence[Ints]) -> None:
        self._flat = np.concatenate(pieces).astype(np.int64)
        self._bounds = np.concatenate([[0], np.cumsum([len(one) for one in pieces])]).astype(np.int64)

    def of(self, rows: Ints) -> tuple[Ints, Ints]:
        """`(M,)` which of the rows asked for, and `(M,)` pieces."""
        counts = self._bounds[rows + 1] - self._bounds[rows]
        ends = np.cumsum(counts)
        at = np.arange(int(ends[-1]) if len(ends) else 0) + np.repeat(self._bounds[rows] - (ends - counts), counts)
        return np.repeat(np.arange(len(rows)), counts), self._flat[at]


def block_input(site: str) -> str:
    """`resid.l` of the block that a site lies in."""
    return f"resid.{Site.parse(site).layer}"


def read_states(
    sequences: Sequences, rows: TextRows, pieces: dict[str, Pieces], places: Sequence[Place], replay: Replay | None
) -> dict[Place, Tensor]:
    """`(N, D)` float32 by place, the mean of each row's pieces; `sequences` is filled on the way.

    Raises:
        NonFiniteStates: naming the site.
        ProvenanceMismatch: the store is of other texts.
    """
    sites = list(dict.fromkeys(place.site for place in places))
    bases = dict.fromkeys(map(block_input, sites))
    wanted = list(dict.fromkeys([*bases, *sites]))
    by_example = np.argsort(rows.example, kind="stable")
    firsts = np.searchsorted(rows.example[by_example], np.arange(len(rows.encoded) + 1))
    found: dict[Place, Tensor] = {}
    for examples, states in sequences.read(wanted) if replay is None else stored(replay, rows, wanted):
        at = np.concatenate([np.zeros(0, np.int64), *(by_example[firsts[e] : firsts[e + 1]] for e in examples)])
        starts = np.zeros(len(rows.encoded), dtype=np.int64)
        lengths = sequences.lengths[examples]
        starts[examples] = np.cumsum(lengths) - lengths
        for site, flat in states.items():
            _check_finite(site, flat)
            if site in bases:
                sequences.states[site][sequences.flat_index(examples)] = flat
        for place in places:
            which, piece = pieces[place.position].of(at)
            flat, ends = states[place.site], np.concatenate([[0], np.cumsum(np.bincount(which, minlength=len(at)))])
            into = found.setdefault(place, torch.zeros((len(rows.example), flat.shape[1])))
            index = torch.from_numpy(piece + starts[rows.example[at]][which])
            into[torch.from_numpy(at)] = embedding_bag(
                index, flat, torch.from_numpy(ends), mode="mean", include_last_offset=True
            )
    return found


def _check_finite(site: str, flat: Tensor) -> None:
    if not bool(torch.isfinite(flat).all()):
        raise NonFiniteStates("states are not finite", needed="finite numbers", found="NaN or infinity", where=site,
                              next_step="compute in float32")  # fmt: skip


def stored(replay: Replay, rows: TextRows, sites: Sequence[str]) -> Iterator[tuple[Ints, Flat]]:
    """As `Sequences.read`, one example after the other.

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
                "the store is of other texts", needed="the pieces that the model is given", where=f"example {ordinal}",
                found=f"{len(mine)} other pieces" if len(mine) else "nothing",
                next_step="extract a replay store of these examples",
            )  # fmt: skip
        yield np.array([e]), {site: torch.from_numpy(replay.store.read(site, mine)) for site in sites}
