"""Computes how many bits about the label a kind of probe extracts from the state."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from probing.contracts.measure import Measure, Prediction
from probing.errors import BadParameter
from probing.labels import Labels
from probing.measures._rows import log_probabilities

MOST_BITS = 50.0


class UsableInformation(Measure):
    """Computes how many bits a probe gains over the label frequencies on held-out rows: I_V(X → Y) = H_V(Y) − H_V(Y|X),
    the mean of log₂ p(y|x) − log₂ p(y).

    H_V(Y) is the cross-entropy of the scored rows under the label frequencies of train, the best prediction without a
    state. H_V(Y|X) is the probe's log loss after its log odds were scaled by a factor fitted on dev
    (`measures/_rows.py`); without a dev split they are not scaled, and an over-confident probe can score below 0. Each
    is at most 50 bits per row. Unlike mutual information, usable information can grow from layer to layer, and is
    limited by what this kind of probe can compute. It misleads if kinds of probes are compared, and where the label
    frequencies of train and test differ, since that difference is then part of H_V(Y).

    References:
        Xu et al. 2020, A theory of usable information under computational constraints, def. 2 and eq. 3.
    """

    kinds = ("classes",)
    unit = "bits"
    reads_probabilities: ClassVar[bool] = True
    counts_bits: ClassVar[bool] = True

    def __init__(self) -> None:
        self._prior_bits: NDArray[np.float64] | None = None

    def informed(self, labels: Labels) -> UsableInformation:
        """Return a copy that stores −log₂ of the label frequencies of train, `(K,)`. `labels` are those of all
        splits.
        """
        counts = np.bincount(labels.y[labels.rows("train")], minlength=len(labels.classes))
        copy = type(self)()
        with np.errstate(divide="ignore"):
            copy._prior_bits = np.minimum(-np.log2(counts / counts.sum()), MOST_BITS)
        return copy

    def row_statistics(self, y: NDArray[Any], prediction: Prediction) -> NDArray[np.float64]:
        """Return two numbers per row, `(N, 2)`: the bits that each row gains over the label frequencies, and the
        constant 1. Arguments are those of `Measure.row_statistics`.

        Raises:
            BadParameter: `informed` was not called, or the probe gives no probabilities.
        """
        if self._prior_bits is None:
            raise BadParameter(
                "usable_information needs the label frequencies of train",
                found="a measure that was not told them",
                next_step="call informed(labels) with labels that have rows in train",
            )
        logs = log_probabilities(prediction, "usable_information", believed=True)[np.arange(len(y)), y]
        bits = np.clip(-logs / np.log(2.0), 0.0, MOST_BITS)
        return np.stack([self._prior_bits[np.asarray(y)] - bits, np.ones(len(bits))], axis=1)

    def from_totals(self, totals: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the mean number of bits gained per row, for each sample.

        Args:
            totals: sums over rows of the columns of `row_statistics`: `(2,)` for one sample, or `(R, 2)` for R
                resamples.
        """
        return totals[..., 0] / totals[..., 1]


MEMBER = UsableInformation
