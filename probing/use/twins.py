"""Twins: rows in pairs that differ in the property and in nothing else that is labelled, as the corpus has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.errors import BadTwin, OverlappingGroups
from probing.seeds import generator
from probing.text.corpus import Corpus, Label
from probing.text.text_forms import named as called

LEAST_PAIRS = 10  # in every fold
Ints = NDArray[np.int64]
_STEP = "correct the column of minimal pairs, or leave the row without one"


def twin_rows(ids: Sequence[str], named: Sequence[Label]) -> Ints:
    """Return, for each row, the row whose id it names as its twin, `(N,)`; -1 if it names none.

    Raises:
        BadTwin: no row has the id, or two have.
    """
    rows: dict[str, int] = {}
    twice = set()
    for row, name in enumerate(ids):
        twice |= {name} if name in rows else set()
        rows[name] = row
    found = np.full(len(ids), -1, dtype=np.int64)
    for row, label in enumerate(named):
        twin = called(label)
        if twin is None:
            continue
        name = twin
        if name not in rows or name in twice:
            how = "two rows with that id" if name in twice else "no such row among those that are edited"
            raise BadTwin(
                f"{ids[row]!r} names {name!r} as its twin",
                needed="the id of one row that has labels, too",
                found=how,
                where=repr(ids[row]),
                next_step="give every row an id of its own (a column `id`), and both twins the same split",
            )
        found[row] = rows[name]
    return found


def check_twins(
    twins: Ints,
    *,
    z: NDArray[Any],
    n_classes: int,
    covariates: Mapping[str, NDArray[Any]],
    names: Sequence[str] | None = None,
) -> None:
    """Refuse twins that differ from their rows in more than the property, or not in the property.

    Args:
        twins: `(N,)` row of each row's twin, or -1.
        z: `(N,)` values of the property.
        n_classes: number of classes K; 0 for real values.
        covariates: `(N,)` values of all other labelled properties.
        names: names of the rows, for messages.

    Raises:
        BadTwin: two rows are not each other's twin, have no label or the same label, or differ in another property.
    """
    if twins.shape != z.shape or twins.dtype.kind not in "iu" or twins.max(initial=-1) >= len(z):
        raise BadTwin(
            "twins are rows",
            needed=f"({len(z)},) rows, -1 where there is none",
            found=f"shape {twins.shape} of {twins.dtype}",
        )
    rows = np.flatnonzero(twins >= 0)
    others = twins[rows]
    has = np.isfinite(z) if not n_classes else z >= 0
    _refuse(
        rows, others, twins[others] != rows, names, "are not each other's twins", "twins in pairs, each the other's"
    )
    _refuse(rows, others, ~(has[rows] & has[others]), names, "are twins, and one has no label", "a label of both")
    _refuse(rows, others, z[rows] == z[others], names, "are twins of the same label", "another value of the property")
    for name, values in covariates.items():
        a, b = values[rows], values[others]
        unlike = (a != b) & ~((a != a) & (b != b))  # both missing: alike
        _refuse(rows, others, unlike, names, f"are twins that differ in {name}, too", f"the same {name} in both")


def check_groups(twins: Ints, units: Ints, names: Sequence[str] | None = None) -> None:
    """Refuse twins that are in different groups, since one would be in the fold that is measured and the other in a
    fold that fits.

    Raises:
        OverlappingGroups: two are; the message names the rows.
    """
    rows = np.flatnonzero(twins >= 0)
    apart = rows[units[rows] != units[twins[rows]]]
    if len(apart):
        a, b = _named(int(apart[0]), names), _named(int(twins[apart[0]]), names)
        raise OverlappingGroups(
            "twins are in different groups, which folds may part",
            needed="one group for both twins of a pair",
            found=f"{a} and {b}" + (f", and {len(apart) // 2 - 1} more pairs" if len(apart) > 3 else ""),
            next_step="give both rows of a pair the same value in a column `group` or `document`",
        )


def _refuse(
    rows: Ints, others: Ints, wrong: NDArray[np.bool_], names: Sequence[str] | None, what: str, needed: str
) -> None:
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        a, b = _named(int(rows[first]), names), _named(int(others[first]), names)
        n = int(wrong.sum())
        raise BadTwin(
            f"{a} and {b} {what}", needed=needed, found=f"{n} such row{'s' if n > 1 else ''}", where=a, next_step=_STEP
        )


def _named(row: int, names: Sequence[str] | None) -> str:
    return f"row {row}" if names is None else f"{names[row]!r}"


def within(twins: Ints, rows: Ints, folds: Ints) -> Ints:
    """Return the twin of each row of an experiment, as an index into its rows, `(n,)`; -1 if there is none.

    Raises:
        BadTwin: a fold has fewer than ten pairs.
    """
    place = np.full(len(twins) + 1, -1, dtype=np.int64)
    place[rows] = np.arange(len(rows))
    found: Ints = place[twins[rows]]
    fewest = min(int((found[folds == k] >= 0).sum()) // 2 for k in np.unique(folds))
    if fewest < LEAST_PAIRS:
        raise BadTwin(
            "too few rows have a twin",
            needed=f"{LEAST_PAIRS} pairs in each of three folds",
            found=f"{fewest} in one",
            next_step="give more pairs, or leave --minimal-pairs out",
        )
    return found


def twin_pairs(twins: Ints, rows: Ints) -> Ints:
    """Return the pairs of twins among the rows of one fold, `(m, 2)`."""
    first = rows[twins[rows] > rows]
    return np.stack([first, twins[first]], axis=1)


def twins_of(twins: Ints | None, z: NDArray[Any], rows: Ints, goal: NDArray[Any]) -> Ints | None:
    """Return the twins of rows that are edited to a goal, if each row has a twin of that value; else None."""
    if twins is None or not len(rows) or (twins[rows] < 0).any() or (z[twins[rows]] != goal).any():
        return None
    return np.asarray(twins[rows])


def sampled_pairs(corpus: Corpus, column: str, *, split: str | None, most: int, seed: int) -> Corpus:
    """Return the texts of randomly chosen whole pairs, at most the given number of texts."""
    chosen = [e for e in corpus.examples if split in (None, e.split)]
    if len(chosen) <= most:
        return corpus
    known = {e.id for e in chosen}
    twins = [called(e.columns.get(column)) for e in chosen]
    keys = [
        min(e.id, twin) if twin is not None and twin in known else e.id for e, twin in zip(chosen, twins, strict=True)
    ]
    units = np.unique(keys, return_inverse=True)[1].reshape(-1)
    order = generator(seed, "use", "twins").permutation(int(units.max()) + 1)
    rank = np.argsort(order)[units]
    sizes = np.bincount(rank)
    last = int(np.searchsorted(np.cumsum(sizes), most, side="right"))
    return replace(corpus, examples=tuple(e for e, r in zip(chosen, rank, strict=True) if r < last))
