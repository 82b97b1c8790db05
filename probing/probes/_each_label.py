"""Several labels at once: a probe of classes is fitted on each label, as problems of two classes that share one X."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probing.contracts.probe import Probe
from probing.errors import BadParameter
from probing.labels import Kind, Reading


class EachLabelProbe(Probe):
    """Fits `base` once for each of C labels; all labels of all label sets are fitted in one `fit_many`.

    A label that all train rows have, or none, is not fitted: what train says of it is predicted everywhere, with
    certainty. Its fits are not saved.

    Args:
        base: an unfitted probe of classes.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("labels",)

    always_: NDArray[np.int64]
    fits_: dict[int, Probe]
    converged_: bool

    def __init__(self, base: Probe) -> None:
        self.base = base

    @property
    def reads(self) -> str:  # type: ignore[override]
        """Kind of input of the base probe."""
        return self.base.reads

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        """Whether fits of the base probe depend on the seed."""
        return self.base.stochastic

    @property
    def readings(self) -> tuple[Reading, ...]:  # type: ignore[override]
        """Forms of rows that the base probe reads."""
        return self.base.readings

    @property
    def reads_pairs(self) -> bool:  # type: ignore[override]
        """Whether the base probe reads pairs of states."""
        return self.base.reads_pairs

    def fit(self, X: ArrayLike, y: ArrayLike, *, dev: tuple[ArrayLike, ArrayLike] | None = None) -> Self:
        """Fit on N rows and `(N, C)` labels."""
        held: Any = None if dev is None else (dev[0], [np.asarray(dev[1])])
        rows: Any = X
        fitted = self.fit_many(rows, [np.asarray(y)], [getattr(self.base, "random_state", None) or 0], dev=held)[0][0]
        self.__dict__.update(fitted.__dict__)
        return self

    def fit_many(
        self,
        X: NDArray[np.float32],
        targets: Sequence[NDArray[Any]],
        seeds: Sequence[int],
        *,
        dev: tuple[NDArray[np.float32], Sequence[NDArray[Any]]] | None = None,
    ) -> list[list[Self]]:
        """Fit every label of every label set under every seed. See `Probe.fit_many`."""
        fitted = [(m, c) for m, y in enumerate(targets) for c in np.flatnonzero(np.ptp(y, axis=0)).tolist()]
        held = None if dev is None else (dev[0], [dev[1][m][:, c] for m, c in fitted])
        parts = self.base.fit_many(X, [targets[m][:, c] for m, c in fitted], seeds, dev=held)
        found: list[list[Self]] = []
        for m, y in enumerate(targets):
            found.append([])
            for s in range(len(seeds)):
                probe: Self = self.with_seed(0)
                probe.always_ = np.asarray(y[0], np.int64)
                probe.fits_ = {c: row[s] for (n, c), row in zip(fitted, parts, strict=True) if n == m}
                probe.converged_ = all(bool(getattr(fit, "converged_", True)) for fit in probe.fits_.values())
                found[-1].append(probe)
        return found

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return 0 or 1 for each label, `(N, C)` int64."""
        rows: Any = X
        values = np.tile(self.always_, (len(rows), 1))
        for c, fit in self.fits_.items():
            values[:, c] = fit.predict(X)
        return values

    def log_probabilities(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the natural log probabilities of not having and of having each label, `(N, C, 2)`."""
        rows: Any = X
        n_labels = len(self.always_)
        logs = np.full((len(rows), n_labels, 2), -np.inf)
        logs[:, np.arange(n_labels), self.always_] = 0.0
        for c, fit in self.fits_.items():
            one: Any = fit
            logs[:, c] = one.predict_log_proba(X)
        return logs

    def state(self) -> dict[str, NDArray[Any]]:
        """Refuse to give the state: see the class."""
        raise _not_saved()

    def with_state(self, state: dict[str, NDArray[Any]]) -> Self:
        """Refuse to take a state: see the class."""
        raise _not_saved()


def _not_saved() -> BadParameter:
    return BadParameter(
        "a probe of several labels at once cannot be saved",
        needed="a task of classes or of one number",
        next_step="keep its results, and refit it when needed",
    )
