"""Predicts labels of sentences from their words, regardless of order and without a model: a baseline."""

from __future__ import annotations

from probing.probes._texts import TextClassifier, TextRegressor, WordCounts


class BagOfWordsProbe(WordCounts, TextClassifier):
    """Fits softmax regression on the counts of words.

    A label that it predicts well can be read off single words, without a model. A gain of a probe of states over this
    baseline is due to word order, to context, and to what the model knows about words from its training.

    Args:
        l2: penalty as in `linear`, above 0; None: chosen on dev, or 1 without dev rows.
        most_words: number of words that are counted, the commonest of the training texts.
        ngrams: longest sequence of words that is counted; 1 means single words only.
    """

    _arrays = ("classes", "coef", "intercept", "mean", "scale", "words")
    _scalars = ("of_texts",)

    def __init__(self, l2: float | None = None, most_words: int = 20_000, ngrams: int = 1) -> None:
        self.l2 = l2
        self.most_words = most_words
        self.ngrams = ngrams


class BagOfWordsRegressorProbe(WordCounts, TextRegressor):
    """Fits ridge regression on the same features as `BagOfWordsProbe`, with the same arguments."""

    _arrays = ("coef", "mean", "scale", "words")
    _scalars = ("of_texts", "intercept")

    def __init__(self, l2: float | None = None, most_words: int = 20_000, ngrams: int = 1) -> None:
        self.l2 = l2
        self.most_words = most_words
        self.ngrams = ngrams


MEMBER = BagOfWordsProbe
REGRESSION_MEMBER = BagOfWordsRegressorProbe
