"""Predicts labels of sentences from their characters as they are written, without a model: a baseline."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from probing.errors import BadParameter
from probing.probes._texts import TextClassifier, TextProbe, TextRegressor

_RUN = re.compile(r"\s+|\S+")
_EDGE, _START, _END, _SHAPE = "\x1f", "\x02", "\x03", "\x04"  # marks: edge of a word, ends of the text, shape


class _CharacterNgrams(TextProbe):
    """Counts the n-grams of characters of texts, in upper and lower case and with white space as they are.

    An n-gram lies within a word, whose two edges count as characters, or within white space; at the edges, one more
    character is read. The first and the last character of the text are counted apart, too. No n-gram crosses from word
    to word, so the order of words is not read. The shape of each word is counted beside them: its runs of capitals,
    other letters and digits (`Aa9`).

    Of what at least two training texts have, the commonest `most_ngrams` are counted.
    """

    most_ngrams: int
    longest: int
    ngrams_: NDArray[np.str_]

    def _learn(self, texts: list[str]) -> None:
        for name in ("most_ngrams", "longest"):
            if getattr(self, name) < 1:
                raise BadParameter(f"{name} must be at least 1", needed="at least 1", found=str(getattr(self, name)))
        places: dict[str, int] = {}
        found = self._counted(texts, places, is_new=True)
        having = np.bincount(found.indices, minlength=len(places))
        common = np.flatnonzero(having >= min(2, len(texts)))
        common = common[np.argsort(-having[common], kind="stable")[: self.most_ngrams]]
        names = list(places)
        self.ngrams_ = np.array(sorted(names[place] for place in common.tolist()) or [_EDGE], dtype=np.str_)

    def _features(self, texts: list[str]) -> csr_matrix:
        return self._counted(texts, {ngram: place for place, ngram in enumerate(self.ngrams_.tolist())})

    def _counted(self, texts: list[str], places: dict[str, int], *, is_new: bool = False) -> csr_matrix:
        """Return counts `(N, F)` of the n-grams that have a place; if `is_new`, every n-gram is given one. Each
        different run of characters is taken apart once.
        """
        runs: dict[str, int] = {}
        of_text = [[runs.setdefault(run, len(runs)) for run in _runs(text)] for text in texts]
        of_run = []
        for run in runs:
            ngrams = _ngrams(run, self.longest)
            if is_new:
                of_run.append([places.setdefault(ngram, len(places)) for ngram in ngrams])
            else:
                of_run.append([places[ngram] for ngram in ngrams if ngram in places])
        return _sparse(of_text, len(runs)) @ _sparse(of_run, max(len(places), 1))


def _runs(text: str) -> list[str]:
    """Return the words, with their edges, and the runs of white space of a text, and its first and last character."""
    runs = [run if run[0].isspace() else _EDGE + run + _EDGE for run in _RUN.findall(text)]
    return [*runs, _START + text[:1], text[-1:] + _END]


def _ngrams(run: str, longest: int) -> Iterator[str]:
    """Yield the n-grams of a run of characters, and its shape."""
    if run[0] == _START:
        yield run
        yield _START + _shape(run[1:])
    elif run[-1] == _END:
        yield run
    else:
        for n in range(1, longest + 1):
            yield from (run[i : i + n] for i in range(len(run) - n + 1) if n > 1 or run[i] != _EDGE)
        if run[0] == _EDGE:
            yield _shape(run[1:-1])
            if len(run) > longest + 1:
                yield from (run[: longest + 1], run[-longest - 1 :])


def _shape(word: str) -> str:
    """Return the kinds of characters of a word: capitals, other letters, digits and others, neighbours of one kind as
    one.
    """
    kinds = ("A" if c.isupper() or c.istitle() else "a" if c.isalpha() else "9" if c.isdigit() else "." for c in word)
    return _SHAPE + "".join(kind for kind, _ in groupby(kinds))


def _sparse(rows: list[list[int]], n_columns: int) -> csr_matrix:
    """Return the counts of the columns that each row lists."""
    ends = np.append(0, np.cumsum([len(row) for row in rows], dtype=np.int64))
    indices = np.fromiter((column for row in rows for column in row), np.int64, int(ends[-1]))
    return csr_matrix((np.ones(len(indices)), indices, ends), shape=(len(rows), n_columns))


class CharacterNgramsProbe(_CharacterNgrams, TextClassifier):
    """Fits softmax regression on the counts of n-grams of characters.

    It reads what words in lower case do not tell: capitals, white space, the beginnings and ends of words, and single
    characters of scripts without spaces between words.

    Args:
        l2: penalty as in `linear`, above 0; None: chosen on dev, or 1 without dev rows.
        most_ngrams: number of n-grams that are counted, the commonest of the training texts.
        longest: number of characters of the longest n-grams; at the edges of a word, it is one more.
    """

    _arrays = ("classes", "coef", "intercept", "mean", "scale", "ngrams")
    _scalars = ("of_texts",)

    def __init__(self, l2: float | None = None, most_ngrams: int = 20_000, longest: int = 2) -> None:
        self.l2 = l2
        self.most_ngrams = most_ngrams
        self.longest = longest


class CharacterNgramsRegressorProbe(_CharacterNgrams, TextRegressor):
    """Fits ridge regression on the same features as `CharacterNgramsProbe`, with the same arguments."""

    _arrays = ("coef", "mean", "scale", "ngrams")
    _scalars = ("of_texts", "intercept")

    def __init__(self, l2: float | None = None, most_ngrams: int = 20_000, longest: int = 2) -> None:
        self.l2 = l2
        self.most_ngrams = most_ngrams
        self.longest = longest


MEMBER = CharacterNgramsProbe
REGRESSION_MEMBER = CharacterNgramsRegressorProbe
