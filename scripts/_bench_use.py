"""Planted properties for scripts/bench_verdicts.py: states as arrays, many sizes of documents, effects as stated."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from probing.contracts.edited_model import Place
from probing.use.edited_models.arrays import ArrayInstrument
from probing.use.measure import Property

WIDTH, READ, ANSWERS = 32, 6, 3
GROUPS = ("rows", "fours", "documents", "zipf", "treebank")


@dataclass(frozen=True)
class Planted:
    """What is planted.

    Attributes:
        k: classes.
        zipf: class k is as frequent as 1/k; else all alike.
        n: rows.
        groups: `rows`: each its own; `fours`: groups of four rows with a noise in common; `documents`, `zipf`,
            `treebank`: the label is constant within documents, 150 alike, 150 of sizes 1/rank, 600 of log-normal sizes.
        icc: share of the noise that documents have in common.
        effect: size of the effect along the natural contrast, in SDs of the clean output; 0: nobody reads it.
        answers: dimensions of the behaviour.
    """

    k: int = 2
    zipf: bool = False
    n: int = 1500
    groups: str = "rows"
    icc: float = 0.64
    effect: float = 0.0
    answers: int = ANSWERS


def planted(p: Planted, seed: int) -> tuple[ArrayInstrument, Property]:
    """Rows with a property that is coded in the states and read as strongly as stated.

    States are a rotated sum of a code of the class and noise; the behaviour reads noise that has nothing to do with the
    property, and of the code what the effect asks for.
    """
    rng = np.random.default_rng([seed, p.k, p.n, GROUPS.index(p.groups)])
    share = 1.0 / np.arange(1, p.k + 1) if p.zipf else np.ones(p.k)
    share /= share.sum()
    groups = _documents(p, rng)
    of_group = rng.choice(p.k, int(groups.max()) + 1, p=share)
    by_row = rng.choice(p.k, p.n, p=share)
    z = (by_row if p.groups in ("rows", "fours") else of_group[groups]).astype(np.int64)
    codes = rng.standard_normal((p.k, 8))
    codes = 2 * (codes - share @ codes) / np.sqrt(share @ ((codes - share @ codes) ** 2).sum(1))
    own, common = rng.standard_normal((p.n, WIDTH - 8)), rng.standard_normal((int(groups.max()) + 1, WIDTH - 8))
    icc = 0.0 if p.groups == "rows" else p.icc
    noise = np.sqrt(1 - icc) * own + np.sqrt(icc) * common[groups]
    rotation = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0]
    latents = np.concatenate([codes[z] + 0.5 * rng.standard_normal((p.n, 8)), noise], axis=1)
    reads = np.zeros((WIDTH, p.answers))
    reads[8 : 8 + READ] = rng.standard_normal((READ, p.answers))
    if p.effect:
        reads[:8] = _scaled(rng.standard_normal((8, p.answers)), codes, share, reads[8:], p.effect)
    matrix = torch.from_numpy((rotation @ reads).astype(np.float32))
    states = (latents @ rotation.T).astype(np.float32)
    place = Place("layer.0")
    instrument = ArrayInstrument({place: states}, lambda site, rows, given, frozen: given[""] @ matrix)
    return instrument, Property("z", z, p.k, groups.astype(np.int64), {})


def _documents(p: Planted, rng: np.random.Generator) -> NDArray[np.int64]:
    if p.groups == "rows":
        return np.arange(p.n)
    if p.groups == "fours":
        return np.arange(p.n) // 4
    count = 600 if p.groups == "treebank" else 150
    sizes = {
        "documents": np.ones(count),
        "zipf": 1.0 / np.arange(1, count + 1),
        "treebank": np.exp(1.3 * rng.standard_normal(count)),
    }[p.groups]
    ends = np.cumsum(np.maximum(1, np.round(sizes / sizes.sum() * p.n)))
    return np.minimum(np.searchsorted(ends, np.arange(p.n), side="right"), count - 1)


def _scaled(
    read: NDArray[np.float64],
    codes: NDArray[np.float64],
    share: NDArray[np.float64],
    noise: NDArray[np.float64],
    effect: float,
) -> NDArray[np.float64]:
    """The read of the code, made so strong that exchanging classes moves the output by `effect` SDs."""
    low, high = 0.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _size(middle * read, codes, share, noise) < effect else (low, middle)
    return low * read


def _size(
    read: NDArray[np.float64], codes: NDArray[np.float64], share: NDArray[np.float64], noise: NDArray[np.float64]
) -> float:
    """Effect along the contrast over SD along it, pairs of classes weighing as often as their rows."""
    weights = np.outer(share, share) * (1 - np.eye(len(share)))
    weights /= weights.sum()
    contrasts = (codes[None] - codes[:, None]) @ read
    size = np.sqrt((weights[..., None] * contrasts**2).sum())
    if not size:
        return 0.0
    centred = codes - share @ codes
    cov = read.T @ (np.einsum("k,ki,kj->ij", share, centred, centred) + 0.25 * np.eye(len(centred.T))) @ read
    cov += noise.T @ noise
    spread = np.sqrt(np.einsum("ab,abv,vw,abw->", weights, contrasts, cov, contrasts)) / size
    return float(size / spread)
