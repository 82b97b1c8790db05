"""Reads the tokens that a dictionary is trained on, in random order, and what centres and scales their states."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probing.dictionaries._options import whole
from probing.errors import BadParameter, DegenerateDesign, NonFiniteStates
from probing.seeds import generator
from probing.states.store import Store
from probing.states.store.format import StoreLayout

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

_RUN = 64  # neighbouring rows that are read together
_BUFFER_BYTES = 256 << 20  # of rows that are read together and shuffled
_DEV_SHARE, _MOST_DEV, _LEAST_DEV = 0.05, 32_768, 16
_MEDIAN_STEPS = 20
_LONGEST = 4.0  # median lengths
_ROUNDING = 4 * float(np.finfo(np.float32).eps)  # of the largest number: a spread below is rounding
_LEAST_SCALE = 1e-30  # far enough from the least number of float32 for latents, which are smaller


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

        Rows of an array that are equal, and texts of a store that are, stay together: no held-out one has a copy in
        train.

        Raises:
            BadParameter: rows of the store are no tokens, the states are no numbers, or an option is out of range.
            DegenerateDesign: there are too few rows, or all are equal.
            UnknownSite: the store has no such site.
        """
        whole("skip", skip, 0)
        if max_rows is not None:
            whole("max_rows", max_rows, 1)
        if isinstance(given, np.ndarray):
            if given.ndim != 2 or given.dtype.kind != "f":
                raise BadParameter(
                    "no states", needed="(N, D) floating-point numbers", found=f"{given.dtype} {given.shape}"
                )
            self.source, self.site, self.width = None, "", given.shape[1]
            self._array, kept = given, np.ones(len(given), bool)
            texts = _first_equal([row.tobytes() for row in np.ascontiguousarray(given)])
            if len(given) > 1 and not texts.any():
                raise no_variance(self.name, "rows that are all equal")
        elif not isinstance(given, Store | str | Path):
            raise BadParameter(
                "no states",
                needed="a store, its directory, or an array (N, D) of NumPy",
                found=type(given).__name__,
                next_step="give `np.asarray(states, dtype=np.float32)`",
            )
        else:
            store = given if isinstance(given, Store) else Store.open(given)
            _refuse_no_tokens(store)
            self.source, self.site, self.width = store, site, store.width(site)
            texts, kept = _first_copies(store)[store.rows.example], store.rows.piece_start >= skip
        self.skipped = int((~kept).sum())
        order = generator(seed, "dictionary texts").permutation(np.unique(texts[kept]))
        counts = np.bincount(texts[kept], minlength=int(texts.max(initial=0)) + 1)[order]
        used = np.cumsum(counts)
        all_rows = int(counts.sum())
        most = all_rows if max_rows is None else min(all_rows, max_rows)
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
        given = self._array[rows] if self.source is None else self.source.read(self.site, rows)
        with np.errstate(over="ignore", invalid="ignore"):  # what float32 does not hold is refused
            found = np.asarray(given, dtype=np.float32)
            total = np.sum(found, dtype=np.float64)
        if not np.isfinite(total):
            raise NonFiniteStates(
                "states that are not finite",
                needed="finite states",
                found="NaN or infinity",
                where=self.name,
                next_step="extract the states again, in float32",
            )
        return found

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


def _first_equal(keys: Sequence[bytes]) -> Ints:
    """Return for each key the index of the first that is equal."""
    first: dict[bytes, int] = {}
    return np.array([first.setdefault(key, index) for index, key in enumerate(keys)], dtype=np.int64)


def _first_copies(store: Store) -> Ints:
    """Return for each example of a store the number of the first with the same text."""
    layout = StoreLayout.of(store.identity)
    hashes: list[bytes] = []
    for shard in range(layout.n_shards):
        hashes += [row.tobytes() for row in store.dataset(shard, "/examples/text_sha256")]
    return _first_equal(hashes)


def no_variance(where: str, found: str) -> DegenerateDesign:
    """Return the error for states from which nothing can be learned."""
    return DegenerateDesign(
        "the states do not vary, so all latents would be dead",
        needed="states that differ between tokens by more than the rounding of float32",
        found=found,
        where=where,
        next_step="choose another site",
    )


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
        rows = torch.from_numpy(sample).double()  # squares of states may be outside the range of float32
        largest = float(rows.abs().max())
        centre = rows.mean(0)
        for _ in range(_MEDIAN_STEPS):  # Weiszfeld's algorithm
            weights = 1.0 / (rows - centre).norm(dim=1).clamp_min(1e-6 * largest or 1.0)
            centre = (weights @ rows) / weights.sum()
        lengths = (rows - centre).norm(dim=1)
        longest = _LONGEST * float(lengths.median()) or float(lengths.max())
        scale = float((lengths.clamp_max(longest).square().mean() / rows.shape[1]).sqrt())
        if not scale > _ROUNDING * largest or scale < _LEAST_SCALE:
            raise no_variance(where, f"a spread of {scale:.2g}, numbers of up to {largest:.2g}")
        centre = centre.float()
        return cls(centre, scale, longest / scale)

    def __call__(self, states: Floats) -> Tensor:
        """Return centred and scaled states."""
        made = torch.from_numpy(states).sub(self.centre).div_(self.scale)
        return made.mul_((self.longest / made.norm(dim=1, keepdim=True)).clamp_max_(1.0))
