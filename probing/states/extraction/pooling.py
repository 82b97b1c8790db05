"""Pools pieces (tokens) into rows as they are read; inputs longer than a model allows are read in
overlapping windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from probing.errors import BadParameter
from probing.models.language_model import LanguageModel
from probing.text.alignment import Encoded, Ints, Rows


@dataclass(frozen=True)
class Windows:
    """Holds a long input of T pieces (tokens) as W shorter inputs of equal length, which overlap.

    Attributes:
        inputs: the W inputs, each with the special pieces of both ends around its part of the text.
        window: `(T,)` for each piece, the window that its state is taken from.
        place: `(T,)` index of the piece in that window.
    """

    inputs: tuple[Encoded, ...]
    window: Ints
    place: Ints


def windows_of(one: Encoded, length: int, stride: int) -> Windows:
    """Cut a long input into overlapping windows and return them.

    A window has `length` pieces, including the special pieces before and after the text. Each window begins `stride`
    pieces after the previous one (or at its end, if that is earlier); the last window ends where the text ends. A
    piece's state is taken from the window in which the smaller of its two contexts, left and right, is largest (the
    window whose middle is nearest; of two such windows, the earlier). Special pieces at the beginning belong to the
    first window, those at the end to the last.

    Raises:
        BadParameter: the special pieces leave no room for text.
    """
    content = np.flatnonzero(~one.special)
    head, end = (int(content[0]), int(content[-1]) + 1) if len(content) else (len(one), len(one))
    n, tail = end - head, len(one) - end
    room = length - head - tail
    if room < 1:
        raise BadParameter(
            "special pieces fill the whole window",
            needed=f"a max_length above {head + tail}",
            found=str(length),
            next_step="raise max_length, or choose a shorter chat template",
        )
    last = max(n - room, 0)
    starts = np.array([*range(0, last, min(stride, room)), last])
    around = (np.arange(head), np.arange(end, len(one)))
    parts = [np.concatenate([around[0], np.arange(head + a, min(head + a + room, end)), around[1]]) for a in starts]
    none = np.zeros((0, 2), dtype=np.int64)
    inputs = tuple(Encoded(one.ids[p], one.offsets[p], one.special[p], none) for p in parts)
    nearest = _nearest(2 * starts + room - 1, 2 * np.arange(n))
    window = np.concatenate([np.zeros(head, np.int64), nearest, np.full(tail, len(starts) - 1)])
    place = np.arange(len(one)) - np.concatenate([np.zeros(head, np.int64), starts[nearest], np.full(tail, last)])
    return Windows(inputs, window, place)


def _nearest(middles: Ints, points: Ints) -> Ints:
    """Return, for each point, the nearest of the rising `middles`, the first of two."""
    above = np.searchsorted(middles, points).clip(1, max(len(middles) - 1, 1))
    if len(middles) == 1:
        return np.zeros(len(points), dtype=np.int64)
    return np.where(points - middles[above - 1] <= middles[above] - points, above - 1, above)


def windowed_states(
    model: LanguageModel, windows: Windows, sites: Sequence[str], tokens_per_batch: int
) -> dict[str, Tensor]:
    """Run the windows of an input and return its states `(1, T, D)` by site."""
    inputs, found = windows.inputs, dict[str, Tensor]()
    size = max(1, tokens_per_batch // len(inputs[0]))
    for first in range(0, len(inputs), size):
        states = model.states(inputs[first : first + size], sites)
        chosen = np.flatnonzero((windows.window >= first) & (windows.window < first + size))
        row = torch.from_numpy(windows.window[chosen] - first)
        place, pieces = torch.from_numpy(windows.place[chosen]), torch.from_numpy(chosen)
        for site, state in states.items():
            if site not in found:
                found[site] = state.new_empty((1, len(windows.window), state.shape[-1]))
            found[site][0, pieces.to(state.device)] = state[row.to(state.device), place.to(state.device)]
    return found


@dataclass(frozen=True)
class Gather:
    """Lists, for each of R rows, the pieces of a padded batch that are pooled to it.

    Attributes:
        rows: `(R,)` numbers of the rows in the shard.
        pieces: indices of the pieces in the flattened batch, row after row.
        bounds: `(R + 1,)` row r has `pieces[bounds[r]:bounds[r + 1]]`.
    """

    rows: Tensor
    pieces: Tensor
    bounds: Tensor

    @classmethod
    def of(cls, rows: Rows, batch: Sequence[int], first_piece: Ints, length: int, device: str) -> Gather:
        """Return the pooling plan of the examples `batch` (positions in `rows`), padded to `length` pieces."""
        chosen = np.concatenate([np.arange(rows.offset[e], rows.offset[e + 1]) for e in batch])
        place = np.repeat(np.arange(len(batch)), [rows.offset[e + 1] - rows.offset[e] for e in batch])
        start, counts = rows.first[chosen], rows.first[chosen + 1] - rows.first[chosen]
        bounds = np.concatenate([[0], np.cumsum(counts)])
        within = np.arange(bounds[-1]) - np.repeat(bounds[:-1], counts)
        shift = np.repeat(place * length + first_piece[place], counts)
        pieces = shift + rows.pieces[np.repeat(start, counts) + within]
        return cls(*(torch.from_numpy(np.asarray(x, dtype=np.int64)).to(device) for x in (chosen, pieces, bounds)))

    def pool(self, states: Tensor, how: str) -> Tensor:
        """Pool states `(B, T, D)` to float32 rows `(R, D)` and return these: the maximum over a row's pieces for `max`,
        else their mean.
        """
        flat = states.reshape(-1, states.shape[-1]).float()
        mode = "max" if how == "max" else "mean"
        pooled: Tensor = embedding_bag(self.pieces, flat, self.bounds, mode=mode, include_last_offset=True)
        return pooled
