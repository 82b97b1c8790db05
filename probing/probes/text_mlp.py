"""Trains a multi-layer perceptron on words and characters of texts, without a model: a baseline that is not linear."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted

from probing.errors import BadParameter
from probing.probes._estimator import ClassifierProbe, FittedState, RegressorProbe
from probing.probes._texts import as_texts
from probing.probes.bag_of_words import BagOfWordsProbe
from probing.probes.character_ngrams import CharacterNgramsProbe
from probing.probes.mlp import MLPProbe, MLPRegressorProbe

_LEAST_DEV = 10  # dev rows whose text is not in train below which training is stopped on all of dev
_AT_ONCE = 8192  # texts whose features are made at once when predicting
Ints = NDArray[np.int64]


class _TextMLP(FittedState):
    """Trains a probe `mlp` on counts of words and n-grams, which are the features of texts; X is strings, `(N, 1)` or
    `(N,)`, or numbers, which are taken as ready-made features.
    """

    input: ClassVar[str] = "text"
    input_as_text: ClassVar[bool] = True
    is_linear: ClassVar[bool] = False
    _network_class: ClassVar[type[MLPProbe] | type[MLPRegressorProbe]]

    network_: MLPProbe | MLPRegressorProbe
    of_texts_: bool
    words_: NDArray[np.str_]
    ngrams_: NDArray[np.str_]

    def __init__(
        self, hidden: int = 64, most_words: int = 300, most_ngrams: int = 300, most_texts: int = 50_000
    ) -> None:
        self.hidden = hidden
        self.most_words = most_words
        self.most_ngrams = most_ngrams
        self.most_texts = most_texts

    def fit(self, X: ArrayLike, y: ArrayLike, *, dev: tuple[ArrayLike, ArrayLike] | None = None) -> Self:
        """Fit on `(N, 1)` texts and `(N,)` labels or numbers. Training is stopped on those rows of `dev` whose text is
        not in train; without `dev`, on a tenth of the rows.
        """
        if as_texts(X) is None:
            self._learn([])
            self.of_texts_ = False
            return self._adopt(self._network().fit(X, y, dev=dev))
        held: Any = None if dev is None else (dev[0], [np.asarray(dev[1])])
        fitted = self.fit_many(X, [np.asarray(y)], [0], dev=held)[0][0]
        self.__dict__.update({name: value for name, value in vars(fitted).items() if name.endswith("_")})
        return self

    def fit_many(self, X: Any, targets: Sequence[NDArray[Any]], seeds: Sequence[int], *, dev: Any = None) -> Any:
        """Train the networks of all label sets at once, on the same features; one serves every seed. See
        `Probe.fit_many`.
        """
        texts = as_texts(X)
        if texts is None:
            return [[self.with_seed(0).fit(X, y, dev=dev and (dev[0], dev[1][m]))] for m, y in enumerate(targets)]
        rows = self._chosen(len(texts), targets)
        learned = self.with_seed(0)
        learned._learn([texts[i] for i in rows.tolist()])
        chosen = [np.asarray(y)[rows] for y in targets]
        held = None if dev is None else learned._held_out(set(texts), as_texts(dev[0]) or [], dev[1], chosen)
        features = learned._features([texts[i] for i in rows.tolist()])
        fits = []
        for (network,) in self._network().fit_many(features, chosen, [0], dev=held):
            probe = self.with_seed(0)
            probe.words_, probe.ngrams_, probe.of_texts_ = learned.words_, learned.ngrams_, True
            fits.append([probe._adopt(network)] * len(seeds))
        return fits

    def state(self) -> dict[str, NDArray[Any]]:
        """Return the fitted arrays by name; weights and biases by layer."""
        check_is_fitted(self)
        own = {name: np.asarray(getattr(self, name + "_")) for name in ("words", "ngrams", "of_texts", "n_features_in")}
        return self.network_.state() | own

    def with_state(self, state: dict[str, NDArray[Any]]) -> Self:
        """Set fitted attributes from `state()` and return self."""
        self.words_, self.ngrams_ = np.asarray(state["words"]), np.asarray(state["ngrams"])
        self.of_texts_ = bool(np.asarray(state["of_texts"]).item())
        width = np.asarray(len(state["mean"]))
        return self._adopt(self._network().with_state(state | {"n_features_in": width}))

    def _network(self) -> Any:
        return self._network_class(hidden=self.hidden, random_state=0)

    def _adopt(self, network: Any) -> Self:
        self.network_, self.converged_ = network, bool(getattr(network, "converged_", True))
        self.n_features_in_ = 1 if self.of_texts_ else network.n_features_in_
        for name in ("classes_", "feature_names_in_"):
            if hasattr(network, name):
                setattr(self, name, getattr(network, name))
        return self

    def _chosen(self, count: int, targets: Sequence[NDArray[Any]]) -> Ints:
        """Return the indices of the texts to train on: all, or `most_texts` evenly spread, and one of each class."""
        if self.most_texts < 1:
            raise BadParameter("most_texts must be at least 1", needed="at least 1", found=str(self.most_texts))
        rows = np.linspace(0, count - 1, min(self.most_texts, count)).astype(np.int64)
        firsts = [np.unique(y, return_index=True)[1] for y in targets] if "classes" in self.kinds else []
        return np.unique(np.concatenate([rows, *firsts])).astype(np.int64)

    def _learn(self, texts: list[str]) -> None:
        """Set the words and n-grams that are counted, the commonest of training texts."""
        words, ngrams = BagOfWordsProbe(most_words=self.most_words), CharacterNgramsProbe(most_ngrams=self.most_ngrams)
        words._learn(texts)
        ngrams._learn(texts)
        self.words_, self.ngrams_, self.of_texts_ = words.words_, ngrams.ngrams_, True

    def _features(self, texts: list[str]) -> NDArray[np.float32]:
        words, ngrams = BagOfWordsProbe(), CharacterNgramsProbe()
        words.words_, ngrams.ngrams_ = self.words_, self.ngrams_
        return np.hstack([part._features(texts).astype(np.float32).toarray() for part in (words, ngrams)])

    def _held_out(
        self, known: set[str], texts: list[str], labels: Sequence[Any], targets: Sequence[NDArray[Any]]
    ) -> tuple[NDArray[np.float32], list[NDArray[Any]]]:
        """Return features and labels of the dev rows whose text is not among `known`; of all, if these are few or have
        no label of train.
        """
        within = np.array([i for i, text in enumerate(texts) if text not in known], np.int64)
        parts = [np.asarray(y)[within] for y in labels]
        pairs = zip(parts, targets, strict=True) if "classes" in self.kinds else ()
        if len(within) < _LEAST_DEV or not all(np.isin(y, target).any() for y, target in pairs):
            within, parts = np.arange(len(texts)), [np.asarray(y) for y in labels]
        return self._features([texts[i] for i in within.tolist()]), parts

    def _read(self, X: ArrayLike, method: str) -> NDArray[Any]:
        """Return what a method of the network gives for the rows of X."""
        check_is_fitted(self)
        texts = as_texts(X)
        ask = getattr(self.network_, method)
        if texts is None:
            if self.of_texts_:
                raise ValueError(f"{type(self).__name__} was fitted on texts, and X has none")
            return np.asarray(ask(X))
        starts = range(0, len(texts), _AT_ONCE)
        return np.concatenate([ask(self._features(texts[start : start + _AT_ONCE])) for start in starts])


class TextMLPProbe(_TextMLP, ClassifierProbe):
    """Trains the network of `mlp` on the counts of the commonest words of texts and of their commonest n-grams of
    characters (see `bag_of_words` and `character_ngrams`), standardised.

    Training fits it beside every probe that is not linear: what such a probe reads from states it may read from words
    alone, such as whether just one of two words is there. Combinations of words that are not among the commonest are
    unknown to it. It does not depend on a seed.

    Args:
        hidden: width of the hidden layer.
        most_words: number of words that are counted, the commonest of the training texts.
        most_ngrams: number of n-grams that are counted, the commonest.
        most_texts: number of training texts that are learned from, evenly spread.
    """

    _network_class = MLPProbe

    def predict_log_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the natural log probabilities, `(N, K)`."""
        return self._read(X, "predict_log_proba")


class TextMLPRegressorProbe(_TextMLP, RegressorProbe):
    """Trains the network of `TextMLPProbe` on standardised targets with mean squared error, with the same arguments."""

    _network_class = MLPRegressorProbe

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the predicted values, `(N,)` float64."""
        return self._read(X, "predict")


MEMBER = TextMLPProbe
REGRESSION_MEMBER = TextMLPRegressorProbe
