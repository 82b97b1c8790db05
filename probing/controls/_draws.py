"""What keyed controls share: one draw per key, by a hash, from the task's training distribution."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.corpus import SPLITS
from probing.design import Labels
from probing.errors import BadParameter, DegenerateDesign, unknown_name


def uniform_of(key: str, *, draw: int, seed: int) -> float:
    """A number in [0, 1) that depends on the key's text, the seed and the draw, and on nothing else."""
    text = f"{seed}\x1f{draw}\x1f{key}".encode()
    return (int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 11) / 2**53


def drawn_by_key(labels: Labels, key: str, *, name: str, draw: int, seed: int) -> Labels:
    """Labels in which every row of one key carries the value that its key draws.

    The values are drawn from the empirical distribution of the task's training rows: classes by the inverse of
    their cumulative frequency in sorted order, real targets by the inverse of their empirical distribution.

    Raises:
        UnknownName: no such key, with the nearest name.
        DegenerateDesign: fewer than two distinct values are left in train, or for real targets in any split.
    """
    codes = _codes_of(labels, key)
    train = labels.rows("train")
    present = np.unique(codes)
    names = labels.key_names[key]
    uniforms = np.array([uniform_of(names[code], draw=draw, seed=seed) for code in present])
    values = _inverse_distribution(labels, train, uniforms)
    y = values[np.searchsorted(present, codes)]
    # R² and rank correlation are undefined where all targets of a split are equal; accuracy is not.
    for split in SPLITS if labels.kind == "real" else ("train",):
        if len(rows := labels.rows(split)):
            refuse_single_value(y[rows], name=name, split=split)
    seen = np.isin(codes, codes[train])
    return replace(labels, y=y, seen=seen, ceiling=_ceiling(labels, train, seen), control=f"{name}#{draw}")


def refuse_single_value(y: NDArray[Any], *, name: str, split: str = "train") -> None:
    """Stop if a control has made all labels of a split equal.

    Raises:
        DegenerateDesign: fewer than two distinct values.
    """
    if len(np.unique(y)) < 2:
        raise DegenerateDesign(
            f"control {name} leaves fewer than two distinct labels in {split}",
            needed="at least two",
            found=str(len(np.unique(y))),
            next_step="key the control on a column with more values, or change the root seed",
        )


def check_draws(draws: int) -> None:
    """Stop unless `draws` is a positive whole number.

    Raises:
        BadParameter: it is not.
    """
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 1:
        raise BadParameter("draws must be a positive whole number", needed="1 or more", found=repr(draws))


def _codes_of(labels: Labels, key: str) -> NDArray[np.int64]:
    if key not in labels.keys:
        raise unknown_name("key of the control", key, labels.keys, where=f"rows of task {labels.task}")
    return labels.keys[key]


def _inverse_distribution(labels: Labels, train: NDArray[np.int64], uniforms: NDArray[np.float64]) -> NDArray[Any]:
    if labels.kind == "real":
        ordered = np.sort(labels.y[train])
        return np.asarray(ordered[(uniforms * len(ordered)).astype(np.int64)])
    cumulative = np.cumsum(np.bincount(labels.y[train], minlength=len(labels.classes)))
    # Whole counts, so that a class absent from train can never be drawn through rounding.
    return np.asarray(np.searchsorted(cumulative, uniforms * cumulative[-1], side="right"), np.int64)


def _ceiling(labels: Labels, train: NDArray[np.int64], seen: NDArray[np.bool_]) -> float | None:
    test = labels.rows("test")
    if labels.kind == "real" or not len(test):
        return None
    commonest = np.bincount(labels.y[train]).max() / len(train)
    return float(np.where(seen[test], 1.0, commonest).mean())
