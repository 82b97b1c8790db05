"""Contrasts: differences of vectors between the values of a property, by stratum, and the influence of each row on
them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.errors import BadTwin, OverlappingGroups
from probing.seeds import generator
from probing.text.corpus import Corpus, Label
from probing.text.example import named as called

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Values = NDArray[Any]
_FEW = 32  # cells: of so few, one product is quicker than gathered arrays


@dataclass(frozen=True, eq=False)
class FromTo:
    """Holds, for each of n edited rows, its value of the property before the edit (start) and after it (goal), and its
    stratum.

    Attributes:
        strata: `(n,)` codes of strata.
        start, goal: `(n,)` values of the property before and after.
    """

    strata: Ints
    start: Values
    goal: Values

    def take(self, chosen: NDArray[Any]) -> FromTo:
        """Return the chosen rows."""
        return FromTo(self.strata[chosen], self.start[chosen], self.goal[chosen])


class Contrast(ABC):
    """Holds the differences of vectors `(P,)` between the values of a property, fitted on N rows."""

    @abstractmethod
    def difference(self, sides: FromTo) -> Floats:
        """Return, for n rows, the difference of the vectors between goal and start, `(n, P)`."""

    @abstractmethod
    def influence(self, sides: FromTo, sensitivity: Floats) -> Floats:
        """Return the influence of each row that the contrast was fitted on, on a number that depends on the
        differences.

        Args:
            sides: start, goal and stratum of the n rows whose differences are used.
            sensitivity: `(n, P)` derivatives of the number with respect to the differences.

        Returns:
            `(N,)` influence values; they sum to zero within each stratum and class.
        """

    @abstractmethod
    def null_variance(self, sides: FromTo, sensitivity: Floats, groups: Ints) -> float:
        """Return the variance under shuffled labels (within strata) of the number that `sensitivity` describes, as in
        `influence`, from the total covariance of each stratum.
        """


def contrast(values: NDArray[np.floating], z: Values, strata: Ints, *, n_classes: int) -> Contrast:
    """Fit a contrast on N rows of `values` `(N, P)` and return it: class means of each stratum or, for real-valued z,
    slopes on z.
    """
    data = np.asarray(values, np.float64)
    if n_classes:
        return ClassMeans(data, np.asarray(z, np.int64), strata, n_classes)
    return Slopes(data, np.asarray(z, np.float64), strata)


def sums_by(codes: Ints, rows: Floats, n: int) -> Floats:
    """Return the sum of the rows with each code, `(n, P)`."""
    if n <= _FEW:
        return np.asarray((codes == np.arange(n)[:, None]).astype(np.float64) @ rows)
    out = np.zeros((n, rows.shape[1]))
    order = np.argsort(codes, kind="stable")
    found, starts = np.unique(codes[order], return_index=True)
    if len(found):
        out[found] = np.add.reduceat(rows[order], starts, axis=0)
    return out


@dataclass(frozen=True, eq=False)
class ClassMeans(Contrast):
    """A contrast between the means of the vectors of two classes, fitted within each stratum."""

    values: Floats
    z: Ints
    strata: Ints
    n_classes: int

    @cached_property
    def _cells(self) -> Ints:
        return self.strata * self.n_classes + self.z

    @cached_property
    def _n_cells(self) -> int:
        return (int(self.strata.max()) + 1) * self.n_classes

    @cached_property
    def counts(self) -> Ints:
        """Number of rows of each stratum and class, `(W · K,)`."""
        return np.bincount(self._cells, minlength=self._n_cells)

    @cached_property
    def means(self) -> Floats:
        """Means by stratum and class, `(W · K, P)`; zeros where there is no row."""
        return sums_by(self._cells, self.values, self._n_cells) / np.maximum(self.counts, 1)[:, None]

    def difference(self, sides: FromTo) -> Floats:
        k, means = self.n_classes, self.means.reshape(-1, self.n_classes, self.means.shape[1])
        if self._n_cells * k > len(sides.strata):
            return np.asarray(means[sides.strata, sides.goal] - means[sides.strata, sides.start])
        apart = (means[:, None] - means[:, :, None]).reshape(-1, means.shape[2])  # by stratum, start, goal
        return np.asarray(apart[(sides.strata * k + sides.start) * k + sides.goal])

    def _by_cell(self, sides: FromTo, sensitivity: Floats) -> Floats:
        base = sides.strata * self.n_classes
        goal, start = (base + side for side in (sides.goal, sides.start))
        if self._n_cells > _FEW:
            return sums_by(goal, sensitivity, self._n_cells) - sums_by(start, sensitivity, self._n_cells)
        cells = np.arange(self._n_cells)[:, None]
        return np.asarray(((goal == cells).astype(np.float64) - (start == cells)) @ sensitivity)

    def influence(self, sides: FromTo, sensitivity: Floats) -> Floats:
        weights = self._by_cell(sides, sensitivity) / np.maximum(self.counts, 1)[:, None]
        own = np.einsum("np,np->n", weights[self._cells], self.values)
        return np.asarray(own - np.einsum("cp,cp->c", weights, self.means)[self._cells])

    def null_variance(self, sides: FromTo, sensitivity: Floats, groups: Ints) -> float:
        by_cell, total = self._by_cell(sides, sensitivity), 0.0
        for w in np.unique(self.strata):
            inside = self.strata == w
            centred = self.values[inside] - self.values[inside].mean(0)
            used = np.arange(w * self.n_classes, (w + 1) * self.n_classes)
            used = used[self.counts[used] > 0]
            projected = centred @ by_cell[used].T
            by_group = sums_by(groups[inside], projected, int(groups.max()) + 1)
            spread = (by_group**2).sum(0) / max(1, inside.sum() - 1)
            total += float((spread / self.counts[used]).sum())
        return total


@dataclass(frozen=True, eq=False)
class Slopes(Contrast):
    """A contrast for real-valued z: least-squares slopes on z, fitted within each stratum."""

    values: Floats
    z: Floats
    strata: Ints

    @cached_property
    def _n_strata(self) -> int:
        return int(self.strata.max()) + 1

    def _centred(self, rows: Floats) -> Floats:
        counts = np.maximum(np.bincount(self.strata, minlength=self._n_strata), 1)
        return rows - (sums_by(self.strata, rows, self._n_strata) / counts[:, None])[self.strata]

    @cached_property
    def _z(self) -> Floats:
        return self._centred(self.z[:, None])[:, 0]

    @cached_property
    def _spread(self) -> Floats:
        found = np.bincount(self.strata, self._z**2, self._n_strata)
        return np.where(found > 0, found, np.inf)

    @cached_property
    def slopes(self) -> Floats:
        """Least-squares slopes of the vectors on z by stratum, `(W, P)`."""
        return sums_by(self.strata, self._z[:, None] * self.values, self._n_strata) / self._spread[:, None]

    def difference(self, sides: FromTo) -> Floats:
        return np.asarray(self.slopes[sides.strata] * (sides.goal - sides.start)[:, None])

    def _by_stratum(self, sides: FromTo, sensitivity: Floats) -> Floats:
        return sums_by(sides.strata, (sides.goal - sides.start)[:, None] * sensitivity, self._n_strata)

    def influence(self, sides: FromTo, sensitivity: Floats) -> Floats:
        weights = self._by_stratum(sides, sensitivity) / self._spread[:, None]
        left = self._centred(self.values) - self._z[:, None] * self.slopes[self.strata]
        return np.asarray(self._z * np.einsum("np,np->n", weights[self.strata], left))

    def null_variance(self, sides: FromTo, sensitivity: Floats, groups: Ints) -> float:
        by_stratum = self._by_stratum(sides, sensitivity)
        projected = np.einsum("np,np->n", by_stratum[self.strata], self._centred(self.values))
        total = 0.0
        for w in np.unique(self.strata):
            inside = self.strata == w
            by_group = np.bincount(groups[inside], projected[inside])
            total += float((by_group**2).sum() / max(1, inside.sum() - 1) / self._spread[w])
        return total


@dataclass(frozen=True, eq=False)
class Averaged(Contrast):
    """A contrast with one difference for all strata: the average of their differences, weighted by the
    strata's shares.
    """

    fitted: Contrast
    shares: Floats

    def _at(self, sides: FromTo, w: int) -> FromTo:
        return FromTo(np.full_like(sides.strata, w), sides.start, sides.goal)

    def difference(self, sides: FromTo) -> Floats:
        parts = [share * self.fitted.difference(self._at(sides, w)) for w, share in enumerate(self.shares)]
        return np.asarray(sum(parts))

    def influence(self, sides: FromTo, sensitivity: Floats) -> Floats:
        parts = [self.fitted.influence(self._at(sides, w), share * sensitivity) for w, share in enumerate(self.shares)]
        return np.asarray(sum(parts))

    def null_variance(self, sides: FromTo, sensitivity: Floats, groups: Ints) -> float:
        parts = (
            self.fitted.null_variance(self._at(sides, w), share * sensitivity, groups)
            for w, share in enumerate(self.shares)
        )
        return float(sum(parts))


LEAST_PAIRS = 10  # in every fold
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
    """Check that twins (the rows of a minimal pair) differ in the property, and in no other.

    Args:
        twins: `(N,)` row of each row's twin, or -1.
        z: `(N,)` values of the property.
        n_classes: number of classes K; 0 for real values.
        covariates: `(N,)` values of all other labelled properties.
        names: names of the rows, for messages.

    Raises:
        BadTwin: two rows are not each other's twin, lack a label or have the same label, or differ in another property.
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
    """Check that twins are in the same group, since otherwise one may be in the measured fold and the other in a fold
    used for fitting.

    Raises:
        OverlappingGroups: two twins are in different groups; the message names the rows.
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
    """Return the twins of the rows if each row has a twin whose value is its goal; else None."""
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
