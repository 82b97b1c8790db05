"""The order of two words alone: the baseline of tasks of pairs."""

from __future__ import annotations

from typing import ClassVar

from probing.probes._each_label import KeyedMean, KeyedVote


class LinearOrderProbe(KeyedVote):
    """Predicts the commonest training label of pairs as far apart: how far b comes after a, before or after.

    As `word_type`, but it reads the key `offset` and no word. For `head` it is the baseline that takes for a word's
    head the likeliest place beside it.

    Args:
        smoothing: weight of the prior, in pseudo-observations; above 0.
    """

    input: ClassVar[str] = "offset"


class LinearOrderMeanProbe(KeyedMean):
    """Predicts the mean training target of pairs as far apart; see `LinearOrderProbe`."""

    input: ClassVar[str] = "offset"


MEMBER = LinearOrderProbe
REGRESSION_MEMBER = LinearOrderMeanProbe
