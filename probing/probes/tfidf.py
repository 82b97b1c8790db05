"""Predicts labels of sentences from their words, with more weight on rare words (TF-IDF), without a model: a
baseline.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.preprocessing import normalize

from probing.probes._texts import TextClassifier, TextRegressor, WordCounts


class WeightedWords(WordCounts):
    """Weights counts by `1 + ln((1 + N) / (1 + n))`, n of N training texts having the word, and scales each text to
    length 1.
    """

    default_l2: ClassVar[float] = 0.1

    idf_: NDArray[np.float64]

    def _learn(self, texts: list[str]) -> None:
        super()._learn(texts)
        having = np.diff(super()._features(texts).tocsc().indptr) if texts else np.zeros(len(self.words_))
        self.idf_ = 1 + np.log((1 + len(texts)) / (1 + having))

    def _features(self, texts: list[str]) -> csr_matrix:
        return normalize(super()._features(texts).multiply(self.idf_).tocsr(), copy=False)


class TfidfProbe(WeightedWords, TextClassifier):
    """Fits softmax regression on the words of the text, weighted by term frequency and inverse document frequency.

    It is like `bag_of_words`, but normalised for the length of the text. Features are small, and therefore the default
    penalty is small too.

    Args:
        l2: penalty as in `linear`, above 0; None: chosen on dev, or 0.1 without dev rows.
        most_words: number of words that are counted, the commonest of the training texts.
        ngrams: longest sequence of words that is counted; 1 means single words only.

    References:
        Spärck Jones 1972, J. Documentation 28; the smoothed form of scikit-learn's `TfidfTransformer`.
    """

    _arrays = ("classes", "coef", "intercept", "mean", "scale", "words", "idf")
    _scalars = ("of_texts",)

    def __init__(self, l2: float | None = None, most_words: int = 20_000, ngrams: int = 1) -> None:
        self.l2 = l2
        self.most_words = most_words
        self.ngrams = ngrams


class TfidfRegressorProbe(WeightedWords, TextRegressor):
    """Fits ridge regression on the same features as `TfidfProbe`, with the same arguments."""

    _arrays = ("coef", "mean", "scale", "words", "idf")
    _scalars = ("of_texts", "intercept")

    def __init__(self, l2: float | None = None, most_words: int = 20_000, ngrams: int = 1) -> None:
        self.l2 = l2
        self.most_words = most_words
        self.ngrams = ngrams


MEMBER = TfidfProbe
REGRESSION_MEMBER = TfidfRegressorProbe
