"""What a probe reads: states of a site, or what a baseline reads instead, by split."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import embedding_bag

from probing.contracts import Probe
from probing.corpus import SPLITS
from probing.design import Labels, Pairs
from probing.errors import BadParameter, NonFiniteStates
from probing.training.plan import Plan

States = Mapping[str, Any]  # by split: `(N, D)`, or Pairs


def site_states(plan: Plan, site: str) -> States:
    """States `(N, D)` of one site by split; `Pairs` where a row is two words.

    Raises:
        NonFiniteStates: with site and the first rows.
    """
    return {split: rows_read(plan.store, site, plan.labels, split) for split in SPLITS}


def rows_read(store: Any, site: str, labels: Labels, split: str) -> Any:
    """States of the rows of one split, as the reading of the labels makes them.

    Raises:
        NonFiniteStates: with site and the first rows.
    """
    chosen = labels.rows(split)
    if labels.reading == "row":
        return _finite(store, site, labels.row[chosen], split)
    a, b = labels.row[chosen], _other(labels.other_row)[chosen]
    if labels.reading == "mean":
        return _span_means(store, site, labels.take(chosen), split)
    needed = np.unique(np.concatenate([a, b]))
    index = np.stack([np.searchsorted(needed, a), np.searchsorted(needed, b)], axis=1)
    choice = None if labels.choice is None else labels.choice[chosen]
    return Pairs(_finite(store, site, needed, split), index, labels.example[chosen], choice, labels.reading)


def _span_means(store: Any, site: str, spans: Labels, split: str) -> NDArray[np.float32]:
    """Mean over the words of each span, from the words' own states."""
    counts = _other(spans.other_word) - spans.word + 1
    bounds = np.concatenate([[0], np.cumsum(counts)])
    word = np.repeat(spans.word - bounds[:-1], counts) + np.arange(bounds[-1])
    rows = store.rows
    longest = int(np.asarray(rows.word).max()) + 1
    known = np.asarray(rows.example) * longest + np.asarray(rows.word)
    order = np.argsort(known, kind="stable")
    found = order[np.searchsorted(known, np.repeat(spans.example, counts) * longest + word, sorter=order)]
    needed, index = np.unique(found, return_inverse=True)
    table = torch.from_numpy(_finite(store, site, needed, split))
    means: NDArray[np.float32] = embedding_bag(
        torch.from_numpy(index.reshape(-1)), table, torch.from_numpy(bounds), mode="mean", include_last_offset=True
    ).numpy()
    return means


def _other(values: NDArray[np.int64] | None) -> NDArray[np.int64]:
    if values is None:
        raise BadParameter("rows of two words without the second", needed="Labels.other_row and other_word")
    return values


def _finite(store: Any, site: str, rows: NDArray[np.int64], split: str) -> NDArray[np.float32]:
    """Rows of the store, refused where they are not finite."""
    X: NDArray[np.float32] = store.read(site, rows)
    bad = np.flatnonzero(~np.isfinite(X.sum(axis=1, dtype=np.float64)))
    if len(bad):
        raise NonFiniteStates(
            "states that are not finite", needed="finite states", found=f"{len(bad)} rows with NaN or infinity",
            where=f"site {site}, {split}, rows {', '.join(map(str, rows[bad[:5]].tolist()))}",
            next_step="leave the site out, or extract again in float32",
        )  # fmt: skip
    return X


def stateless(plan: Plan, probe: Probe) -> States:
    """What a baseline reads, by split: its key's codes, or nothing (zeros)."""
    labels = plan.labels
    codes = np.zeros(len(labels)) if probe.reads == "states" else labels.keys[probe.reads].astype(np.float64)
    return {split: codes[labels.rows(split)][:, None] for split in SPLITS}
