"""Fits a linear map after which squared distances between states predict distances in a tree: the structural probe."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from probing.errors import BadParameter
from probing.labels import Pairs, RowForm
from probing.probes._descent import Batch, DescentSettings, Sentences, check_row_form, descend, halves, held_out
from probing.probes._estimator import RegressorProbe
from probing.probes._rows import moments, standardise
from probing.seeds import generator

_BLOCK = 1 << 16
_FORMS = ("auto", "distance", "depth")


class StructuralProbe(RegressorProbe):
    """Predicts the distance of two words as ‖B(x_a − x_b)‖², or the depth of a word as ‖B x‖², on standardised states.

    x_a and x_b are the states of words a and b, and B is the learned map. It minimises the absolute error: for pairs, Σ
    over sentences of (1/n²) Σ over pairs |d − d̂|, with d and d̂ the true and predicted distance and n the number of
    words of the sentence, as published; for depths, the mean over all words (the rows do not show where sentences end,
    so long sentences weigh more than in the paper). It is trained by AdamW on batches of whole sentences, halves the
    learning rate after every epoch without a lower dev loss, and takes the weights of the best epoch. Without `dev`, a
    random tenth of the sentences is held out. Predictions are never negative; for targets that can be negative use
    another probe.

    X is `Pairs`, in which every word is mapped once, or an array. From an array `(N, D)` depths are predicted; with
    `form=distance`, an array `(N, 2D)` is taken as two states side by side (a column of zeros is added to an odd
    width).

    Args:
        rank: number of dimensions that B maps to; None means the width of a state.
        form: what is predicted, `distance` or `depth`; `auto` means distance for `Pairs`, depth for an array.
        learning_rate: learning rate of AdamW.
        weight_decay: decoupled weight decay of AdamW.
        batch_words: number of words per step of AdamW; fewer if there would be less than 50 steps per epoch.
        max_epochs: largest number of passes over the rows.
        patience: number of epochs without a lower dev loss after which training stops.
        random_state: seed of the initial weights and of the order of sentences; None means 0.

    Attributes:
        map_: `(D, r)`, the transpose of B, with r the rank.
        is_distance_: whether it predicts distances (else depths).
        converged_: whether training was stopped by `patience`, before `max_epochs`.
        best_epoch_: number of the best epoch, from 1.
        dev_losses_: the dev loss of every epoch.
        mean_: `(D,)` mean of the training states, which standardising subtracts.
        scale_: `(D,)` standard deviations of the training states, by which standardising divides.

    References:
        Hewitt & Manning 2019, A Structural Probe for Finding Syntax in Word Representations, sections 2 and 3.
    """

    stochastic: ClassVar[bool] = True
    is_linear: ClassVar[bool] = False
    row_forms: ClassVar[tuple[RowForm, ...]] = ("pair", "ends", "row", "mean")
    accepts_pairs: ClassVar[bool] = True
    _arrays = ("map", "mean", "scale")
    _scalars = ("is_distance",)

    map_: NDArray[np.float32]
    mean_: NDArray[np.float64]
    scale_: NDArray[np.float64]
    is_distance_: bool

    def __init__(
        self,
        rank: int | None = 64,
        form: str = "auto",
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        batch_words: int = 512,
        max_epochs: int = 40,
        patience: int = 3,
        random_state: int | None = None,
    ) -> None:
        self.rank = rank
        self.form = form
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.batch_words = batch_words
        self.max_epochs = max_epochs
        self.patience = patience
        self.random_state = random_state

    def fit(
        self, X: ArrayLike | Pairs, y: ArrayLike, *, dev: tuple[ArrayLike | Pairs, ArrayLike] | None = None
    ) -> Self:
        """Fit on X (N pairs, or states `(N, D)`) and targets y `(N,)`, and return self. `dev` is a pair of held-out
        rows and targets for early stopping.
        """
        recipe = DescentSettings.of(self)
        if self.form not in _FORMS:
            raise BadParameter("unknown form", needed=", ".join(_FORMS), found=repr(self.form))
        self.is_distance_ = self.form == "distance" or (self.form == "auto" and isinstance(X, Pairs))
        if isinstance(X, Pairs):
            pairs, targets = X, np.asarray(y, np.float64)
            self.n_features_in_ = X.shape[1]
        else:
            rows, targets = self._training_rows(X, y)
            pairs = self._as_pairs(rows)
        check_row_form(pairs, "structural")
        if dev is None:
            kept, dev_rows = held_out(pairs, self.random_state or 0)
            dev_pairs, dev_targets = pairs[dev_rows], targets[dev_rows]
            pairs, targets = pairs[kept], targets[kept]
        else:
            dev_pairs = dev[0] if isinstance(dev[0], Pairs) else self._as_pairs(np.asarray(dev[0], np.float32))
            dev_targets = np.asarray(dev[1], np.float64)
        self.mean_, self.scale_ = moments(pairs.table[np.unique(pairs.index)])
        self._train(pairs, targets, dev_pairs, dev_targets, recipe)
        return self

    def predict(self, X: ArrayLike | Pairs) -> NDArray[Any]:
        """Return the distance or depth predicted for each of the N rows of X, `(N,)` float64."""
        if isinstance(X, Pairs):
            self.state()  # refuses where nothing is fitted
            pairs = X
            if X.shape[1] != self.n_features_in_:
                raise ValueError(f"pairs of {X.shape[1]} features, fitted on {self.n_features_in_}")
        else:
            pairs = self._as_pairs(self._rows(X))
        check_row_form(pairs, "structural")
        words, index = np.unique(pairs.index, return_inverse=True)
        index = index.reshape(-1, 2)
        z = standardise(pairs.table[words], self.mean_, self.scale_).astype(np.float64) @ self.map_.astype(np.float64)
        found = np.empty(len(index))
        for low in range(0, len(index), _BLOCK):
            a, b = index[low : low + _BLOCK].T
            difference = z[a] - z[b] if self.is_distance_ else z[a]
            found[low : low + _BLOCK] = np.einsum("nr,nr->n", difference, difference)
        return found

    def _as_pairs(self, rows: NDArray[Any]) -> Pairs:
        """Return halves for distances; for depths every row as a pair with itself, a sentence of its own."""
        if self.is_distance_:
            return halves(rows)
        each = np.arange(len(rows))
        return Pairs(rows.astype(np.float32, copy=False), np.stack([each, each], axis=1), each)

    def _train(
        self,
        pairs: Pairs,
        targets: NDArray[np.float64],
        dev: Pairs,
        dev_targets: NDArray[np.float64],
        recipe: DescentSettings,
    ) -> None:
        seed = self.random_state or 0
        B = self._first_map(pairs.table.shape[1], float(targets.mean()), seed)
        table, dev_table = (torch.from_numpy(standardise(p.table, self.mean_, self.scale_)) for p in (pairs, dev))
        sentences, held = Sentences(pairs), Sentences(dev)
        y, dev_y = (torch.from_numpy(t.astype(np.float32)) for t in (targets, dev_targets))
        weight, dev_weight = _weights(pairs, sentences), _weights(dev, held)
        size, all_held = self.batch_words, np.arange(len(held))

        def loss(batch: Batch) -> torch.Tensor:
            return self._error(B, table, y, weight, batch) / batch.n_sentences

        def dev_loss() -> float:
            errors = (self._error(B, dev_table, dev_y, dev_weight, batch) for batch in held.batches(size, all_held))
            return sum(float(error) for error in errors) / len(held)

        def epoch_of(epoch: int) -> Any:
            return sentences.batches(size, generator(seed, "order", epoch).permutation(len(sentences)))

        end = descend([B], loss, epoch_of, dev_loss, recipe)
        self.map_ = B.detach().numpy()
        self.converged_, self.best_epoch_, self.dev_losses_ = end.converged, end.best_epoch, end.dev_losses
        self.n_iter_ = len(end.dev_losses)

    def _first_map(self, width: int, mean: float, seed: int) -> torch.Tensor:
        """Draw a map whose predictions are about as large as targets are on average."""
        rank = width if self.rank is None else self.rank
        scale = np.sqrt(max(abs(mean), 1e-3) / (rank * width * (2 if self.is_distance_ else 1)))
        first = scale * generator(seed, "weights").standard_normal((width, rank))
        return torch.tensor(first, dtype=torch.float32, requires_grad=True)

    def _error(
        self, B: torch.Tensor, table: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, batch: Batch
    ) -> torch.Tensor:
        """Return the weighted absolute error of the pairs of a batch."""
        z = table[batch.words] @ B
        square = (z * z).sum(1)
        found = square.index_select(0, batch.a)
        if self.is_distance_:
            n = len(z)
            products = (z @ z.T).flatten().gather(0, batch.a * n + batch.b)
            found = found + square.index_select(0, batch.b) - 2.0 * products
        return ((found - y[batch.rows]).abs() * weight[batch.rows]).sum()

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.regressor_tags.poor_score = True  # no form of this kind fits a target that is linear in the states
        return tags


def _weights(pairs: Pairs, sentences: Sentences) -> torch.Tensor:
    """Return 1/n² of the sentence of each pair, n its words, `(N,)`."""
    _, codes = np.unique(pairs.group, return_inverse=True)
    n_words = np.diff(sentences.word_start).astype(np.float64)
    return torch.from_numpy((1.0 / n_words**2)[codes.reshape(-1)].astype(np.float32))


MEMBER = StructuralProbe
