"""Predicts from the word form alone: a baseline. What a probe scores above it can come from context."""

from __future__ import annotations

from typing import ClassVar

from probing.probes._each_label import KeyedMean, KeyedVote


class WordTypeProbe(KeyedVote):
    """Predicts the label that is commonest in training for the same word form (word type); for forms that do not occur
    in training, the commonest label of all.

    Args:
        smoothing: weight of the label frequencies in the estimated probabilities, as a number of training words; above
            0.
    """

    input: ClassVar[str] = "type"


class WordTypeMeanProbe(KeyedMean):
    """Predicts the mean target in training of the same word form (word type); for forms that do not occur in training,
    the mean of all targets.
    """

    input: ClassVar[str] = "type"


MEMBER = WordTypeProbe
REGRESSION_MEMBER = WordTypeMeanProbe
