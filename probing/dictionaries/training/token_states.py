"""Reads the tokens that a dictionary is trained on, in random order, and what centres and scales their states."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probing.errors import BadParameter, DegenerateDesign, NonFiniteStates
from probing.seeds import generator
from probing.states.store import Store

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

_RUN = 64  # neighbouring rows that are read together
_BUFFER_BYTES = 256 << 20  # of rows that are read together and shuffled
_DEV_SHARE, _MOST_DEV, _LEAST_DEV = 0.05, 32_768, 16
_MEDIAN_STEPS = 20
_LONGEST = 4.0  # median lengths


class TokenStates:
    """Gives the states of tokens at a site, or of an array, block by block; the rows of some texts are held out.

    Attributes:
        source: the store, or None for an array.
        site: the site; "" for an array.
        width: width D.
        train, dev: row numbers, in order.
        skipped: number of rows left out because they are first tokens of their text.
    """

    def __init__(self, given: Store | str | Path | Floats, site: str, *, skip: int, max_rows: int | None, seed: int):
        """Choose the rows.

        Args:
            given: a store of tokens, its directory, or states `(N, D)`.
            site: site of the store.
            skip: number of first tokens of each text that are left out.
            max_rows: largest number of rows; None: all. Whole texts are left out at random.
            seed: seed of the choice of texts.

        Raises:
            BadParameter: rows of the store are no tokens.
            DegenerateDesign: there are too few rows.
            UnknownSite: the store has no such site.
        """
        if isinstance(given, np.ndarray):
            if given.ndim != 2 or given.dtype.kind != "f":
                raise BadParameter(
                    "no states", needed="(N, D) floating-point numbers", found=f"{given.dtype} {given.shape}"
                )
            self.source, self.site, self.width, texts = None, "", given.shape[1], np.arange(len(given))
            self._array, kept = given, np.ones(len(given), bool)
        else:
            store = given if isinstance(given, Store) else Store.open(given)
            _refuse_no_tokens(store)
            self.source, self.site, self.width = store, site, store.width(site)
            texts, kept = store.rows.example, store.rows.piece_start >= skip
        self.skipped = int((~kept).sum())
        order = generator(seed, "dictionary texts").permutation(np.unique(texts[kept]))
        counts = np.bincount(texts[kept], minlength=int(texts.max(initial=0)) + 1)[order]
        used = np.cumsum(counts) if len(counts) else np.zeros(1, np.int64)
        most = min(int(used[-1]), max_rows or int(used[-1]))
        dev_most = min(_MOST_DEV, max(_LEAST_DEV, round(_DEV_SHARE * most)))
        dev, train = order[used <= dev_most], order[(used > dev_most) & (used <= most)]
        self.train, self.dev = (np.flatnonzero(kept & np.isin(texts, some)) for some in (train, dev))
        self.dev_texts: Ints = dev  # in random order
        if len(self.dev) < 2 or len(self.train) < 2:
            raise DegenerateDesign(
                "too few tokens to train a dictionary on",
                needed="rows of several texts, some of them held out",
                found=f"{len(self.train):,} rows of train and {len(self.dev):,} held out",
                where=self.name,
                next_step="extract more text, or leave out fewer first tokens",
            )

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What determines the rows and their states."""
        if self.source is None:
            content = hashlib.sha256(np.ascontiguousarray(self._array).tobytes()).hexdigest()
        else:
            content = self.source.content_id
        rows = hashlib.sha256(np.concatenate([self.train, [-1], self.dev]).astype("<i8").tobytes()).hexdigest()
        return {"content": content, "site": self.site, "rows": rows}

    @property
    def name(self) -> str:
        """Name of the states, for messages."""
        return f"{self.site} of {self.source.path}" if self.source is not None else "an array"

    def read(self, rows: Ints) -> Floats:
        """Return states `(n, D)` of rows.

        Raises:
            NonFiniteStates: a state is not finite.
        """
        found = self._array[rows] if self.source is None else self.source.read(self.site, rows)
        if not np.isfinite(np.sum(found, dtype=np.float64)):
            raise NonFiniteStates(
                "states that are not finite",
                needed="finite states",
                found="NaN or infinity",
                where=self.name,
                next_step="extract the states again, in float32",
            )
        return np.asarray(found, dtype=np.float32)

    def sample(self, count: int, seed: int) -> Floats:
        """Return the states of `count` random rows of train (all, if there are not so many)."""
        chosen = generator(seed, "dictionary sample").permutation(len(self.train))[:count]
        return self.read(self.train[np.sort(chosen)])

    def batches(self, size: int, epoch: int, seed: int, first: int = 0) -> Iterator[Floats]:
        """Yield all batches of an epoch from number `first` on.

        Runs of neighbouring rows come in a random order; some 256 MiB of them are read together and shuffled.
        """
        random = generator(seed, "dictionary epoch", epoch)
        runs = random.permutation(-(-len(self.train) // _RUN))
        order = np.concatenate([self.train[run * _RUN : (run + 1) * _RUN] for run in runs.tolist()])
        whole = max(1, _BUFFER_BYTES // (4 * self.width * size)) * size
        last = len(order) - len(order) % size
        for begin in range(0, last, whole):
            rows = random.permutation(order[begin : min(begin + whole, last)])
            if (begin + len(rows)) // size <= first:
                continue
            sorted_rows = np.sort(rows)
            states = self.read(sorted_rows)
            place = np.searchsorted(sorted_rows, rows)
            for at in range(0, len(rows), size):
                if (begin + at) // size >= first:
                    yield states[place[at : at + size]]


def _refuse_no_tokens(store: Store) -> None:
    rows = str(store.identity["extraction"]["rows"])
    if rows.partition(":")[0] != "piece" or not store.n_rows:
        raise BadParameter(
            "a dictionary is trained on tokens",
            needed="a store of tokens (--rows piece) with rows",
            found=f"{store.n_rows:,} rows of {rows}",
            where=str(store.path),
            next_step="extract the states with --rows piece",
        )


@dataclass(frozen=True)
class Standard:
    """Holds what centres and scales states: x' = (x − centre) / scale, shortened where it is longer than `longest`.

    Some models have a few tokens (attention sinks) whose states are 50 times as long as others: they would be most of
    the squared error, and drive training apart. Shortened, they keep their direction, and so their latents.
    """

    centre: Tensor
    scale: float
    longest: float

    @classmethod
    def of(cls, sample: Floats, where: str) -> Standard:
        """Return the geometric median of a sample `(n, D)`, and the root mean square of what is left, of rows that are
        shortened to 4 times the median length.

        Raises:
            DegenerateDesign: the states do not vary.
        """
        rows = torch.from_numpy(sample)
        centre = rows.mean(0)
        for _ in range(_MEDIAN_STEPS):  # Weiszfeld's algorithm
            weights = 1.0 / (rows - centre).norm(dim=1).clamp_min(1e-6)
            centre = (weights @ rows) / weights.sum()
        lengths = (rows - centre).norm(dim=1)
        longest = _LONGEST * float(lengths.median()) or float(lengths.max())
        scale = float((lengths.clamp_max(longest).square().mean() / rows.shape[1]).sqrt())
        if not scale > 1e-6 * max(1e-6, float(rows.abs().max())):
            raise DegenerateDesign(
                "the states do not vary, so all latents would be dead",
                needed="states that differ between tokens",
                found=f"a spread of {scale:.2g}",
                where=where,
                next_step="choose another site",
            )
        return cls(centre, scale, longest / scale)

    def __call__(self, states: Floats) -> Tensor:
        """Return centred and scaled states."""
        made = torch.from_numpy(states).sub(self.centre).div_(self.scale)
        return made.mul_((self.longest / made.norm(dim=1, keepdim=True)).clamp_max_(1.0))
