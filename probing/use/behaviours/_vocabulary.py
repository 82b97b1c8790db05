"""Logits over a whole vocabulary, in few dimensions in which half a squared change is a divergence in nats."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from probing.contracts.behaviour import Outputs, Readout, Texts
from probing.seeds import child_seed

COMPONENTS = 256
_SPARE = 32  # more random combinations than components, so that the last of these are found too
_MAX_CLASSES = 64
Clean = Callable[[], Iterable[Outputs]]


def reduced(texts: Texts, clean: Clean, *, components: int = COMPONENTS) -> Readout:
    """Return a readout of logits y as diag(√p̄)(I − 1p̄ᵀ)y, so that ½|Δy|² ≈ KL, along the leading components of the
    clean ones.

    p̄ is the mean clean prediction. The components span the clean outputs' largest principal axes, found by a random
    sketch with one power step in passes over the batches, and the differences between class means of `texts.labels`.
    Up to `components` alternatives nothing is reduced. Memory: V × components, never N × V.

    References:
        Halko, Martinsson and Tropp 2011, Finding Structure with Randomness, algorithm 4.4.
    """
    total = sum(outputs.values.float().softmax(1).double().sum(0) for outputs in clean())
    assert isinstance(total, Tensor)  # for the reader of types: there is a row
    mean = (total / total.sum()).float()
    weights = mean.sqrt()

    def weighted(logits: Tensor) -> Tensor:
        logits = logits.float()
        return (logits - (logits @ mean)[:, None]) * weights

    if len(mean) <= components:
        return lambda outputs: weighted(outputs.values)
    basis = _basis(texts, lambda: (weighted(outputs.values) for outputs in clean()), mean, components)
    return lambda outputs: weighted(outputs.values) @ basis


def _basis(texts: Texts, batches: Callable[[], Iterable[Tensor]], like: Tensor, components: int) -> Tensor:
    """Return an orthonormal basis `(V, r)`: contrasts of classes first, then leading components."""
    n, width = len(texts.example), min(components + _SPARE, len(texts.example), len(like))
    draws = torch.Generator().manual_seed(child_seed(0, "vocabulary", "sketch"))
    sketch, total = like.new_zeros((len(like), width)), like.new_zeros(len(like))
    labels = [torch.from_numpy(codes) for codes in texts.labels.values() if len(codes) and codes.max() < _MAX_CLASSES]
    sums = [like.new_zeros((int(codes.max()) + 2, len(like))) for codes in labels]
    row = 0
    for y in batches():
        sketch += y.T @ torch.randn((len(y), width), generator=draws).to(y.device)
        total += y.sum(0)
        for codes, into in zip(labels, sums, strict=True):
            into.index_add_(0, codes[row : row + len(y)].to(y.device) + 1, y)  # the first is of rows without a label
        row += len(y)
    mean = total / n
    axes = _leading(batches, mean, torch.linalg.qr(sketch)[0], components)
    contrasts = [_contrasts(into[1:], codes) for codes, into in zip(labels, sums, strict=True)]
    joined = torch.cat([*contrasts, axes], 1)
    left: Tensor
    left, sizes, _ = torch.linalg.svd(joined, full_matrices=False)
    return left[:, sizes > 1e-6 * sizes.max()].contiguous()


def _leading(batches: Callable[[], Iterable[Tensor]], mean: Tensor, start: Tensor, components: int) -> Tensor:
    """Return the principal axes `(V, r)` of the clean outputs, from a start that spans them roughly."""
    spread = torch.zeros_like(start)
    for y in batches():
        spread += (y - mean).T @ ((y - mean) @ start)
    range_: Tensor = torch.linalg.qr(spread)[0]
    gram = range_.new_zeros((range_.shape[1], range_.shape[1]), dtype=torch.float64)
    for y in batches():
        inside = ((y - mean) @ range_).double()
        gram += inside.T @ inside
    values: Tensor
    vectors: Tensor
    values, vectors = torch.linalg.eigh(gram)
    kept = values.flip(0)[:components] > 1e-12 * values.max().clamp(min=1e-300)
    axes: Tensor = range_ @ vectors.flip(1)[:, :components][:, kept].to(range_.dtype)
    return axes


def _contrasts(sums: Tensor, codes: Tensor) -> Tensor:
    """Return the class means less the first of them, each of length 1, `(V, K - 1)`."""
    counts = torch.bincount(codes[codes >= 0], minlength=len(sums)).to(sums.device)
    means = (sums / counts.clamp(min=1)[:, None])[counts > 0]
    apart: Tensor = (means[1:] - means[:1]).T
    lengths: Tensor = apart.norm(dim=0, keepdim=True)
    return apart / lengths.clamp(min=1e-30)
