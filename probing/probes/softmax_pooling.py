"""Fits a linear probe of every token, and averages its logits with the largest weights on the highest ones."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_softmax
from torch import Tensor

from probing.errors import BadParameter
from probing.labels import Pieces
from probing.probes._rows import standardise
from probing.probes.attention_pooling import AttentionPoolingProbe


class SoftmaxPoolingProbe(AttentionPoolingProbe):
    """Computes logits `zₜ = xₜW + b` from the state xₜ of every token t; the logit of a class k for a row (a word or
    sentence) is the mean of `zₜₖ` over its tokens, weighted by softmax(zₜₖ / τ).

    The tokens with the highest logits for a class count most: for a large temperature τ this is the linear probe on the
    mean, and as τ goes to 0 only the highest token of each class counts. Unlike `attention_pooling` it learns no query
    vector: the weights follow from the logits. Given an array `(N, D)`, every row has one state.

    With `heads` it is MultiMax instead: each class has H linear scores, and its logit is the sum of each score's
    maximum over the tokens, `bₖ + Σₕ maxₜ xₜ·vₕₖ` with learned vectors vₕₖ. A single token can decide, however long the
    text.

    It is trained as `attention_pooling` is. The loss is not convex: use several seeds.

    Args:
        temperature: τ, above 0; without effect with `heads`.
        heads: number H of linear scores per class; 0 means the softmax-weighted mean.
        learning_rate, weight_decay, batch_size, max_epochs, patience, random_state: see `attention_pooling`.

    Attributes:
        coef_: `(D, K)` weights W on standardised states; with `heads`, `(D, H·K)` vectors v, head by head.
        intercept_: `(K,)` intercepts b.
        converged_: whether training was stopped by `patience`, before `max_epochs`.
        best_epoch_: number of the best epoch, from 1.

    References:
        McKenzie et al. 2025, Detecting High-Stakes Interactions with Activation Probes (softmax aggregation). Kramár et
        al. 2026, Building Production-Ready Probes For Gemini, arXiv 2601.11516 (MultiMax; their network before the
        heads is left out).
    """

    _arrays: ClassVar[tuple[str, ...]] = ("classes", "coef", "intercept", "mean", "scale")

    def __init__(
        self,
        temperature: float = 1.0,
        heads: int = 0,
        learning_rate: float = 1e-2,
        weight_decay: float = 0.0,
        batch_size: int = 256,
        max_epochs: int = 60,
        patience: int = 5,
        random_state: int | None = None,
    ) -> None:
        super().__init__(learning_rate, weight_decay, batch_size, max_epochs, patience, random_state)
        self.temperature = temperature
        self.heads = heads

    def fit(self, X: ArrayLike, y: ArrayLike, *, dev: tuple[ArrayLike, ArrayLike] | None = None) -> Self:
        """Fit on the states of all tokens of N rows (`Pieces`), or one state per row `(N, D)`, and labels `(N,)`;
        return self. `dev` is a pair of held-out states and labels for early stopping.
        """
        if not self.temperature > 0 or self.heads < 0:
            raise BadParameter(
                "a softmax pooling out of range",
                needed="temperature above 0, heads 0 or more",
                found=f"{self.temperature} and {self.heads}",
            )
        return super().fit(X, y, dev=dev)

    def attention(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the weight of each token within its row, averaged over classes (and heads): an array `(R,)` for the R
        tokens of all rows of X.
        """
        return np.asarray(self._pooled(X)[1])

    def predict_log_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the natural log probabilities of K classes for each of the N rows of X, `(N, K)`."""
        return np.asarray(log_softmax(self._pooled(X)[0], axis=1))

    def _initial(self, width: int, source: torch.Generator) -> list[Tensor]:
        columns = len(self.classes_) * max(1, self.heads)
        weights = width**-0.5 * (2 * torch.rand(width, columns, generator=source) - 1)
        return [weights, torch.zeros(len(self.classes_))]

    def _logits(self, parameters: list[Tensor], states: Tensor, home: Tensor, n: int) -> Tensor:
        weights, intercept = parameters
        scores = states @ weights
        place = home[:, None].expand_as(scores)
        if self.heads:
            highest = torch.full((n, scores.shape[1]), -torch.inf).scatter_reduce(0, place, scores, "amax")
            return highest.reshape(n, self.heads, -1).sum(1) + intercept
        scores = scores + intercept
        scaled = scores / self.temperature
        most = torch.full((n, scores.shape[1]), -torch.inf).scatter_reduce(0, place, scaled.detach(), "amax")
        raw = (scaled - most[home]).exp()
        total = torch.zeros(n, scores.shape[1]).index_add(0, home, raw)
        return torch.zeros(n, scores.shape[1]).index_add(0, home, raw / total[home] * scores)

    def _keep(self, best: list[NDArray[Any]]) -> None:
        self.coef_, self.intercept_ = best

    def _pooled(self, X: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return logits `(N, K)` and weights of the pieces `(R,)`, in float64."""
        rows = self._rows(X)
        pieces = X if isinstance(X, Pieces) else Pieces.of_rows(rows)
        scores = standardise(pieces.states, self.mean_, self.scale_).astype(np.float64) @ self.coef_
        starts, counts = pieces.bounds[:-1], np.diff(pieces.bounds)
        if self.heads:
            highest = np.maximum.reduceat(scores, starts, axis=0)
            is_highest = scores == np.repeat(highest, counts, axis=0)
            return highest.reshape(len(pieces), self.heads, -1).sum(1) + self.intercept_, is_highest.mean(1)
        scores = scores + self.intercept_
        scaled = scores / self.temperature
        weights = np.exp(scaled - np.repeat(np.maximum.reduceat(scaled, starts, axis=0), counts, axis=0))
        weights /= np.repeat(np.add.reduceat(weights, starts, axis=0), counts, axis=0)
        return np.add.reduceat(weights * scores, starts, axis=0), weights.mean(1)


MEMBER = SoftmaxPoolingProbe
