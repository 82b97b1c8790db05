"""Lexicon: subject words as the product of factors, and the properties that are read off those factors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from probing.errors import UnknownName, unknown_name

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Lexicon:
    """W subject words: one for every combination of the levels of the factors.

    Attributes:
        factors: how many levels each has, in order.
        properties: the factors of each labelled property: one factor is its class; of several, of two levels each, the
            parity is.
        identity: the factors that say which word it is, apart from its properties.
        values: of a continuous property, the real value of each level.
    """

    factors: Mapping[str, int]
    properties: Mapping[str, tuple[str, ...]]
    identity: tuple[str, ...]
    values: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    @cached_property
    def levels(self) -> Mapping[str, Ints]:
        """Levels of the words, `(W,)`, by factor."""
        grid = np.indices(tuple(self.factors.values())).reshape(len(self.factors), -1).astype(np.int64)
        return dict(zip(self.factors, grid, strict=True))

    def __len__(self) -> int:
        return int(np.prod(list(self.factors.values())))

    def codes(self, name: str) -> Ints:
        """Return the class of every word, `(W,)`: 0 … K-1.

        Raises:
            UnknownName: no such property.
        """
        if name not in self.properties:
            raise unknown_name("property", name, self.properties, error=UnknownName)
        found = [self.levels[factor] for factor in self.properties[name]]
        return found[0] if len(found) == 1 else np.sum(found, axis=0) % 2

    def signs(self, factor: str) -> NDArray[np.float64]:
        """Return +1 or -1 by the level of a factor of two levels, `(W,)`."""
        return np.asarray(2.0 * self.levels[factor] - 1, dtype=np.float64)

    def real(self, name: str) -> NDArray[np.float64]:
        """Return the real values of a continuous property, `(W,)`; of another property, its classes as numbers."""
        codes = self.codes(name)
        return (
            np.asarray(self.values[name], dtype=np.float64)[codes] if name in self.values else codes.astype(np.float64)
        )

    @cached_property
    def identities(self) -> Ints:
        """Number of each word's identity, `(W,)`."""
        sizes = tuple(self.factors[name] for name in self.identity)
        found = np.ravel_multi_index(tuple(self.levels[name] for name in self.identity), sizes)
        return np.asarray(found, dtype=np.int64)

    def partners(self, name: str) -> Ints:
        """Return `(W, m)` words that differ from each word in one factor of the property, and in nothing else."""
        grid = np.arange(len(self)).reshape(tuple(self.factors.values()))
        columns = []
        for factor in self.properties[name]:
            axis, size = list(self.factors).index(factor), self.factors[factor]
            columns += [np.roll(grid, -step, axis=axis).reshape(-1) for step in range(1, size)]
        return np.stack(columns, axis=1).astype(np.int64)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The words as they are written: `a1b0c1i07`."""
        widths = {name: len(str(size - 1)) for name, size in self.factors.items()}
        columns = [[f"{name}{level:0{widths[name]}d}" for level in self.levels[name].tolist()] for name in self.factors]
        return tuple("".join(parts) for parts in zip(*columns, strict=True))
