"""Log loss in bits per label."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from probing.contracts import Measure, Prediction
from probing.errors import BadParameter

MOST_BITS = 50.0


class LogLoss(Measure):
    """Mean of −log₂ p(true class), in bits; p is taken as at least 2⁻⁵⁰, so that one certain mistake costs 50 bits.

    The cross-entropy whose difference to the label entropy bounds the information a probe of this family can use.
    It punishes over-confidence: a probe may gain accuracy and lose bits.
    """

    kinds = ("classes",)
    unit = "bits"
    higher_is_better = False
    reads_probabilities: ClassVar[bool] = True

    def row_statistics(self, y: NDArray[Any], prediction: Prediction) -> NDArray[np.float64]:
        """`(N, 2)`: bits, one.

        Raises:
            BadParameter: the probe gives no probabilities.
        """
        if prediction.log_probabilities is None:
            raise BadParameter(
                "log_loss needs probabilities", found="a probe without them", next_step="score it by accuracy"
            )
        logs = prediction.log_probabilities[np.arange(len(y)), y]
        bits = np.clip(-logs / np.log(2.0), 0.0, MOST_BITS)
        return np.stack([bits, np.ones(len(bits))], axis=1)

    def from_totals(self, totals: NDArray[np.float64]) -> NDArray[np.float64]:
        """Bits over rows."""
        return totals[..., 0] / totals[..., 1]


MEMBER = LogLoss
