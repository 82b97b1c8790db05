"""Computes latents from states: normalisation, matrix product, and the choice of active latents, block by block."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from probing.dictionaries.dictionary import Dictionary

Floats = NDArray[np.float32]
Block = tuple[NDArray[np.int64], NDArray[np.int32], Floats]

_BLOCK = 1 << 23  # pre-activations computed at once: 32 MiB
_EPSILON = 1e-5  # added to the deviation by `layer_norm`, as SAELens does


def normalized(rows: Floats, kind: str) -> tuple[Floats, Floats | float, Floats | float]:
    """Return rows `(n, d)` as they are encoded, and the means and scales that undo it: x = x' scale + mean.

    `layer_norm` divides by the unbiased deviation plus 1e-5, and is undone without the latter, as in SAELens.
    """
    if kind == "none":
        return rows, 0.0, 1.0
    if kind == "constant_norm_rescale":
        scale: Floats = np.linalg.norm(rows, axis=1, keepdims=True) / np.float32(rows.shape[1] ** 0.5)
        scale = np.where(scale > 0, scale, np.float32(1)).astype(np.float32)
        return rows / scale, 0.0, scale
    mean = rows.mean(axis=1, keepdims=True)
    centred = rows - mean
    scale = centred.std(axis=1, keepdims=True, ddof=1)
    return centred / (scale + np.float32(_EPSILON)), mean, scale


def encoded_blocks(dictionary: Dictionary, states: Floats, device: str | None = None) -> Iterator[Block]:
    """Yield, block of rows by block, the number of latents of each row, their columns (in order) and their values.

    Memory does not grow with the number of rows.

    Args:
        dictionary: the dictionary.
        states: `(n, d)` float32, finite.
        device: torch device to compute on; None: the processor.
    """
    encoder, size = _Encoder(dictionary, device or "cpu"), max(1, _BLOCK // dictionary.n_latents)
    for first in range(0, len(states), size):
        rows = normalized(states[first : first + size], dictionary.normalization)[0]
        with torch.inference_mode():
            yield encoder(rows)


class _Encoder:
    """Holds the weights of a dictionary on a device and encodes blocks of normalised rows."""

    def __init__(self, dictionary: Dictionary, device: str) -> None:
        def on(array: Floats | None) -> Tensor | None:
            return None if array is None else torch.from_numpy(array).to(device)

        self.device, self.k, self.activation = device, dictionary.k or 0, dictionary.activation
        self.weight = torch.from_numpy(dictionary.encoder).to(device)
        self.bias = torch.from_numpy(dictionary.encoder_bias).to(device)
        self.threshold, self.gate_bias, self.gate_scale = (
            on(array) for array in (dictionary.threshold, dictionary.gate_bias, dictionary.gate_scale)
        )
        self.shift = on(dictionary.decoder_bias) if dictionary.subtract_decoder_bias else None

    def __call__(self, rows: Floats) -> Block:
        """Return counts, columns and values of the latents of rows `(n, d)`."""
        given = torch.from_numpy(rows).to(self.device)
        given = given if self.shift is None else given - self.shift
        if self.activation == "gated":
            return self._gated(given @ self.weight)
        pre = torch.addmm(self.bias, given, self.weight)
        if self.activation == "topk":
            return _parts(*_largest(pre, min(self.k, pre.shape[1])))
        if self.activation == "groupmax":
            groups = pre.reshape(len(pre), self.k, -1)
            values, places = groups.max(dim=2)
            return _parts(values, places + torch.arange(self.k, device=pre.device) * groups.shape[2])
        return _active(pre, pre > 0 if self.threshold is None else pre > self.threshold.clamp(min=0))

    def _gated(self, product: Tensor) -> Block:
        assert self.gate_bias is not None and self.gate_scale is not None
        is_open = product + self.gate_bias > 0
        values = torch.addcmul(self.bias, product, self.gate_scale.exp())
        return _active(values, is_open & (values > 0))


def _largest(pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest values of each row and their columns, by columns."""
    values, columns = pre.topk(k, dim=1, sorted=False)
    columns, order = columns.sort(dim=1)
    return values.gather(1, order), columns


def _parts(values: Tensor, columns: Tensor) -> Block:
    """Return the positive ones of a fixed number of values `(n, k)` a row."""
    positive = values > 0
    counts = positive.sum(dim=1)
    return counts.cpu().numpy(), columns[positive].int().cpu().numpy(), values[positive].cpu().numpy()


def _active(values: Tensor, is_active: Tensor) -> Block:
    """Return the values at the places `(n, m)` that are active."""
    places = is_active.flatten().nonzero()[:, 0]
    counts = is_active.sum(dim=1)
    columns = (places % is_active.shape[1]).int()
    return counts.cpu().numpy(), columns.cpu().numpy(), values.flatten()[places].cpu().numpy()
