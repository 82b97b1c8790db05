"""The word type alone: the baseline that a claim about context has to exceed."""

from __future__ import annotations

from typing import ClassVar

from probing.probes._each_label import KeyedMean, KeyedVote


class WordTypeProbe(KeyedVote):
    """Predicts the commonest label of the training rows with the same word type; for types that do not occur in
    training, the commonest label of all.

    Args:
        smoothing: weight of the prior, in pseudo-observations; above 0.
    """

    input: ClassVar[str] = "type"


class WordTypeMeanProbe(KeyedMean):
    """Predicts the mean target of the training rows with the same word type; for types that do not occur in training,
    the overall mean.
    """

    input: ClassVar[str] = "type"


MEMBER = WordTypeProbe
REGRESSION_MEMBER = WordTypeMeanProbe
