"""Predicts labels of word pairs from the order and distance of the two words alone: a baseline."""

from __future__ import annotations

from typing import ClassVar

from probing.probes._each_label import KeyedMean, KeyedVote


class LinearOrderProbe(KeyedVote):
    """Predicts the commonest label of the training pairs with the same distance between their words, in the same
    direction.

    It is like `word_type`, but its key is `offset` (how many words b comes after a) and not the word. For `head` it is
    the baseline that predicts a word's head from distance alone.

    Args:
        smoothing: weight of the label frequencies in the estimated probabilities, as a number of training pairs; above
            0.
    """

    input: ClassVar[str] = "offset"


class LinearOrderMeanProbe(KeyedMean):
    """Predicts the mean target of the training pairs with the same distance and direction between their words; see
    `LinearOrderProbe`.
    """

    input: ClassVar[str] = "offset"


MEMBER = LinearOrderProbe
REGRESSION_MEMBER = LinearOrderMeanProbe
