"""Helpers of keyed controls: a label is drawn once for each key, by a hash, from the task's training distribution."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.errors import BadParameter, DegenerateDesign, unknown_name
from probing.labels import MISSING, Labels
from probing.text.corpus import SPLITS

LEAST_SEEN = 0.1  # of test rows: with fewer that a probe can have met, a control's score is chance whatever the probe


def uniform_of(key: str, *, draw: int, seed: int) -> float:
    """Return a number in [0, 1) that depends only on the key's text, the seed and the draw."""
    text = f"{seed}\x1f{draw}\x1f{key}".encode()
    return (int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 11) / 2**53


def drawn_by_key(labels: Labels, key: str, *, name: str, draw: int, seed: int) -> Labels:
    """Return labels in which all rows with the same key have the same label, drawn for that key.

    Labels are drawn from the empirical distribution of the task's training rows: classes (or whole sets of labels) by
    the inverse of their cumulative frequency in sorted order, real targets by the inverse of their empirical
    distribution.

    Raises:
        UnknownName: there is no such key; the message names the nearest.
        DegenerateDesign: fewer than two distinct values are left in train (for real targets in any split), or the rows
            are alternatives.
    """
    if labels.choice is not None:
        raise DegenerateDesign(
            f"control {name} cannot draw for words that choose",
            needed="exactly one right alternative a word",
            found=f"task {labels.task}",
            next_step="use the control edge",
        )
    codes = _codes_of(labels, key)
    refuse_missing_key(codes, key, f"task {labels.task}")
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
    """Raise an error if a control has made all labels of a split equal.

    Raises:
        DegenerateDesign: there are fewer than two distinct values.
    """
    if len(np.unique(y, axis=0)) < 2:
        raise DegenerateDesign(
            f"control {name} leaves fewer than two distinct labels in {split}",
            needed="at least two",
            found=str(len(np.unique(y, axis=0))),
            next_step="key the control on a column with more values, or change the root seed",
        )


def check_draws(draws: int) -> None:
    """Raise an error unless `draws` is a positive whole number.

    Raises:
        BadParameter: `draws` is not a positive whole number.
    """
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 1:
        raise BadParameter("draws must be a positive whole number", needed="1 or more", found=repr(draws))


def usable_keys(labels: Labels) -> list[str]:
    """Return the names of the keys that a control can draw by, sorted: keys that do not determine the label one to one,
    and that enough test rows share with train.
    """
    return sorted(key for key in labels.keys if not (_is_label(labels, key) or seen_share(labels, key) < LEAST_SEEN))


def refuse_label_as_key(labels: Labels, key: str) -> None:
    """Raise an error if a key and the label determine each other.

    Raises:
        DegenerateDesign: each value of the key has one label, and each label one value.
    """
    if key in labels.keys and _is_label(labels, key):
        raise DegenerateDesign(
            f"the key {key!r} says the same as the label",
            needed="a key that is not the label itself",
            found="one value for each label",
            where=f"task {labels.task}",
            next_step=_other_keys(labels),
        )


def refuse_missing_key(codes: NDArray[np.int64], key: str, where: str) -> None:
    """Raise an error if rows have no value of the key, since they would all share one draw. `train` leaves such rows
    out beforehand.

    Raises:
        DegenerateDesign: there are such rows; the message says how many.
    """
    if (codes == MISSING).any():
        raise DegenerateDesign(
            f"rows without a {key}",
            needed=f"a {key} of every row",
            found=f"{int((codes == MISSING).sum()):,} without",
            where=where,
            next_step="leave these rows out of the labels first, as `train` does",
        )


def refuse_rare_key(labels: Labels, key: str) -> None:
    """Raise an error if a key recurs too rarely for a probe to memorise labels by it.

    Raises:
        DegenerateDesign: too few test rows have a key that occurs in train.
    """
    if seen_share(labels, key) < LEAST_SEEN:
        raise DegenerateDesign(
            f"the key {key!r} hardly recurs: there is nothing to memorise",
            needed=f"at least {LEAST_SEEN:.0%} of the test rows with a key that occurs in train",
            found=f"{seen_share(labels, key):.0%}",
            where=f"task {labels.task}",
            next_step=_other_keys(labels),
        )


def _other_keys(labels: Labels) -> str:
    usable = usable_keys(labels)
    return f"use keyed:key=NAME with one of: {', '.join(usable)}" if usable else "leave the keyed control out"


def seen_share(labels: Labels, key: str) -> float:
    """Return the share of the test rows whose key occurs in train; 1 where there are no test rows."""
    codes, test = labels.keys[key], labels.rows("test")
    met = np.isin(codes[test], codes[labels.rows("train")]) & (codes[test] != MISSING)
    return float(met.mean()) if len(test) else 1.0


def _is_label(labels: Labels, key: str) -> bool:
    """Return whether every value of the key goes with one label, and every label with one value."""
    has = labels.keys[key] != MISSING
    codes, targets = labels.keys[key][has], labels.codes[has]
    pairs = np.unique(np.stack([codes, targets], axis=1), axis=0)
    return len(pairs) == len(np.unique(codes)) == len(np.unique(targets))


def _codes_of(labels: Labels, key: str) -> NDArray[np.int64]:
    if key not in labels.keys:
        raise unknown_name("key of the control", key, usable_keys(labels), where=f"rows of task {labels.task}")
    return labels.keys[key]


def _inverse_distribution(labels: Labels, train: NDArray[np.int64], uniforms: NDArray[np.float64]) -> NDArray[Any]:
    if labels.kind == "real":
        ordered = np.sort(labels.y[train])
        return np.asarray(ordered[(uniforms * len(ordered)).astype(np.int64)])
    cumulative = np.cumsum(np.bincount(labels.codes[train], minlength=len(labels.classes)))
    # Whole counts, so that a class absent from train can never be drawn through rounding.
    drawn = np.asarray(np.searchsorted(cumulative, uniforms * cumulative[-1], side="right"), np.int64)
    return drawn if labels.y.ndim == 1 else np.asarray(np.unique(labels.y, axis=0)[drawn])


def _ceiling(labels: Labels, train: NDArray[np.int64], seen: NDArray[np.bool_]) -> float | None:
    test = labels.rows("test")
    if labels.kind == "real" or not len(test):
        return None
    commonest = np.bincount(labels.codes[train]).max() / len(train)
    return float(np.where(seen[test], 1.0, commonest).mean())
