"""Base classes of probes that read the text itself and no hidden state: a linear probe on features of strings."""

from __future__ import annotations

import sys
import unicodedata
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.sparse import csr_matrix
from scipy.special import log_softmax
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import Ridge
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, check_is_fitted, column_or_1d, validate_data

from probing.contracts.probe import Probe
from probing.errors import BadParameter
from probing.probes._estimator import FLOATS, ClassifierProbe, RegressorProbe
from probing.probes._rows import HeldRows, moments, standardise
from probing.probes._softmax import Stop, solve

_ITERATIONS = 300
_PENALTIES = (10.0, 1.0, 0.1, 0.01, 0.001)  # tried in this order, as multiples of the default
_LEAST_DEV = 10  # rows of dev below which nothing is chosen


class TextProbe(Probe):
    """Base of probes of texts. X is strings, `(N, 1)` or `(N,)`; if X is numeric, it is taken as ready-made features.

    Dense features are standardised; sparse ones (word counts) are used as they are.

    If `l2` is None, the penalty is chosen on dev rows whose text is not in train, separately for each set of labels:
    from ten times `default_l2` it is divided by ten, down to a thousandth of `default_l2`, as long as log loss (of
    numbers: squared error) on dev becomes less. With fewer than ten such rows it is `default_l2`.

    Attributes:
        l2_: the penalty of the fit; not saved.
    """

    input: ClassVar[str] = "text"
    input_as_text: ClassVar[bool] = True

    default_l2: ClassVar[float] = 1.0

    l2: float | None
    l2_: float
    coef_: NDArray[np.float64]
    mean_: NDArray[np.float64]
    scale_: NDArray[np.float64]
    of_texts_: bool
    n_features_in_: int
    converged_: bool

    @abstractmethod
    def _learn(self, texts: list[str]) -> None:
        """Set what `_features` needs, from training texts."""

    @abstractmethod
    def _features(self, texts: list[str]) -> Any:
        """Return the features of texts, `(N, F)`, dense or sparse."""

    def _training_features(self, X: ArrayLike) -> Any:
        """Return the features of training rows, and set `mean_` and `scale_`."""
        if self.l2 is not None and not self.l2 > 0:
            raise BadParameter("l2 must be above 0", needed="a number above 0", found=repr(self.l2))
        texts = as_texts(X)
        self.of_texts_ = texts is not None
        self._learn(texts or [])
        if texts is None:
            raw: Any = validate_data(self, X, dtype=FLOATS)
        else:
            self.n_features_in_, raw = 1, self._features(texts)
        self.mean_, self.scale_ = moments(raw) if isinstance(raw, np.ndarray) else (np.zeros(1), np.ones(1))
        return self._scaled(raw)

    def _read(self, X: ArrayLike) -> Any:
        """Return the features of rows to predict for."""
        check_is_fitted(self)
        texts = as_texts(X)
        if self.of_texts_ and texts is None:
            raise ValueError(f"{type(self).__name__} was fitted on texts, and X has none")
        return self._scaled(
            validate_data(self, X, dtype=FLOATS, reset=False) if texts is None else self._features(texts)
        )

    def _held_out(self, X: ArrayLike, dev: Any) -> tuple[Any, NDArray[np.int64]]:
        """Return the features of those dev rows whose text is not in train, and the indices of these rows; no rows if
        the penalty is given, or if they are too few.
        """
        none = np.zeros(0, np.int64)
        if dev is None or self.l2 is not None:
            return None, none
        known, texts = set(as_texts(X) or ()), as_texts(dev[0])
        n_rows = len(np.asarray(dev[0]))
        within = np.array([i for i in range(n_rows) if texts is None or texts[i] not in known], np.int64)
        return (self._read(dev[0])[within], within) if len(within) >= _LEAST_DEV else (None, none)

    def _penalties(self, held_out: Any) -> list[float]:
        """Return the penalties to try, in order."""
        if self.l2 is not None:
            return [self.l2]
        return [self.default_l2 * share for share in _PENALTIES] if held_out is not None else [self.default_l2]

    def _scaled(self, raw: Any) -> Any:
        return standardise(raw, self.mean_, self.scale_).astype(np.float64) if isinstance(raw, np.ndarray) else raw


class WordCounts(TextProbe):
    """Counts the words of texts, in lower case and composed form (NFC). A word is a run of letters with their marks
    (such as vowel signs), digits and underscores, or any other single character that is not white space.

    Only the commonest `most_words` words of the training texts are counted.
    """

    most_words: int
    ngrams: int
    words_: NDArray[np.str_]

    def _learn(self, texts: list[str]) -> None:
        for name in ("most_words", "ngrams"):
            if getattr(self, name) < 1:
                raise BadParameter(f"{name} must be at least 1", needed="at least 1", found=str(getattr(self, name)))
        try:
            known = self._vectoriser(max_features=self.most_words).fit(texts).get_feature_names_out()
        except ValueError:  # no word in any text
            known = np.array([" "])
        self.words_ = np.array(known, dtype=np.str_)

    def _features(self, texts: list[str]) -> csr_matrix:
        places = {word: place for place, word in enumerate(self.words_.tolist())}
        return csr_matrix(self._vectoriser(vocabulary=places).transform(texts))

    def _vectoriser(self, **options: Any) -> CountVectorizer:
        return CountVectorizer(
            preprocessor=_lower, token_pattern=_word(), ngram_range=(1, self.ngrams), dtype=np.float64, **options
        )


def _lower(text: str) -> str:
    return unicodedata.normalize("NFC", text).lower()


@cache
def _word() -> str:
    """Return the regular expression of a word: `\\w`, and the marks (Unicode's M) and joiners of letters."""
    marks = [c for c in map(chr, range(0x300, sys.maxunicode + 1)) if unicodedata.category(c)[0] == "M"]
    within = rf"\w\u200c\u200d{''.join(marks)}"
    return rf"\w[{within}]*|[^\w\s]"


class TextClassifier(TextProbe, ClassifierProbe):
    """Softmax regression on features of texts, with the penalty of `LogisticRegression(C=1/l2)`; it does not depend on
    a seed.
    """

    intercept_: NDArray[np.float64]

    def fit(self, X: ArrayLike, y: ArrayLike, *, dev: tuple[ArrayLike, ArrayLike] | None = None) -> Self:
        """Fit on `(N, 1)` texts and `(N,)` labels; the penalty is chosen on `dev` if `l2` is None."""
        features = self._training_features(X)
        targets = column_or_1d(y, warn=True)
        check_consistent_length(features, targets)
        check_classification_targets(targets)
        self._finish(X, features, [targets], [self], None if dev is None else (dev[0], [dev[1]]))
        return self

    def fit_many(
        self,
        X: Any,
        targets: Sequence[NDArray[Any]],
        seeds: Sequence[int],
        *,
        dev: tuple[NDArray[Any], Sequence[NDArray[Any]]] | None = None,
    ) -> list[list[Self]]:
        """Fit every label set on the same features, which are computed once; a single fit serves every seed. See
        `Probe.fit_many`.
        """
        first = self.with_seed(0)
        features = first._training_features(X)
        fitted = [self.with_seed(0) for _ in targets]
        for probe in fitted:
            probe.__dict__.update(first.__dict__)
        self._finish(X, features, list(targets), fitted, dev)
        return [[self._copied(probe, seed) for seed in seeds] for probe in fitted]

    def predict_log_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the natural log probabilities, `(N, K)`."""
        return np.asarray(log_softmax(self._read(X) @ self.coef_ + self.intercept_, axis=1))

    def _finish(
        self, X: Any, features: Any, targets: list[NDArray[Any]], probes: Sequence[TextClassifier], dev: Any
    ) -> None:
        """Fit every label set, with the first penalty after which log loss on dev does not become less."""
        held_out, within = probes[0]._held_out(X, dev)
        turned = None if isinstance(features, np.ndarray) else Counts.of(features)
        for m, (probe, y) in enumerate(zip(probes, targets, strict=True)):
            probe.classes_, codes = self._coded(np.asarray(y))
            known = None if held_out is None else _known(probe.classes_, np.asarray(dev[1][m])[within])
            least, start = np.inf, None
            for penalty in self._penalties(held_out if known and known[1].any() else None):
                fit = _dense(features, codes, penalty) if turned is None else _fit_sparse(turned, codes, penalty, start)
                start, loss = fit[:2], _loss(fit, held_out, known)
                if not loss < least - _GAINED:
                    break
                least, probe.l2_ = loss, penalty
                probe.coef_, probe.intercept_, probe.converged_ = fit


class TextRegressor(TextProbe, RegressorProbe):
    """Ridge regression on features of texts, the same as `Ridge(alpha=l2)`."""

    intercept_: float

    def fit(self, X: ArrayLike, y: ArrayLike, *, dev: tuple[ArrayLike, ArrayLike] | None = None) -> Self:
        """Fit on `(N, 1)` texts and `(N,)` targets; the penalty is chosen on `dev` if `l2` is None."""
        features = self._training_features(X)
        targets = np.asarray(column_or_1d(y, warn=True), dtype=np.float64)
        check_consistent_length(features, targets)
        if not np.isfinite(targets).all():
            raise ValueError("Input y contains NaN or infinity")
        held_out, within = self._held_out(X, dev)
        wanted = None if dev is None else np.asarray(dev[1], np.float64)[within]
        self._settle(features, targets, held_out, wanted)
        return self

    def _settle(self, features: Any, targets: NDArray[np.float64], held_out: Any, wanted: Any) -> None:
        """Fit with the first penalty after which the squared error on held-out rows does not become less."""
        solver = "auto" if isinstance(features, np.ndarray) else "sparse_cg"
        least = np.inf
        for penalty in self._penalties(held_out):
            ridge = Ridge(alpha=penalty, solver=solver, tol=1e-5).fit(features, targets)
            error = 0.0 if held_out is None else float(((ridge.predict(held_out) - wanted) ** 2).mean())
            if not error < least * (1 - _GAINED):
                break
            least, self.l2_ = error, penalty
            self.coef_, self.intercept_ = np.asarray(ridge.coef_, np.float64), float(ridge.intercept_)
        self.converged_ = True

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the predicted values, `(N,)` float64."""
        return np.asarray(self._read(X) @ self.coef_ + self.intercept_)


def as_texts(X: Any) -> list[str] | None:
    """Return the strings of texts `(N, 1)` or `(N,)` as a list; None if X is not strings of such a shape."""
    array = np.asarray(X) if isinstance(X, np.ndarray | list | tuple) else X
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "UO" or array.size == 0:
        return None
    if array.ndim > 2 or array.ndim == 0 or (array.ndim == 2 and array.shape[1] != 1):
        return None
    values = array.reshape(-1).tolist()
    return values if all(isinstance(value, str) for value in values) else None


_Fit = tuple[NDArray[np.float64], NDArray[np.float64], bool]  # weights, intercepts, whether the solver converged
_Known = tuple[NDArray[np.int64], NDArray[np.bool_]]  # codes of dev labels, and which of them occur in train
_GAINED = 1e-6  # a smaller change of the error on dev is none


def _known(classes: NDArray[Any], y: NDArray[Any]) -> _Known:
    codes = np.minimum(np.searchsorted(classes, y), len(classes) - 1)
    return codes, np.asarray(classes[codes] == y)


def _loss(fit: _Fit, held_out: Any, known: _Known | None) -> float:
    """Return the mean log loss (nats) of the dev rows whose label occurs in train; 0 if there are none."""
    if known is None or not known[1].any():
        return 0.0
    codes, among = known
    logs = log_softmax(held_out @ fit[0] + fit[1], axis=1)
    return -float(logs[np.arange(len(codes)), codes][among].mean())


def _dense(rows: NDArray[np.float64], codes: NDArray[np.int64], l2: float) -> _Fit:
    k = int(codes.max()) + 1
    penalty = (2.0 if k == 2 else 1.0) * l2 / len(rows)
    held = HeldRows(torch.from_numpy(rows))
    (found,) = solve(held, [torch.from_numpy(codes)], [k], [penalty], Stop(1e-4, _ITERATIONS))
    return found.weights.numpy(), found.intercept.numpy(), found.converged


@dataclass(frozen=True)
class Counts:
    """Holds sparse features `(N, F)`, their transpose, and the mean square of each, `(F,)`."""

    rows: csr_matrix
    turned: csr_matrix
    squares: NDArray[np.float64]

    @classmethod
    def of(cls, rows: csr_matrix) -> Counts:
        """Return the features with what every fit on them needs."""
        return cls(rows, rows.T.tocsr(), np.asarray(rows.multiply(rows).mean(axis=0)).reshape(-1))


def _fit_sparse(features: Counts, y: NDArray[np.int64], l2: float, start: Any = None) -> _Fit:
    """Fit by L-BFGS on weights scaled by the curvature of their word: common words bend the loss far more than rare
    ones. `start` holds the weights and intercepts to start from.
    """
    rows, turned, squares = features.rows, features.turned, features.squares
    n, k = rows.shape[0], int(y.max()) + 1
    penalty = (2.0 if k == 2 else 1.0) * l2 / n
    scale = np.append(1 / np.sqrt(2 / k * squares + penalty), np.sqrt(k / 2))[:, None]
    places = np.arange(n)

    def objective(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        W = flat.reshape(-1, k) * scale
        logs = log_softmax(rows @ W[:-1] + W[-1], axis=1)
        loss = -float(logs[places, y].mean()) + 0.5 * penalty * float((W[:-1] ** 2).sum())
        residual = np.exp(logs)
        residual[places, y] -= 1
        G = np.vstack([turned @ residual / n + penalty * W[:-1], residual.mean(axis=0)])
        return loss, (G * scale).reshape(-1)

    options = {"maxiter": _ITERATIONS, "ftol": 1e-5, "gtol": 1e-6}
    first = np.zeros(len(scale) * k) if start is None else (np.vstack(start) / scale).reshape(-1)
    found = minimize(objective, first, jac=True, method="L-BFGS-B", options=options)
    W = found.x.reshape(-1, k) * scale
    W = W - W.mean(axis=1, keepdims=True)
    return W[:-1], W[-1], bool(found.nit < _ITERATIONS)
