"""Predicts labels of sentences from the training texts that are most alike, without a model: a baseline."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix
from sklearn.preprocessing import normalize

from probing.errors import BadParameter
from probing.probes._texts import TextClassifier, TextRegressor
from probing.probes.tfidf import WeightedWords

# Characters of scripts that put no spaces between words: Thai, Lao, Myanmar, Khmer, kana and Han.
_UNSPACED = re.compile("[\u0e01-\u0eff\u1000-\u109f\u1780-\u17ff\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_COUNTS = (1, 3, 10, 30)  # numbers of neighbours to choose from
_COUNT = 3  # without rows to choose on
_AT_ONCE = 512  # texts that are compared at once
_KEPT = 4  # searches that are kept


class _Search:
    """Finds the nearest of fixed rows of unit length by their cosine; the last results are kept, so that label sets
    and seeds share them.

    Copies of a text are equally near: the first stands first, which scikit-learn's search leaves open.
    """

    def __init__(self, rows: csr_matrix) -> None:
        self.rows = rows
        self._turned = rows.T.tocsr()
        self._found: dict[str, NDArray[np.int64]] = {}

    def nearest(self, queries: csr_matrix) -> NDArray[np.int64]:
        """Return the indices of the nearest rows, nearest first, `(Q, min(30, N))`; among equal ones, the first."""
        state = hashlib.sha256(queries.data.tobytes())
        state.update(queries.indices.tobytes() + queries.indptr.tobytes())
        key = state.hexdigest()
        if key not in self._found:
            while len(self._found) >= _KEPT:
                self._found.pop(next(iter(self._found)))
            parts = [self._of(queries[at : at + _AT_ONCE]) for at in range(0, queries.shape[0], _AT_ONCE)]
            self._found[key] = np.concatenate(parts)
        return self._found[key]

    def _of(self, queries: csr_matrix) -> NDArray[np.int64]:
        # Rounded, so that equal texts are equally near; then the order is by cosine and, among equals, by place.
        cosines = np.round((queries @ self._turned).toarray(), 9)
        count = min(max(_COUNTS), cosines.shape[1])
        least = np.partition(cosines, -count, axis=1)[:, -count]
        found = np.empty((len(cosines), count), np.int64)
        for i, (row, bound) in enumerate(zip(cosines, least, strict=True)):
            among = np.flatnonzero(row >= bound)
            found[i] = among[np.argsort(-row[among], kind="stable")[:count]]
        return found


class _NearestText(WeightedWords):
    """Keeps training texts as their words, weighted by TF-IDF; of scripts without spaces, every character is a word."""

    k: int | None
    most_texts: int
    is_linear = False
    l2: float | None = None  # of the base class; nothing is penalised
    l2_ = 0.0
    ngrams: int = 1

    k_: int
    values_: NDArray[Any]
    weights_: NDArray[np.float64]
    columns_: NDArray[np.int64]
    ends_: NDArray[np.int64]
    width_: int
    _search: _Search

    def _learn(self, texts: list[str]) -> None:
        for name in ("k", "most_texts"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise BadParameter(f"{name} must be at least 1", needed="at least 1", found=str(getattr(self, name)))
        super()._learn(_apart(texts))

    def _features(self, texts: list[str]) -> csr_matrix:
        return super()._features(_apart(texts))

    def _keep(self, features: Any, targets: Sequence[NDArray[Any]], probes: Sequence[_NearestText], dev: Any) -> None:
        """Keep the rows for every label set, and choose how many neighbours each asks, by its error on `dev`, a pair
        of features and targets of each set.
        """
        rows = _unit(features)
        chosen = np.unique(np.linspace(0, rows.shape[0] - 1, min(self.most_texts, rows.shape[0])).astype(np.int64))
        search = _Search(rows[chosen])
        for m, (probe, values) in enumerate(zip(probes, targets, strict=True)):
            probe._search, probe.values_ = search, values[chosen]
            probe.weights_, probe.width_ = search.rows.data, search.rows.shape[1]
            probe.columns_, probe.ends_ = search.rows.indices.astype(np.int64), search.rows.indptr.astype(np.int64)
            probe.converged_, probe.k_ = True, self.k or _COUNT
            if self.k is None and dev is not None:
                near = search.nearest(_unit(dev[0]))
                counts = [k for k in _COUNTS if k <= near.shape[1]]
                probe.k_ = min(counts, key=lambda k: probe._error(near[:, :k], dev[1][m]))

    def _error(self, near: NDArray[np.int64], wanted: Any) -> float:
        raise NotImplementedError

    def _near(self, X: ArrayLike) -> NDArray[Any]:
        """Return the values of the nearest training texts, `(N, k)`."""
        queries = _unit(self._read(X))
        if "_search" not in vars(self):  # of a probe that was loaded
            kept = (self.weights_, self.columns_, self.ends_)
            self._search = _Search(csr_matrix(kept, shape=(len(self.values_), self.width_)))
        return np.asarray(self.values_[self._search.nearest(queries)[:, : self.k_]])


class NearestTextProbe(_NearestText, TextClassifier):
    """Predicts the label that most of the k training texts have whose words are most alike.

    What it reads, a probe of states can know by recognising a text that differs from one of train by a word. Texts are
    compared by the cosine of their words, as `tfidf` weighs them; in scripts without spaces, by single characters. The
    probability of a class is `(n + 1) / (k + K)`, where n of the neighbours are of this class and K is the number of
    classes; classes with equally many neighbours are told apart by the nearest.

    Args:
        k: number of neighbours; None: 1, 3, 10 or 30, whichever has the least log loss on dev rows whose text is not in
            train, or 3 with fewer than ten such rows.
        most_texts: number of training texts that are kept, evenly spread.
        most_words: number of words that are compared, the commonest of the training texts.
    """

    _arrays = ("classes", "mean", "scale", "words", "idf", "values", "weights", "columns", "ends")
    _scalars = ("of_texts", "k", "width")

    def __init__(self, k: int | None = None, most_texts: int = 5_000, most_words: int = 20_000) -> None:
        self.k = k
        self.most_texts = most_texts
        self.most_words = most_words

    def predict_log_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the natural log probabilities, `(N, K)`."""
        return _log_shares(self._near(X), len(self.classes_))

    def _finish(
        self, X: Any, features: Any, targets: list[NDArray[Any]], probes: Sequence[TextClassifier], dev: Any
    ) -> None:
        held_out, within = probes[0]._held_out(X, dev)
        codes = []
        for probe, y in zip(probes, targets, strict=True):
            probe.classes_, of_set = self._coded(np.asarray(y))
            codes.append(of_set)
        wanted = None if held_out is None else (held_out, [np.asarray(y)[within] for y in dev[1]])
        self._keep(features, codes, [probe for probe in probes if isinstance(probe, _NearestText)], wanted)

    def _error(self, near: NDArray[np.int64], wanted: Any) -> float:
        codes = np.minimum(np.searchsorted(self.classes_, wanted), len(self.classes_) - 1)
        known = np.asarray(self.classes_[codes] == wanted)
        logs = _log_shares(self.values_[near], len(self.classes_))[np.arange(len(codes)), codes]
        return -float(logs[known].mean()) if known.any() else 0.0


class NearestTextRegressorProbe(_NearestText, TextRegressor):
    """Predicts the mean target of the k training texts whose words are most alike; arguments as of `NearestTextProbe`,
    k by the squared error on dev.
    """

    _arrays = ("mean", "scale", "words", "idf", "values", "weights", "columns", "ends")
    _scalars = ("of_texts", "k", "width")

    def __init__(self, k: int | None = None, most_texts: int = 5_000, most_words: int = 20_000) -> None:
        self.k = k
        self.most_texts = most_texts
        self.most_words = most_words

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the predicted values, `(N,)` float64."""
        return np.asarray(self._near(X).mean(1))

    def _settle(self, features: Any, targets: NDArray[np.float64], held_out: Any, wanted: Any) -> None:
        self._keep(features, [targets], [self], None if held_out is None else (held_out, [wanted]))

    def _error(self, near: NDArray[np.int64], wanted: Any) -> float:
        return float(((self.values_[near].mean(1) - wanted) ** 2).mean())


def _apart(texts: list[str]) -> list[str]:
    """Return texts with spaces around every character of a script without spaces."""
    return [_UNSPACED.sub(r" \g<0> ", text) for text in texts]


def _unit(features: Any) -> csr_matrix:
    """Return features, `(N, F)`, dense or sparse, as rows of length 1; rows of zeros stay."""
    return csr_matrix(normalize(csr_matrix(features)))


def _log_shares(near: NDArray[np.int64], n_classes: int) -> NDArray[np.float64]:
    """Return log probabilities `(N, K)` from the codes of neighbours, `(N, k)`."""
    counts = np.stack([(near == code).sum(1) for code in range(n_classes)], axis=1).astype(np.float64)
    counts[np.arange(len(near)), near[:, 0]] += 1e-6  # among equals, the nearest decides
    return np.asarray(np.log((counts + 1) / (counts.sum(1, keepdims=True) + n_classes)))


MEMBER = NearestTextProbe
REGRESSION_MEMBER = NearestTextRegressorProbe
