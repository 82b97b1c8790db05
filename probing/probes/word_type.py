"""The word type alone: the baseline that a claim about context has to exceed."""

from __future__ import annotations

from typing import ClassVar

from probing.probes._each_label import KeyedMean, KeyedVote


class WordTypeProbe(KeyedVote):
    """Predicts the commonest label of the training rows with the row's word type, and the prior for types not seen in
    training.

    Args:
        smoothing: weight of the prior, in pseudo-observations; above 0.
    """

    input: ClassVar[str] = "type"


class WordTypeMeanProbe(KeyedMean):
    """Predicts the mean target of the training rows with the row's word type, and the overall mean for types not seen
    in training.
    """

    input: ClassVar[str] = "type"


MEMBER = WordTypeProbe
REGRESSION_MEMBER = WordTypeMeanProbe
