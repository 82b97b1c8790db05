"""Checks of arrays before they are probed: what float32 loses, the order of rows, labels of two types or of none that
can be predicted, and copies of rows in train and test.
"""

from __future__ import annotations

import datetime
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.errors import BadParameter, DoubtfulData, ProbingWarning, warn_user
from probing.tasks._numbers import INSTEAD_OF_DATES, INSTEAD_OF_TIMES
from probing.text.example import named

_BLOCK = 256  # columns that are checked at once
_ROUNDING = 0.05  # of a column's standard deviation, that rounding to float32 may add
_JITTER = 1e-12  # relative spread up to which a column of float64 is constant but for errors of computing it


def check_rounding(matrix: NDArray[Any], narrow: NDArray[np.float32], where: str) -> None:
    """Raise BadParameter if float32 does not hold what tells the rows of a column apart.

    Columns near zero may vanish beside others, as small probabilities do; but not all of them.
    """
    vanished, lost = 0, []
    for first in range(0, matrix.shape[1], _BLOCK):
        wide = matrix[:, first : first + _BLOCK].astype(np.float64)
        with np.errstate(all="ignore"):  # what is not finite is refused elsewhere
            spread, size = wide.std(0), np.abs(wide).max(0)
            error = (narrow[:, first : first + _BLOCK] - wide).std(0)
            is_lost = (error > _ROUNDING * spread) & (spread > _JITTER * size)
        vanished += int((is_lost & (size < np.finfo(np.float32).tiny)).sum())
        lost += (first + np.flatnonzero(is_lost & (size >= np.finfo(np.float32).tiny))).tolist()
    if lost or vanished == matrix.shape[1]:
        raise BadParameter(
            "states that float32 does not tell apart",
            needed="columns whose differences are large enough beside their mean",
            found=f"{len(lost):,} columns, the first of them {lost[0]}" if lost else "all values below 1e-38",
            where=where,
            next_step="subtract from each feature its mean, and divide by its standard deviation",
        )


def check_order(given: Mapping[str, Any]) -> None:
    """Raise BadParameter if two pandas objects have the same index labels in another order.

    Args:
        given: objects by name, of which those with an index of pandas are compared with the first such object.
    """
    indexes = {name: index for name, one in given.items() if (index := _index_of(one)) is not None}
    for name, index in list(indexes.items())[1:]:
        first, known = next(iter(indexes.items()))
        if index.equals(known) or len(index) != len(known):  # other lengths are refused elsewhere
            continue
        if set(index) == set(known):
            row = next(i for i, (one, other) in enumerate(zip(index, known, strict=True)) if one != other)
            raise BadParameter(
                f"{name} has the index of {first} in another order",
                needed="rows in one order: pandas would align them by index, scikit-learn by position",
                found=f"in row {row} index {index[row]!r} of {name} and {known[row]!r} of {first}"[:300],
                next_step=f"put the rows of {name} in the order of {first} ({name}.loc[{first}.index]), or, if they "
                f"already are, drop the index ({name}.to_numpy())",
            )


def _index_of(given: Any) -> Any:
    """Return the index of a Series or DataFrame; of all else None, without loading pandas."""
    pandas = sys.modules.get("pandas")
    return given.index if pandas and isinstance(given, pandas.Series | pandas.DataFrame) else None


def check_types(values: Sequence[Any], name: str) -> None:
    """Raise BadParameter if a text and another value, such as "1" and 1, would have one name as label, group or key."""
    texts = {named(value) for value in values if isinstance(value, str)}
    others = {value: named(value) for value in values if value is not None and not isinstance(value, str)}
    alike = next((value for value, as_text in others.items() if as_text in texts), None)
    if alike is not None:
        raise BadParameter(
            f"{name} has values that differ in nothing but their type",
            needed="numbers or texts throughout, since both are named by what is written",
            found=f"{alike!r} and {named(alike)!r}",
            where=f"rows {_first(values, alike, str)} and {_first(values, alike, int | float)}",
            next_step=f"give {name} as texts or as numbers throughout",
        )


# What to give in place of values that are neither numbers nor classes, by NumPy's kind of their type.
_INSTEAD = {
    "M": ("dates", INSTEAD_OF_DATES),
    "m": ("times", INSTEAD_OF_TIMES),
    "c": ("complex numbers", "give a real number of each: its real or its imaginary part, or abs(y)"),
}


def refuse_other_values(y: Any) -> None:
    """Raise BadParameter if labels are dates, times or complex numbers, which are neither numbers that a probe can
    predict nor names of classes.
    """
    kind = getattr(getattr(y, "dtype", None), "kind", "")
    listed = y if isinstance(y, Sequence) or kind == "O" else ()
    kinds = map(_kind_of, listed) if kind not in _INSTEAD else iter([kind])
    if (found := next(filter(None, kinds), None)) is None:
        return
    what, instead = _INSTEAD[found]
    raise BadParameter(
        f"y holds {what}",
        needed="numbers or classes",
        found=f"values of type {getattr(y, 'dtype', '') if kind == found else _type_of(listed, found)}",
        next_step=instead,
    )


def _kind_of(value: Any) -> str:
    """Return `M` for a date, `m` for a time or duration, `c` for a complex number; for all else an empty string."""
    if isinstance(value, datetime.date | np.datetime64):
        return "M"
    if isinstance(value, datetime.time | datetime.timedelta | np.timedelta64):
        return "m"
    return "c" if isinstance(value, complex | np.complexfloating) else ""


def _type_of(values: Any, kind: str) -> str:
    return next(type(value).__name__ for value in values if _kind_of(value) == kind)


def _first(values: Sequence[Any], alike: Any, kind: Any) -> int:
    """Return the first row with a value of this kind that has the name of `alike`."""
    return next(i for i, value in enumerate(values) if isinstance(value, kind) and named(value) == named(alike))


def warn_of_constant(states: Mapping[str, NDArray[np.float32]]) -> bool:
    """Warn of sites at which all rows have one state, and return whether this is so at every site."""
    constant = [site for site, state in states.items() if len(state) > 1 and bool((state == state[0]).all())]
    if constant:
        rows = len(next(iter(states.values())))
        warn_user(
            f"All {rows:,} states at {', '.join(constant)} are equal: nothing can be read from them. Is it the array "
            "that was meant, and was it filled?",
            DoubtfulData,
        )
    return bool(constant) and len(constant) == len(states)


def warn_of_copies(states: Mapping[str, NDArray[np.float32]], splits: Sequence[str]) -> None:
    """Warn if rows of test have the states of a row of train: a probe can remember what it should read."""
    if not all(np.isfinite(state).all() for state in states.values()):
        return  # they are refused with their rows named
    rows = [hash(tuple(state[i].tobytes() for state in states.values())) for i in range(len(splits))]
    seen = {row for row, split in zip(rows, splits, strict=True) if split == "train"}
    tested = [row for row, split in zip(rows, splits, strict=True) if split == "test"]
    copies = sum(row in seen for row in tested)
    if copies:
        warnings.warn(
            f"{copies:,} of {len(tested):,} test rows have the same states as a train row: if they are copies of one "
            "input, a probe that only remembers it looks as if it read the label; give such rows one group (groups=)",
            ProbingWarning,
            stacklevel=3,
        )
