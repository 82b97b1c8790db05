"""Predicts labels of sentences from the length of the text alone: a baseline."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from probing.probes._texts import TextClassifier, TextProbe, TextRegressor


class _Lengths(TextProbe):
    """Counts characters, words (by white space) and characters a word, each as it is and as log(1 + n)."""

    def _learn(self, texts: list[str]) -> None:
        pass

    def _features(self, texts: list[str]) -> NDArray[np.float64]:
        characters = np.array([len(text) for text in texts], dtype=np.float64)
        words = np.array([len(text.split()) for text in texts], dtype=np.float64)
        counts = np.stack([characters, words, characters / np.maximum(words, 1.0)], axis=1)
        return np.hstack([counts, np.log1p(counts)])


class TextLengthProbe(_Lengths, TextClassifier):
    """Fits softmax regression on the length of the text in characters and words, characters a word, and their logs.

    A probe of sentences has to beat it before its score shows anything but the length of the text. Tokens are not
    counted, since the baseline knows the text alone, without a tokenizer.

    Args:
        l2: penalty as in `linear`, above 0; None: chosen on dev, or 1 without dev rows.
    """

    _arrays = ("classes", "coef", "intercept", "mean", "scale")
    _scalars = ("of_texts",)

    def __init__(self, l2: float | None = None) -> None:
        self.l2 = l2


class TextLengthRegressorProbe(_Lengths, TextRegressor):
    """Fits ridge regression on the same features as `TextLengthProbe`, with the same arguments."""

    _arrays = ("coef", "mean", "scale")
    _scalars = ("of_texts", "intercept")

    def __init__(self, l2: float | None = None) -> None:
        self.l2 = l2


MEMBER = TextLengthProbe
REGRESSION_MEMBER = TextLengthRegressorProbe
