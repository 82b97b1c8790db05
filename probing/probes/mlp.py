"""Trains a multi-layer perceptron with early stopping, which can find what a linear probe cannot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_softmax
from sklearn.utils.validation import validate_data

from probing.errors import BadParameter
from probing.probes._descent import dev_codes, held_out_rows, require_scored
from probing.probes._estimator import FLOATS, ClassifierProbe, Dev, FittedState, RegressorProbe
from probing.probes._rows import moments, standardise
from probing.probes._stacked_networks import Data, FittedNetwork, NetworkSettings, train


class _MLP(FittedState):
    """Base of the classifier and the regressor."""

    stochastic: ClassVar[bool] = True
    is_linear: ClassVar[bool] = False
    accepts_device = True

    mean_: NDArray[np.float64]
    scale_: NDArray[np.float64]

    def __init__(
        self,
        hidden: int = 64,
        layers: int = 1,
        dropout: float = 0.0,
        learning_rate: float = 1e-3,
        learning_rate_factor: float = 1.0,
        weight_decay: float = 0.0,
        batch_size: int = 512,
        max_epochs: int = 40,
        patience: int = 3,
        precision: str = "float32",
        random_state: int | None = None,
    ) -> None:
        self.hidden = hidden
        self.layers = layers
        self.dropout = dropout
        self.learning_rate = learning_rate
        self.learning_rate_factor = learning_rate_factor
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.patience = patience
        self.precision = precision
        self.random_state = random_state

    def state(self) -> dict[str, NDArray[Any]]:
        """Return the fitted arrays by name; weights and biases by layer."""
        own = super().state()
        return {**own, **{f"layer_{i}": array for i, array in enumerate(self.layers_)}}

    def with_state(self, state: dict[str, NDArray[Any]]) -> Self:
        """Set fitted attributes from `state()` and return self."""
        super().with_state(state)
        count = sum(name.startswith("layer_") for name in state)
        self.layers_ = [np.asarray(state[f"layer_{i}"]) for i in range(count)]
        return self

    def _recipe(self) -> NetworkSettings:
        for name in ("hidden", "batch_size", "max_epochs", "patience"):
            if getattr(self, name) < 1:
                raise BadParameter(f"{name} must be at least 1", needed="at least 1", found=str(getattr(self, name)))
        if self.layers not in (1, 2):
            raise BadParameter("layers must be 1 or 2", needed="1 or 2 hidden layers", found=str(self.layers))
        if not 0 <= self.dropout < 1:
            raise BadParameter("dropout must be in [0, 1)", needed="0 ≤ dropout < 1", found=str(self.dropout))
        if not 0 < self.learning_rate_factor <= 1:
            found = str(self.learning_rate_factor)
            raise BadParameter("learning_rate_factor must be in (0, 1]", needed="0 < factor ≤ 1", found=found)
        if self.precision not in ("float32", "bfloat16"):
            raise BadParameter("unknown precision", needed="float32 or bfloat16", found=repr(self.precision))
        return NetworkSettings(
            hidden=self.hidden,
            layers=self.layers,
            dropout=self.dropout,
            learning_rate=self.learning_rate,
            rate_factor=self.learning_rate_factor,
            weight_decay=self.weight_decay,
            batch_size=self.batch_size,
            max_epochs=self.max_epochs,
            patience=self.patience,
            low=self.precision == "bfloat16",
        )

    def _adopt(self, network: FittedNetwork, mean: NDArray[np.float64], scale: NDArray[np.float64]) -> Self:
        self.layers_ = network.arrays
        self.mean_, self.scale_ = mean, scale
        self.converged_ = network.converged
        self.n_iter_ = len(network.dev_losses)
        self.best_epoch_, self.dev_losses_ = network.best_epoch, network.dev_losses
        return self

    def _output(self, X: NDArray[Any]) -> NDArray[np.float64]:
        h = standardise(X, self.mean_, self.scale_).astype(np.float64)
        for i in range(0, len(self.layers_), 2):
            h = np.maximum(h, 0.0) if i else h
            h = h @ self.layers_[i].astype(np.float64) + self.layers_[i + 1]
        return h

    def _stacked(
        self,
        X: NDArray[Any],
        coded: list[NDArray[Any]],
        outputs: list[int],
        seeds: Sequence[int],
        dev: tuple[NDArray[Any], list[NDArray[Any]]] | None,
    ) -> tuple[list[list[FittedNetwork]], NDArray[np.float64], NDArray[np.float64]]:
        """Train networks `[m][s]` for M coded label sets under S seeds, and return them with the moments of the
        training rows.
        """
        recipe = self._recipe()
        Y = np.stack(coded)
        if dev is None:
            train_rows, dev_rows = held_out_rows(len(X), 0)
            dev = (X[dev_rows], list(Y[:, dev_rows]))
            X, Y = X[train_rows], Y[:, train_rows]
        mean, scale = moments(X)
        rows, dev_states = (torch.from_numpy(standardise(part, mean, scale)) for part in (X, dev[0]))
        low_rows = rows.bfloat16() if recipe.low else rows
        parts = (low_rows, torch.from_numpy(Y), dev_states, torch.from_numpy(np.stack(dev[1])))
        data = Data(*(part.to(self.device) for part in parts))
        return train(data, outputs, seeds, recipe), mean, scale


class MLPProbe(_MLP, ClassifierProbe):
    """Trains a ReLU network with a softmax by AdamW, until the dev loss has not fallen for `patience` epochs.

    It takes the weights of the best epoch. Without `dev`, a tenth of the rows is held out. `fit_many` trains many
    networks at once; each is, up to rounding, the network that `fit` returns with its seed. The seed determines initial
    weights, order and dropout, so with one seed a task and its controls differ only in their labels.

    Args:
        hidden: width of the hidden layers.
        layers: number of hidden layers, 1 or 2.
        dropout: fraction of hidden units dropped in training.
        learning_rate: learning rate of AdamW.
        learning_rate_factor: factor by which the learning rate is multiplied after every epoch without a lower dev
            loss.
        weight_decay: decoupled weight decay of AdamW.
        batch_size: number of rows per step of AdamW; fewer if there would be less than 50 steps per epoch.
        max_epochs: largest number of passes over the rows.
        patience: number of epochs without a lower dev loss after which training stops.
        precision: precision of the first layer's matrix products in training: `float32`, or `bfloat16` (sums, weights,
            dev losses and predictions stay float32 or better), which is faster where the processor has it and slower
            elsewhere.
        random_state: seed of initial weights, order of rows and dropout; None means 0.

    Attributes:
        converged_: whether training was stopped by `patience`, before `max_epochs`.
        best_epoch_: number of the best epoch, from 1.
        dev_losses_: the dev loss of every epoch.
    """

    _arrays = ("classes", "mean", "scale")

    def _fit_all(
        self, X: NDArray[Any], fits: Sequence[Sequence[Self]], targets: Sequence[NDArray[np.int64]], dev: Dev
    ) -> None:
        """Fit all label sets under all seeds as one stacked model; `dev` rows with labels unseen in training are left
        out.
        """
        first, seeds = [row[0] for row in fits], [probe.random_state or 0 for probe in fits[0]]
        held_out = None
        if dev is not None:
            pairs = zip(first, dev[1], strict=True)
            held_out = (np.asarray(dev[0]), [dev_codes(p.classes_, np.asarray(y)) for p, y in pairs])
            require_scored(held_out[1])
        outputs = [len(probe.classes_) for probe in first]
        networks, mean, scale = self._stacked(X, list(targets), outputs, seeds, held_out)
        for row, trained in zip(fits, networks, strict=True):
            for probe, network in zip(row, trained, strict=True):
                probe._adopt(network, mean, scale)

    def fit_parts(self, X: NDArray[np.float32], y: NDArray[Any], parts: Sequence[NDArray[np.bool_]]) -> list[Self]:
        """Fit one network on each part of the rows, all trained at once, and return them; it is used for cross-fitting.
        A part is a bool mask `(N,)`, true for its rows. X are states `(N, D)` and y labels `(N,)`.

        All networks have the classes of all rows, and the same standardisation; labels of rows outside a network's part
        do not affect it. A tenth of the rows is held out, and each network is stopped early by the held-out rows of its
        part.
        """
        rows = np.asarray(validate_data(self.with_seed(0), X, dtype=FLOATS))
        first, codes = self._started(rows, y)
        coded = [np.where(part, codes, -1) for part in parts]
        outputs, seed = [len(first.classes_)] * len(parts), self.random_state or 0
        networks, mean, scale = self._stacked(rows, coded, outputs, [seed], None)
        fits: list[Self] = [self.with_seed(seed) for _ in parts]
        for probe, (network,) in zip(fits, networks, strict=True):
            probe.classes_, probe.n_features_in_ = first.classes_, first.n_features_in_
            probe._adopt(network, mean, scale)
        return fits

    def predict_log_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the natural log probabilities of K classes for each of the N states in X, `(N, K)`."""
        return np.asarray(log_softmax(self._output(self._rows(X)), axis=1))


class MLPRegressorProbe(_MLP, RegressorProbe):
    """Trains the network of `MLPProbe`, with one linear output, on standardised targets with mean squared error.

    Attributes:
        target_mean_: mean of the training targets.
        target_scale_: standard deviation of the training targets.
    """

    _arrays = ("mean", "scale")
    _scalars = ("target_mean", "target_scale")

    target_mean_: float
    target_scale_: float

    def _fit_all(
        self, X: NDArray[Any], fits: Sequence[Sequence[Self]], targets: Sequence[NDArray[np.float64]], dev: Dev
    ) -> None:
        """Fit all targets under all seeds as one stacked model."""
        centre, spread = moments(np.stack(targets, axis=1))
        coded = [((y - c) / s).astype(np.float32) for y, c, s in zip(targets, centre, spread, strict=True)]
        if dev is not None:
            held = [np.asarray(y, np.float64) for y in dev[1]]
            held = [((y - c) / s).astype(np.float32) for y, c, s in zip(held, centre, spread, strict=True)]
            dev = (np.asarray(dev[0]), held)
        seeds = [probe.random_state or 0 for probe in fits[0]]
        networks, mean, scale = self._stacked(X, coded, [1] * len(coded), seeds, dev)
        for m, (row, trained) in enumerate(zip(fits, networks, strict=True)):
            for probe, network in zip(row, trained, strict=True):
                probe.target_mean_, probe.target_scale_ = float(centre[m]), float(spread[m])
                probe._adopt(network, mean, scale)

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the value predicted for each of the N states in X, `(N,)` float64."""
        return np.asarray(self._output(self._rows(X))[:, 0] * self.target_scale_ + self.target_mean_)


MEMBER = MLPProbe
REGRESSION_MEMBER = MLPRegressorProbe
