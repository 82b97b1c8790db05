"""The words of the text, in whatever order: a baseline for labels of sentences and prompts."""

from __future__ import annotations

from probing.probes._texts import TextClassifier, TextRegressor, WordCounts


class BagOfWordsProbe(WordCounts, TextClassifier):
    """Softmax regression on the counts of words.

    A label that this reads needs no model: a single word may tell it. What a probe gains over it is order, context and
    what the model knows of words it saw elsewhere.

    Args:
        l2: penalty, as of `linear`; above 0.
        most_words: the commonest words of the training texts that are counted.
        ngrams: count runs of up to this many words too.
    """

    _arrays = ("classes", "coef", "intercept", "mean", "scale", "words")
    _scalars = ("of_texts",)

    def __init__(self, l2: float = 1.0, most_words: int = 20_000, ngrams: int = 1) -> None:
        self.l2 = l2
        self.most_words = most_words
        self.ngrams = ngrams


class BagOfWordsRegressorProbe(WordCounts, TextRegressor):
    """Ridge regression on the same features. See `BagOfWordsProbe`."""

    _arrays = ("coef", "mean", "scale", "words")
    _scalars = ("of_texts", "intercept")

    def __init__(self, l2: float = 1.0, most_words: int = 20_000, ngrams: int = 1) -> None:
        self.l2 = l2
        self.most_words = most_words
        self.ngrams = ngrams


MEMBER = BagOfWordsProbe
REGRESSION_MEMBER = BagOfWordsRegressorProbe
