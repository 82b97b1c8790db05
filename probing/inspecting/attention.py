"""Scores of attention patterns: how spread they are and where they point, each beside what uniform attention scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from probing.inspecting.prompts import Prompt
from probing.inspecting.reading import Read, Reader

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

SCORES = (
    "entropy",
    "entropy_share",
    "first_token",
    "punctuation",
    "distance",
    "distance_spread",
    "self",
    "previous_token",
    "same_token",
    "induction",
    "sink_mass",
)
KINDS = ("value", "uniform", "value_weighted")  # whose scores: the pattern's, uniform attention's, ‖α v W_O‖ shares'


def targets(prompt: Prompt) -> dict[str, Bools]:
    """Return the keys that each score counts, `(T, T)` queries by keys.

    `same_token` counts earlier keys with the query's token, `induction` earlier keys that come just after such a key.

    References:
        Olsson et al. 2022, In-context Learning and Induction Heads (prefix matching).
    """
    ids, length = prompt.encoded.ids, len(prompt)
    query, key = np.arange(length)[:, None], np.arange(length)[None]
    is_same = ids[:, None] == ids[None]
    after_same = np.zeros_like(is_same)
    after_same[:, 1:] = is_same[:, :-1]
    return {
        "first_token": np.broadcast_to(key == 0, is_same.shape),
        "punctuation": np.broadcast_to(prompt.is_punctuation[None], is_same.shape),
        "self": query == key,
        "previous_token": key == query - 1,
        "same_token": is_same & (key < query),
        "induction": after_same & (key < query),
    }


def scores_of(
    pattern: Floats, allowed: Bools, prompt: Prompt, has_sink: bool = False
) -> tuple[Floats, NDArray[np.int64]]:
    """Return the scores of H patterns, `(H, S)` in the order of `SCORES`, and the number of queries of each, `(S,)`.

    A score is a mean over the queries with at least two allowed keys; `first_token`, `punctuation`, `self`,
    `previous_token`, `same_token` and `induction` are the weight on the keys of the kind, a mean over those of these
    queries that may attend to such a key (NaN if there is none). `entropy` is in bits, `entropy_share` its share of
    log₂ of the number of allowed keys; `distance` is the mean of |query − key| in tokens, `distance_spread` its
    standard deviation within a query.

    With a sink, a weight counts as it is; `sink_mass` is what is missing to 1. Entropies are those over the keys and
    the sink, which counts as one more allowed key; distances are over the keys alone, their weights scaled to sum 1.

    Args:
        pattern: `(H, T, T)` weights.
        allowed: `(T, T)` keys that a query may attend to.
        prompt: the text.
        has_sink: whether what a row lacks of 1 rests on a sink; else each row is scaled to sum 1.
    """
    total = pattern.sum(-1, keepdims=True)
    share = np.divide(pattern, total, out=np.zeros_like(pattern), where=total > 0)
    sink = (1 - total).clip(0, 1) if has_sink else np.zeros_like(total)
    weight = pattern if has_sink else share
    count = allowed.sum(1)
    has_choice = count > 1
    entropy = _bits(weight) + _bits(sink)
    place = np.arange(len(prompt))
    far = np.abs(place[:, None] - place[None]).astype(np.float64)
    mean = (share * far).sum(-1)
    spread = np.sqrt(np.maximum(0.0, (share * far**2).sum(-1) - mean**2))
    bits = np.log2(np.maximum(count, 2) + has_sink)
    rows: dict[str, tuple[Floats, Bools]] = {
        "entropy": (entropy, has_choice),
        "entropy_share": (entropy / bits, has_choice),
        "distance": (mean, has_choice),
        "distance_spread": (spread, has_choice),
        "sink_mass": (sink[..., 0], has_choice),
    }
    for name, wanted in targets(prompt).items():
        counted = wanted & allowed
        rows[name] = ((weight * counted).sum(-1), has_choice & counted.any(1))
    found = np.full((len(pattern), len(SCORES)), np.nan)
    queries = np.zeros(len(SCORES), dtype=np.int64)
    for s, name in enumerate(SCORES):
        values, chosen = rows[name]
        queries[s] = int(chosen.sum())
        if queries[s]:
            found[:, s] = values[:, chosen].mean(1)
    return found, queries


def _bits(weights: Floats) -> Floats:
    """Return −Σ w log₂ w over the last axis."""
    found: Floats = -(weights * np.log2(weights, out=np.zeros_like(weights), where=weights > 0)).sum(-1)
    return found


def uniform(allowed: Bools) -> Floats:
    """Return the pattern that spreads attention evenly over the allowed keys, `(T, T)`."""
    return np.asarray(allowed / np.maximum(allowed.sum(1, keepdims=True), 1))


def written_sizes(values: Tensor, projection: nn.Module) -> Tensor:
    """Return ‖v W_O‖, the size of what a head writes for each key if it attends to that key alone, `(B, H, T)`.

    Args:
        values: `(B, T, H, d)` values.
        projection: the layer that maps the heads' outputs `(…, H d)` to the residual stream.

    References:
        Kobayashi et al. 2020, Attention is Not Only a Weight, §3.
    """
    batch, length, heads, size = values.shape
    found = values.new_zeros((batch, heads, length))
    with torch.inference_mode():
        nothing = projection(values.new_zeros((1, 1, heads * size)))
        for head in range(heads):
            alone = values.new_zeros((batch, length, heads, size))
            alone[:, :, head] = values[:, :, head]
            found[:, head] = (projection(alone.flatten(2)) - nothing).norm(dim=-1)
    return found


@dataclass
class AttentionSummary:
    """Collects the scores of every head over texts.

    Attributes:
        reader: the reader, whose attention is found.
        scores: for each text, `(3, L, H, S)` scores of the pattern, of uniform attention and of the value-weighted
            shares; by the text's number.
        queries: for each text, `(L, S)` number of queries that each score counts.
        shown: texts whose patterns are kept.
        patterns: for these, `(2, L, H, T, T)` patterns and value-weighted shares.
    """

    reader: Reader
    shown: int
    scores: dict[int, Floats] = field(default_factory=dict)
    queries: dict[int, NDArray[np.int64]] = field(default_factory=dict)
    patterns: dict[int, NDArray[np.float32]] = field(default_factory=dict)

    def add(self, read: Read) -> None:
        """Add a batch."""
        layers = self.reader.layers
        both = [self._of_layer(read, layer) for layer in layers]
        allowed = [read.allowed(layer, self.reader.window) for layer in layers]
        for b, prompt in enumerate(read.prompts):
            found, counts = [], []
            for (pattern, weighted), mask in zip(both, allowed, strict=True):
                of_pattern, queries = scores_of(pattern[b], mask, prompt, self.reader.has_sink)
                flat, _ = scores_of(uniform(mask)[None], mask, prompt)
                of_weighted, _ = scores_of(weighted[b], mask, prompt)
                found.append(np.stack([of_pattern, np.broadcast_to(flat, of_pattern.shape), of_weighted]))
                counts.append(queries)
            self.scores[prompt.number], self.queries[prompt.number] = np.stack(found, 1), np.stack(counts)
            if prompt.number < self.shown:
                kept = [np.stack([pattern[b], weighted[b]]) for pattern, weighted in both]
                self.patterns[prompt.number] = np.stack(kept, 1).astype(np.float32)

    def _of_layer(self, read: Read, layer: int) -> tuple[Floats, Floats]:
        """Return the patterns of a layer and their value-weighted shares, `(B, H, T, T)` each."""
        trunk = self.reader.trunk
        projection = trunk.trunk.get_submodule(trunk.modules[f"heads.{layer}"])
        pattern = read.patterns[layer].double().cpu().numpy()
        sizes = written_sizes(read.values[layer], projection).double().cpu().numpy()
        weighted = pattern * sizes[:, :, None]
        total = weighted.sum(-1, keepdims=True)
        return pattern, np.divide(weighted, total, out=np.zeros_like(weighted), where=total > 0)

    def stacked(self) -> tuple[Floats, NDArray[np.int64]]:
        """Return all scores `(N, 3, L, H, S)` and numbers of queries `(N, L, S)`, in the order of the texts."""
        order = sorted(self.scores)
        return np.stack([self.scores[k] for k in order]), np.stack([self.queries[k] for k in order])


def pattern_differences(one: Floats, other: Floats, layers: Sequence[int]) -> list[dict[str, Any]]:
    """Return how much each head's pattern differs between two equally long texts: the total variation distance of the
    two rows of a query, from 0 to 1, as mean over the queries and as its largest value with its query. What a row lacks
    of 1, on a sink, counts as one more key.

    Args:
        one, other: `(L, H, T, T)` patterns.
        layers: numbers of the L layers.
    """
    apart = 0.5 * (np.abs(one - other).sum(-1) + np.abs(one.sum(-1) - other.sum(-1)))
    return [
        {
            "layer": layer,
            "head": head,
            "mean_variation": float(apart[i, head].mean()),
            "largest_variation": float(apart[i, head].max()),
            "largest_at": int(apart[i, head].argmax()),
        }
        for i, layer in enumerate(layers)
        for head in range(apart.shape[1])
    ]
