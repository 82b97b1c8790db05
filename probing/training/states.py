"""The inputs of a probe by split: states of a site, or the words or texts that a baseline reads instead."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import embedding_bag

from probing.contracts.probe import Probe, RowBlocks
from probing.errors import BadParameter, NonFiniteStates
from probing.labels import Labels, Pairs
from probing.states.store import Store
from probing.text.corpus import SPLITS
from probing.training.plan import Plan

States = Mapping[str, Any]  # by split: arrays (N, D), Pairs, Pieces or RowBlocks
Read = Callable[[str, NDArray[np.int64]], NDArray[np.float32]]


def unit_states(plan: Plan, site: str, probe: Probe, states: States) -> States:
    """Return the input of a probe at a site, by split: the given states, or all pieces of each row, or a key.

    Raises:
        NonFiniteStates: states of pieces are NaN or infinite; the message names the site and the first rows.
    """
    if probe.input != "pieces":
        return held(states, probe) or stateless(plan, probe)
    labels, store, found = plan.labels, plan.store, {}
    for split in SPLITS:
        rows = labels.row[labels.rows(split)]
        pieces: Any = store
        found[split] = pieces.pieces(site, rows)
        _refuse_not_finite(np.asarray(found[split]), site, rows, split)
    return found


def held(states: States, probe: Probe | None = None) -> States:
    """Return the states loaded into memory, unless the probe can read them as a stream."""
    if probe is not None and probe.accepts_blocks:
        return states
    return {split: np.asarray(X) if isinstance(X, RowBlocks) else X for split, X in states.items()}


def site_states(plan: Plan, site: str, read: Read | None = None) -> States:
    """Return the states `(N, D)` at one site by split: `Pairs` if a row is two words, `RowBlocks` if they exceed the
    run's memory limit.

    Args:
        plan: plan of the run, with the rows.
        site: name of the site.
        read: a function that returns the states of a site and rows; None: they are read from the plan's store.

    Raises:
        NonFiniteStates: states are NaN or infinite; the message names the site and the first rows.
    """
    labels = plan.labels
    if read is None and plan.max_memory_mib is not None and labels.row_form == "row" and isinstance(plan.store, Store):
        chosen = {split: labels.row[labels.rows(split)] for split in SPLITS}
        streamed = {
            split: RowBlocks(plan.store, site, rows, budget=plan.max_memory_mib << 20) for split, rows in chosen.items()
        }
        if not streamed["train"].fits:
            for split, blocks in streamed.items():
                for start, X in blocks.blocks():
                    _refuse_not_finite(X, site, chosen[split][start : start + len(X)], split)
            return streamed
    return {split: rows_read(plan.store, site, labels, split, read) for split in SPLITS}


def rows_read(store: Any, site: str, labels: Labels, split: str, read: Read | None = None) -> Any:
    """Return the states of the rows of one split, combined from rows of the store as `Labels.row_form` says.

    Raises:
        NonFiniteStates: states are NaN or infinite; the message names the site and the first rows.
    """
    chosen, read = labels.rows(split), read or store.read
    if labels.row_form == "row":
        return _finite(read, site, labels.row[chosen], split)
    a, b = labels.row[chosen], _other(labels.other_row)[chosen]
    if labels.row_form == "mean":
        return _span_means(store.rows, read, site, labels.take(chosen), split)
    needed = np.unique(np.concatenate([a, b]))
    index = np.stack([np.searchsorted(needed, a), np.searchsorted(needed, b)], axis=1)
    choice = None if labels.choice is None else labels.choice[chosen]
    return Pairs(_finite(read, site, needed, split), index, labels.example[chosen], choice, labels.row_form)


def _span_means(rows: Any, read: Read, site: str, spans: Labels, split: str) -> NDArray[np.float32]:
    """Return the mean over the words of each span, from the words' own states."""
    counts = _other(spans.other_word) - spans.word + 1
    bounds = np.concatenate([[0], np.cumsum(counts)])
    word = np.repeat(spans.word - bounds[:-1], counts) + np.arange(bounds[-1])
    longest = int(np.asarray(rows.word).max()) + 1
    known = np.asarray(rows.example) * longest + np.asarray(rows.word)
    order = np.argsort(known, kind="stable")
    found = order[np.searchsorted(known, np.repeat(spans.example, counts) * longest + word, sorter=order)]
    needed, index = np.unique(found, return_inverse=True)
    table = torch.from_numpy(_finite(read, site, needed, split))
    means: NDArray[np.float32] = embedding_bag(
        torch.from_numpy(index.reshape(-1)), table, torch.from_numpy(bounds), mode="mean", include_last_offset=True
    ).numpy()
    return means


def _other(values: NDArray[np.int64] | None) -> NDArray[np.int64]:
    if values is None:
        raise BadParameter("rows of two words without the second", needed="Labels.other_row and other_word")
    return values


def _finite(read: Read, site: str, rows: NDArray[np.int64], split: str) -> NDArray[np.float32]:
    """Return rows of a store, and refuse them where they are not finite."""
    X = read(site, rows)
    _refuse_not_finite(X, site, rows, split)
    return X


def _refuse_not_finite(X: NDArray[np.float32], site: str, rows: NDArray[np.int64], split: str) -> None:
    bad = np.flatnonzero(~np.isfinite(X.sum(axis=1, dtype=np.float64)))
    if len(bad):
        raise NonFiniteStates(
            "states that are not finite",
            needed="finite states",
            found=f"{len(bad)} rows with NaN or infinity",
            where=f"site {site}, {split}, rows {', '.join(map(str, rows[bad[:5]].tolist()))}",
            next_step="leave the site out, or extract again in float32",
        )


def stateless(plan: Plan, probe: Probe) -> States:
    """Return the input of a baseline by split, `(N, 1)`: codes or strings of its key, or zeros if it reads nothing."""
    labels = plan.labels
    read: NDArray[Any] = np.zeros(len(labels))
    if probe.input == "text" and probe.input_as_text and labels.texts is not None:
        read = labels.texts
    elif probe.input in labels.keys:
        codes = labels.keys[probe.input]
        names = labels.key_names[probe.input]
        read = np.array(names, dtype=object)[codes] if probe.input_as_text else codes.astype(np.float64)
    return {split: read[labels.rows(split)][:, None] for split in SPLITS}
