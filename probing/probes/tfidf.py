"""The words of the text, rare ones weighing more: a baseline for labels of sentences and prompts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.preprocessing import normalize

from probing.probes._texts import TextClassifier, TextRegressor, WordCounts


class _Weighted(WordCounts):
    """Weights counts by `1 + ln((1 + N) / (1 + n))`, n of N training texts having the word, and scales each text to
    length 1.
    """

    idf_: NDArray[np.float64]

    def _learn(self, texts: list[str]) -> None:
        super()._learn(texts)
        having = np.diff(super()._features(texts).tocsc().indptr) if texts else np.zeros(len(self.words_))
        self.idf_ = 1 + np.log((1 + len(texts)) / (1 + having))

    def _features(self, texts: list[str]) -> csr_matrix:
        return normalize(super()._features(texts).multiply(self.idf_).tocsr(), copy=False)


class TfidfProbe(_Weighted, TextClassifier):
    """Softmax regression on the words of the text weighted by term frequency and inverse document frequency.

    Like `bag_of_words`, without regard to the length of the text. Features are small, hence a smaller penalty.

    Args:
        l2: penalty, as of `linear`; above 0.
        most_words: the commonest words of the training texts that are counted.
        ngrams: count runs of up to this many words too.

    References:
        Spärck Jones 1972, J. Documentation 28; the smoothed form of scikit-learn's `TfidfTransformer`.
    """

    _arrays = ("classes", "coef", "intercept", "mean", "scale", "words", "idf")
    _scalars = ("of_texts",)

    def __init__(self, l2: float = 0.1, most_words: int = 20_000, ngrams: int = 1) -> None:
        self.l2 = l2
        self.most_words = most_words
        self.ngrams = ngrams


class TfidfRegressorProbe(_Weighted, TextRegressor):
    """Ridge regression on the same features. See `TfidfProbe`."""

    _arrays = ("coef", "mean", "scale", "words", "idf")
    _scalars = ("of_texts", "intercept")

    def __init__(self, l2: float = 0.1, most_words: int = 20_000, ngrams: int = 1) -> None:
        self.l2 = l2
        self.most_words = most_words
        self.ngrams = ngrams


MEMBER = TfidfProbe
REGRESSION_MEMBER = TfidfRegressorProbe
