"""Fits a linear probe of a word or sentence that learns which of its tokens to read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_softmax
from torch import Tensor

from probing.errors import BadParameter
from probing.labels import Pieces
from probing.probes._descent import dev_codes, held_out_rows, require_scored
from probing.probes._estimator import ClassifierProbe
from probing.probes._rows import moments, standardise
from probing.seeds import child_seed

_SMALLEST_BATCH, _STEPS_AN_EPOCH = 16, 50
_DEV_BATCH = 1024


@dataclass(frozen=True)
class _Rows:
    """Standardised pieces and codes: `states` `(R, D)`, `bounds` `(N+1,)`, `codes` `(N,)`."""

    states: Tensor
    bounds: Tensor
    codes: Tensor

    def batch(self, picked: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the pieces of the picked rows, the place of each piece's row in `picked`, and the codes."""
        low = self.bounds[picked]
        counts = self.bounds[picked + 1] - low
        home = torch.repeat_interleave(torch.arange(len(picked)), counts)
        shift = low - (counts.cumsum(0) - counts)
        return self.states[torch.arange(len(home)) + shift[home]], home, self.codes[picked]


class AttentionPoolingProbe(ClassifierProbe):
    """Fits softmax regression on `Σ aₜ xₜ`, a weighted mean of the states xₜ of a row's tokens, with weights aₜ =
    softmax over t of (xₜ·q / √D) where q is learned. A row is a word or sentence; D is the width of a state.

    With the query vector q it can find a label that is in the state of one token among many, which a plain mean would
    hide. A good score shows that the label is *somewhere* in the row; `attention` returns at which tokens it was read.
    With q = 0 it is the linear probe on the mean. Given an array `(N, D)`, every row has one state and q has no effect.

    It is trained by Adam on mean log loss until the dev loss has not fallen for `patience` epochs, and takes the
    weights of the best epoch. Without `dev`, a random tenth of the rows is held out. The loss is not convex: use
    several seeds.

    Args:
        learning_rate: learning rate of Adam.
        weight_decay: decoupled weight decay (AdamW), on all weights.
        batch_size: number of rows per step of Adam; fewer if there would be less than 50 steps per epoch.
        max_epochs: largest number of passes over the rows.
        patience: number of epochs without a lower dev loss after which training stops.
        random_state: seed of the initial weights and of the order of rows; None means 0.

    Attributes:
        query_: `(D,)` the query vector q, for standardised states.
        coef_: `(D, K)` weights of the softmax regression.
        intercept_: `(K,)` intercepts of the softmax regression.
        converged_: whether training was stopped by `patience`, before `max_epochs`.
        best_epoch_: number of the best epoch, from 1.

    References:
        Yang et al. 2016, *Hierarchical attention networks*, eqs. 6 and 7 (a learned context vector; their hidden
        layer, eq. 5, is left out). The scaling is that of Vaswani et al. 2017, eq. 1.
    """

    input = "pieces"
    stochastic = True
    is_linear = False
    _arrays: ClassVar[tuple[str, ...]] = ("classes", "query", "coef", "intercept", "mean", "scale")

    query_: NDArray[np.float64]
    coef_: NDArray[np.float64]
    intercept_: NDArray[np.float64]
    converged_: bool

    def __init__(
        self,
        learning_rate: float = 1e-2,
        weight_decay: float = 0.0,
        batch_size: int = 256,
        max_epochs: int = 60,
        patience: int = 5,
        random_state: int | None = None,
    ) -> None:
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.patience = patience
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike, *, dev: tuple[ArrayLike, ArrayLike] | None = None) -> Self:
        """Fit on the states of all tokens of N rows (`Pieces`), or one state per row `(N, D)`, and labels `(N,)`;
        return self. `dev` is a pair of held-out states and labels for early stopping.
        """
        for name in ("batch_size", "max_epochs", "patience"):
            if getattr(self, name) < 1:
                raise BadParameter(f"{name} must be at least 1", needed="at least 1", found=str(getattr(self, name)))
        rows, codes = self._training_rows(X, y)
        pieces = X if isinstance(X, Pieces) else Pieces.of_rows(rows)
        if dev is None:
            kept, held = held_out_rows(len(codes), self.random_state or 0)
            outside, outside_codes, pieces, codes = pieces[held], codes[held], pieces[kept], codes[kept]
        else:
            outside = dev[0] if isinstance(dev[0], Pieces) else Pieces.of_rows(np.asarray(dev[0]))
            outside_codes = dev_codes(self.classes_, np.asarray(dev[1]))
            require_scored([outside_codes])
        self.mean_, self.scale_ = moments(pieces.states)
        scored = np.flatnonzero(outside_codes >= 0)
        self._train(self._standardised(pieces, codes), self._standardised(outside[scored], outside_codes[scored]))
        return self

    def attention(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the weight of each token within its row: an array `(R,)` for the R tokens of all rows of X."""
        return self._pooled(X)[1]

    def predict_log_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the natural log probabilities of K classes for each of the N rows of X, `(N, K)`."""
        return np.asarray(log_softmax(self._pooled(X)[0] @ self.coef_ + self.intercept_, axis=1))

    def _pooled(self, X: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return pooled rows `(N, D)` and weights `(R,)`, in float64."""
        rows = self._rows(X)
        pieces = X if isinstance(X, Pieces) else Pieces.of_rows(rows)
        states = standardise(pieces.states, self.mean_, self.scale_).astype(np.float64)
        starts, counts = pieces.bounds[:-1], np.diff(pieces.bounds)
        scores = states @ self.query_ / np.sqrt(len(self.query_))
        weights = np.exp(scores - np.repeat(np.maximum.reduceat(scores, starts), counts))
        weights /= np.repeat(np.add.reduceat(weights, starts), counts)
        return np.add.reduceat(weights[:, None] * states, starts, axis=0), weights

    def _standardised(self, pieces: Pieces, codes: NDArray[np.int64]) -> _Rows:
        states = standardise(pieces.states, self.mean_, self.scale_)
        return _Rows(torch.from_numpy(states), torch.from_numpy(pieces.bounds), torch.from_numpy(codes))

    def _train(self, rows: _Rows, dev: _Rows) -> None:
        source = torch.Generator().manual_seed(child_seed(self.random_state or 0, "attention"))
        n = len(rows.codes)
        parameters = [p.requires_grad_() for p in self._initial(rows.states.shape[1], source)]
        adam = torch.optim.AdamW(parameters, lr=self.learning_rate, weight_decay=self.weight_decay)
        batch = min(self.batch_size, max(_SMALLEST_BATCH, n // _STEPS_AN_EPOCH))
        lowest, self.best_epoch_, self.converged_ = np.inf, 0, False
        best: list[NDArray[Any]] = []
        for epoch in range(1, self.max_epochs + 1):
            for picked in torch.split(torch.randperm(n, generator=source), batch):
                adam.zero_grad()
                self._loss(parameters, *rows.batch(picked)).backward()  # type: ignore[no-untyped-call]
                adam.step()
            loss = self._dev_loss(parameters, dev)
            if loss < lowest or not best:
                lowest, self.best_epoch_ = loss, epoch
                best = [p.detach().double().numpy().copy() for p in parameters]
            elif epoch - self.best_epoch_ >= self.patience:
                self.converged_ = True
                break
        self.n_iter_ = epoch
        self._keep(best)

    def _initial(self, width: int, source: torch.Generator) -> list[Tensor]:
        """Return the weights that training starts from."""
        query = 0.1 * torch.randn(width, generator=source)
        weights = width**-0.5 * (2 * torch.rand(width, len(self.classes_), generator=source) - 1)
        return [query, weights, torch.zeros(len(self.classes_))]

    def _logits(self, parameters: list[Tensor], states: Tensor, home: Tensor, n: int) -> Tensor:
        """Return the logits `(n, K)` of rows with pieces `states` `(R, D)`; `home` is the row of each piece."""
        query, weights, intercept = parameters
        scores = states @ query / len(query) ** 0.5
        highest = torch.full((n,), -torch.inf).scatter_reduce(0, home, scores.detach(), "amax")
        raw = (scores - highest[home]).exp()
        total = torch.zeros(n).index_add(0, home, raw)
        pooled = torch.zeros(n, states.shape[1]).index_add(0, home, (raw / total[home]).unsqueeze(1) * states)
        return pooled @ weights + intercept

    def _keep(self, best: list[NDArray[Any]]) -> None:
        """Set the fitted attributes from the best weights."""
        self.query_, self.coef_, self.intercept_ = best

    def _loss(self, parameters: list[Tensor], states: Tensor, home: Tensor, codes: Tensor) -> Tensor:
        """Return the mean log loss of a batch."""
        return torch.nn.functional.cross_entropy(self._logits(parameters, states, home, len(codes)), codes)

    @torch.no_grad()
    def _dev_loss(self, parameters: list[Tensor], dev: _Rows) -> float:
        parts = torch.split(torch.arange(len(dev.codes)), _DEV_BATCH)
        losses = (float(self._loss(parameters, *dev.batch(part))) * len(part) for part in parts)
        return sum(losses) / len(dev.codes)


MEMBER = AttentionPoolingProbe
