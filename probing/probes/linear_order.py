"""The order of two words alone: the baseline of tasks of pairs."""

from __future__ import annotations

from typing import ClassVar

from probing.probes._each_label import KeyedMean, KeyedVote


class LinearOrderProbe(KeyedVote):
    """Predicts the commonest label of the training pairs whose words are as far apart, in the same order.

    It is like `word_type`, but reads the key `offset` instead of the word. For `head` it is the baseline that guesses a
    word's head by its distance alone.

    Args:
        smoothing: weight of the prior, in pseudo-observations; above 0.
    """

    input: ClassVar[str] = "offset"


class LinearOrderMeanProbe(KeyedMean):
    """Predicts the mean target of the training pairs whose words are as far apart; see `LinearOrderProbe`."""

    input: ClassVar[str] = "offset"


MEMBER = LinearOrderProbe
REGRESSION_MEMBER = LinearOrderMeanProbe
