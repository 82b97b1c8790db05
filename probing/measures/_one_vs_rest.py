"""OneVsRest: scores of how well rows of a class are ranked above all others, mean over classes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from probing.contracts.measure import Measure
from probing.contracts.prediction import Prediction
from probing.measures._rows import log_probabilities, mean_of_known

_BLOCK = 1 << 19

Ranked = Callable[[NDArray[np.float64]], NDArray[np.float64]]


class OneVsRest(Measure):
    """A score of how a probe ranks rows: of two classes the second is scored, of more classes each against the rest.

    What speaks for a class is the log odds (of two) or its log probability. Classes that no row of the split has are
    left out of the mean; one that a resample lacks is left out of that resample's.
    """

    kinds = ("classes",)
    unit = "fraction"
    reads_probabilities: ClassVar[bool] = True
    needs_two_classes: ClassVar[bool] = True

    @abstractmethod
    def shares(self, has: NDArray[np.bool_], score: NDArray[Any]) -> NDArray[np.float64]:
        """Return `(N,)` numbers whose mean over the rows of the class is the score on the full sample."""

    @abstractmethod
    def ranked(self, has: NDArray[np.bool_], score: NDArray[Any], groups: NDArray[np.int64]) -> Ranked:
        """Return a function that gives `(B,)` exact scores of one class from cluster weights `(S, B)`; NaN where one
        side has no row.
        """

    def row_statistics(self, y: NDArray[Any], prediction: Prediction) -> NDArray[np.float64]:
        """Return, for each of C classes, a row's share and whether it has the class, `(N, 2C)`; ranks are of the full
        sample.

        Raises:
            BadParameter: the probe gives no probabilities.
        """
        pairs = self._contrasts(y, prediction)
        columns = [column for has, score in pairs for column in (np.where(has, self.shares(has, score), 0.0), has)]
        return np.stack(columns, axis=1).astype(np.float64) if columns else np.full((len(y), 2), np.nan)

    def from_totals(self, totals: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the shares over the rows of the class, averaged over classes."""
        parts = totals.reshape(*totals.shape[:-1], -1, 2)
        return mean_of_known(ratio(parts[..., 0], parts[..., 1]))

    def resampled(
        self, y: NDArray[Any], prediction: Prediction, groups: NDArray[np.int64], weights: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the exact scores `(R,)` under cluster weights `(R, S)`, ranked anew; each class is sorted once,
        whatever R.
        """
        step = max(1, _BLOCK // max(1, len(groups)))
        blocks = [np.ascontiguousarray(weights[low : low + step].T) for low in range(0, len(weights), step)]
        curves = (self.ranked(has, score, groups) for has, score in self._contrasts(y, prediction))
        scores = [np.concatenate([curve(block) for block in blocks]) for curve in curves]
        return mean_of_known(np.stack(scores, axis=-1)) if scores else np.full(len(weights), np.nan)

    def _contrasts(self, y: NDArray[Any], prediction: Prediction) -> list[tuple[NDArray[np.bool_], NDArray[Any]]]:
        logs = log_probabilities(prediction, type(self).__name__)
        y = np.asarray(y)
        two = logs.shape[1] == 2
        pairs = [(y == 1, logs[:, 1] - logs[:, 0])] if two else [(y == k, logs[:, k]) for k in range(logs.shape[1])]
        return [(has, score) for has, score in pairs if 0 < has.sum() < len(has)]


def ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return `part / whole`, NaN where the whole is 0."""
    return np.asarray(np.where(whole > 0, part / np.where(whole > 0, whole, 1.0), np.nan))
