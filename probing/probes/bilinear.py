"""Fits a bilinear form of two states: the probe of pairs of words."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_softmax
from torch.nn import functional

from probing.errors import DegenerateDesign
from probing.labels import Pairs, RowForm
from probing.probes._descent import (
    Batch,
    DescentSettings,
    Sentences,
    check_choices,
    check_row_form,
    descend,
    halves,
    held_out,
)
from probing.probes._estimator import ClassifierProbe
from probing.probes._rows import moments, standardise
from probing.seeds import generator

_BLOCK = 1 << 16
_FIRST_SCORES = 0.1  # their standard deviation before training


class BilinearProbe(ClassifierProbe):
    """Scores a pair of words (a, b) by s(a, b) = x_aᵀ U x_b + u·x_a + v·x_b + c, where x_a and x_b are their
    standardised states; the matrix U, the vectors u and v and the number c are learned. With a rank limit, U = A Bᵀ.

    It has one such form per class (a single one for two classes) and a softmax over classes. In tasks where exactly one
    of several pairs is right (`head`), the softmax is over the pairs of each word, so that their probabilities of being
    right sum to 1. It is trained by AdamW on batches of whole sentences, halves the learning rate after every epoch
    without a lower dev loss, and takes the weights of the best epoch. Without `dev`, a random tenth of the sentences is
    held out.

    X is `Pairs`, in which each word is projected once, however many pairs it is in; or an array `(N, 2D)`, two states
    side by side (a column of zeros is added to an odd width). Without a rank limit, U has D² numbers per class and
    memorises more.

    Args:
        rank: largest rank of U; None means no limit.
        learning_rate: learning rate of AdamW.
        weight_decay: decoupled weight decay of AdamW.
        batch_words: number of words per step of AdamW; fewer if there would be less than 50 steps per epoch.
        max_epochs: largest number of passes over the rows.
        patience: number of epochs without a lower dev loss after which training stops.
        random_state: seed of the initial weights and of the order of sentences; None means 0.

    Attributes:
        left_: A for each of K classes, `(D, K, r)` with r the rank; without a rank limit U, `(D, K, D)`.
        right_: B for each class, `(D, K, r)`; without a rank limit an empty array.
        linear_: u and v for each class, `(2, D, K)`.
        intercept_: c for each class, `(K,)`.
        converged_: whether training was stopped by `patience`, before `max_epochs`.
        best_epoch_: number of the best epoch, from 1.
        dev_losses_: the dev loss of every epoch.
        mean_: `(D,)` mean of the training states, which standardising subtracts.
        scale_: `(D,)` standard deviations of the training states, by which standardising divides.

    References:
        Hewitt & Liang 2019, Designing and Interpreting Probes with Control Tasks, section 3 (bilinear probes).
    """

    stochastic: ClassVar[bool] = True
    is_linear: ClassVar[bool] = False
    row_forms: ClassVar[tuple[RowForm, ...]] = ("pair", "ends")
    accepts_pairs: ClassVar[bool] = True
    _arrays = ("classes", "left", "right", "linear", "intercept", "mean", "scale")

    left_: NDArray[np.float32]
    right_: NDArray[np.float32]
    linear_: NDArray[np.float32]
    intercept_: NDArray[np.float32]
    mean_: NDArray[np.float64]
    scale_: NDArray[np.float64]

    def __init__(
        self,
        rank: int | None = 64,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.01,
        batch_words: int = 256,
        max_epochs: int = 40,
        patience: int = 3,
        random_state: int | None = None,
    ) -> None:
        self.rank = rank
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.batch_words = batch_words
        self.max_epochs = max_epochs
        self.patience = patience
        self.random_state = random_state

    def fit(
        self, X: ArrayLike | Pairs, y: ArrayLike, *, dev: tuple[ArrayLike | Pairs, ArrayLike] | None = None
    ) -> Self:
        """Fit on N pairs and labels `(N,)`, and return self; pairs of `dev` with labels that do not occur in training
        are left out.

        Raises:
            DegenerateDesign: there are fewer than two classes, no pair of dev can be scored, or among the alternatives
                of a word not exactly one is right.
        """
        recipe = DescentSettings.of(self)
        pairs, codes = self._training_pairs(X, y)
        check_choices(pairs, codes)
        if dev is None:
            rows, dev_rows = held_out(pairs, self.random_state or 0)
            dev_pairs, dev_codes = pairs[dev_rows], codes[dev_rows]
            pairs, codes = pairs[rows], codes[rows]
        else:
            dev_pairs, dev_codes = self._dev_pairs(*dev)
        words = np.unique(pairs.index)
        self.mean_, self.scale_ = moments(pairs.table[words])
        self._train(pairs, codes, dev_pairs, dev_codes, recipe)
        return self

    def predict_log_proba(self, X: ArrayLike | Pairs) -> NDArray[np.float64]:
        """Return the natural log probabilities of K classes for each of the N pairs of X, `(N, K)`; where exactly one
        of several pairs is right, their probabilities of being right sum to 1.
        """
        pairs = self._given_pairs(X)
        scores = self._scores(pairs)
        if len(self.classes_) > 2:
            return np.asarray(log_softmax(scores, axis=1))
        score = scores[:, 0]
        if pairs.choice is not None:
            _, choice = np.unique(pairs.choice, return_inverse=True)
            score = score - _log_sums(score, choice.reshape(-1))
            others = np.log(np.clip(-np.expm1(np.minimum(score, 0.0)), np.finfo(np.float64).tiny, None))
            return np.stack([others, score], axis=1)
        return np.stack([-np.logaddexp(0.0, score), -np.logaddexp(0.0, -score)], axis=1)

    def _training_pairs(self, X: ArrayLike | Pairs, y: ArrayLike) -> tuple[Pairs, NDArray[np.int64]]:
        if isinstance(X, Pairs):
            check_row_form(X, "bilinear")
            self.classes_, codes = self._coded(np.asarray(y))
            self.n_features_in_ = X.shape[1]
            return X, codes
        rows, codes = self._training_rows(X, y)
        return halves(rows), codes

    def _given_pairs(self, X: ArrayLike | Pairs) -> Pairs:
        if not isinstance(X, Pairs):
            return halves(self._rows(X))
        self.state()  # refuses where nothing is fitted
        check_row_form(X, "bilinear")
        if X.shape[1] != self.n_features_in_:
            raise ValueError(f"pairs of {X.shape[1]} features, fitted on {self.n_features_in_}")
        return X

    def _dev_pairs(self, X: ArrayLike | Pairs, y: ArrayLike) -> tuple[Pairs, NDArray[np.int64]]:
        pairs = X if isinstance(X, Pairs) else halves(np.asarray(X, np.float32))
        y = np.asarray(y)
        codes = np.searchsorted(self.classes_, y).clip(0, len(self.classes_) - 1)
        known = np.flatnonzero(self.classes_[codes] == y)
        if not len(known):
            raise DegenerateDesign(
                "no dev row can be scored",
                needed="dev rows whose label occurs in training",
                found="none",
                next_step="check that train and dev share their label column and classes",
            )
        return pairs[known], codes[known].astype(np.int64)

    def _train(
        self, pairs: Pairs, codes: NDArray[np.int64], dev: Pairs, dev_codes: NDArray[np.int64], recipe: DescentSettings
    ) -> None:
        seed = self.random_state or 0
        n_outputs = len(self.classes_) if len(self.classes_) > 2 else 1
        weights = _first_weights(pairs.table.shape[1], n_outputs, self.rank, seed)
        table, dev_table = (torch.from_numpy(standardise(p.table, self.mean_, self.scale_)) for p in (pairs, dev))
        sentences, held = Sentences(pairs), Sentences(dev)
        targets, dev_targets = torch.from_numpy(codes), torch.from_numpy(dev_codes)
        size, all_held = self.batch_words, np.arange(len(held))

        def epoch_of(epoch: int) -> Any:
            return sentences.batches(size, generator(seed, "order", epoch).permutation(len(sentences)))

        def dev_loss() -> float:
            found = [(_losses(weights, dev_table, dev_targets, batch)) for batch in held.batches(size, all_held)]
            return float(sum(x.double().sum() for x in found) / sum(len(x) for x in found))

        end = descend(weights, lambda b: _losses(weights, table, targets, b).mean(), epoch_of, dev_loss, recipe)
        self.left_, self.right_, self.linear_, self.intercept_ = (w.detach().numpy() for w in weights)
        self.converged_, self.best_epoch_, self.dev_losses_ = end.converged, end.best_epoch, end.dev_losses
        self.n_iter_ = len(end.dev_losses)

    def _scores(self, pairs: Pairs) -> NDArray[np.float64]:
        """Return the scores, `(N, K)` float64, with every word projected once."""
        words, index = np.unique(pairs.index, return_inverse=True)
        index = index.reshape(-1, 2)
        x = standardise(pairs.table[words], self.mean_, self.scale_).astype(np.float64)
        k = len(self.intercept_)
        left = np.tensordot(x, self.left_.astype(np.float64), 1)
        right = np.tensordot(x, self.right_.astype(np.float64), 1) if self.right_.size else x[:, None].repeat(k, 1)
        u, v = (x @ one.astype(np.float64) for one in self.linear_)
        scores = np.empty((len(index), k))
        for low in range(0, len(index), _BLOCK):
            a, b = index[low : low + _BLOCK].T
            scores[low : low + _BLOCK] = np.einsum("nkr,nkr->nk", left[a], right[b]) + u[a] + v[b]
        return scores + self.intercept_


def _first_weights(width: int, outputs: int, rank: int | None, seed: int) -> list[torch.Tensor]:
    """Return the first weights: A and B (drawn, since nothing moves where both are 0) or U; u and v; c."""
    random = generator(seed, "weights")
    if rank is None:
        left, right = np.zeros((width, outputs, width)), np.zeros(0)
    else:
        scale = np.sqrt(_FIRST_SCORES / np.sqrt(rank) / width)
        left, right = scale * random.standard_normal((2, width, outputs, rank))
    arrays = [left, right, np.zeros((2, width, outputs)), np.zeros(outputs)]
    return [torch.tensor(array, dtype=torch.float32, requires_grad=True) for array in arrays]


def _losses(weights: list[torch.Tensor], table: torch.Tensor, y: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Return the log loss of every pair of a batch, or of every choice."""
    scores = _batch_scores(weights, table[batch.words], batch)
    targets = y[batch.rows]
    if scores.shape[1] > 1:
        return functional.cross_entropy(scores, targets, reduction="none")
    score = scores[:, 0]
    if batch.choice is None:
        return functional.binary_cross_entropy_with_logits(score, targets.float(), reduction="none")
    zero = torch.zeros(batch.n_choices)
    most = torch.full_like(zero, -torch.inf).scatter_reduce(0, batch.choice, score.detach(), "amax")
    total = zero.index_add(0, batch.choice, torch.exp(score - most[batch.choice]))
    return torch.log(total) + most - zero.index_add(0, batch.choice, score * targets)


def _batch_scores(weights: list[torch.Tensor], x: torch.Tensor, batch: Batch) -> torch.Tensor:
    left, right, linear, intercept = weights
    n, outputs = len(x), len(intercept)
    p = (x @ left.flatten(1)).view(n, outputs, -1)
    q = (x @ right.flatten(1)).view(n, outputs, -1) if right.numel() else x[:, None].expand(n, outputs, -1)
    if outputs == 1 and len(batch.a) > 2 * n:  # one product of all words with all is less work than a sum a pair
        form = (p[:, 0] @ q[:, 0].T).flatten().gather(0, batch.a * n + batch.b)[:, None]
    else:
        form = (p.index_select(0, batch.a) * q.index_select(0, batch.b)).sum(-1)
    u, v = x @ linear[0], x @ linear[1]
    return form + u.index_select(0, batch.a) + v.index_select(0, batch.b) + intercept


def _log_sums(score: NDArray[np.float64], choice: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the log of the sum of exp(score) over the row's choice, `(N,)`."""
    most = np.full(int(choice.max()) + 1, -np.inf)
    np.maximum.at(most, choice, score)
    total = np.bincount(choice, np.exp(score - most[choice]))
    return np.asarray((np.log(total) + most)[choice])


MEMBER = BilinearProbe
