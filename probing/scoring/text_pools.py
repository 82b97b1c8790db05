"""Pools the states of a text's tokens as they come, as the rows of a probe were pooled in training."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from probing.errors import BadParameter
from probing.labels import Pieces
from probing.scoring.recipe import Recipe

Floats = NDArray[np.float64]


class TextPool:
    """Pools the states of one text and scores them: the whole text, and with `scores_prefixes` every beginning of it.

    Attributes:
        so_far: `(n,)` score of the text up to each of its n tokens; empty unless `scores_prefixes`.
    """

    def __init__(self, recipe: Recipe, *, scores_prefixes: bool = False) -> None:
        self._recipe, self._scores_prefixes = recipe, scores_prefixes
        self._parts: list[NDArray[np.float32]] = []
        self._pooled: Floats | None = None
        self._count = 0
        self.so_far: Floats = np.zeros(0)

    def add(self, X: NDArray[np.float32]) -> None:
        """Add the states `(n, D)` of the next tokens."""
        if not len(X) or not self._recipe.own_pool:
            return
        if self._scores_prefixes:  # token by token: each makes a text of its own
            for n in range(len(X)):
                self._take(X[n : n + 1])
                self.so_far = np.append(self.so_far, self.score())
        else:
            self._take(X)

    def _take(self, X: NDArray[np.float32]) -> None:
        self._count += len(X)
        how = self._recipe.own_pool
        if how == "pieces":
            self._parts.append(X)
            return
        now = {
            "first": lambda: X[0],
            "last": lambda: X[-1],
            "mean": lambda: X.sum(0, dtype=np.float64),
            "max": lambda: X.max(0),
        }
        made = np.asarray(now[how](), np.float64)
        if self._pooled is None or how == "last":
            self._pooled = made
        elif how == "mean":
            self._pooled = self._pooled + made
        elif how == "max":
            self._pooled = np.maximum(self._pooled, made)

    def score(self) -> float:
        """Return the probe's score of the text so far.

        Raises:
            BadParameter: the probe scores words or positions inside the text, or there is no token.
        """
        if not self._count:
            raise BadParameter(
                "no score of the text as a whole",
                needed="rows of whole texts (sentence:…, position:end) and at least one piece",
                found=f"rows {self._recipe.rows}, {self._count} pieces",
                where=self._recipe.name,
                next_step="aggregate the scores of the pieces",
            )
        if self._recipe.own_pool == "pieces":
            states = np.concatenate(self._parts)
            return float(self._recipe.scored(Pieces(states, np.array([0, len(states)])))[0][0])
        assert self._pooled is not None  # a token was added
        row = self._pooled / self._count if self._recipe.own_pool == "mean" else self._pooled
        return float(self._recipe.scored(row.astype(np.float32)[None])[0][0])
