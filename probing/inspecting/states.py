"""Summaries of hidden states: size, direction and outlying coordinates of each token, and the geometry of each site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probing.errors import BadParameter
from probing.inspecting.prompts import Prompt
from probing.inspecting.reading import Read
from probing.models.site import Site

Floats = NDArray[np.float64]
LARGEST = 3  # coordinates that are named
MANY_TOKENS = 4000  # beyond which the geometry of a site is that of the first texts only


def sites_beside(site: str, asked: Sequence[str], available: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the sites that a site is compared with, by their part: the `previous` site of its stream among those that
    are asked for, and what the `attention` and `mlp` of all blocks between `resid.k` and `resid.l` added, whose sum
    counts. A part is left out if a site of it is not available.
    """
    at = Site.parse(site)
    if at.layer is None:
        return {}
    others = [Site.parse(name) for name in asked]
    before = [one.layer for one in others if one.stream == at.stream and one.layer is not None and one.layer < at.layer]
    if not before:
        return {}
    wanted: dict[str, tuple[str, ...]] = {"previous": (f"{at.stream}.{max(before)}",)}
    if at.stream == "resid":
        for part, stream in (("attention", "attn_out"), ("mlp", "mlp_out")):
            wanted[part] = tuple(f"{stream}.{layer}" for layer in range(max(before), at.layer))
    return {part: names for part, names in wanted.items() if set(names) <= set(available)}


def token_columns(states: Tensor, beside: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    """Return what is measured of each token's state in B texts of T tokens, as columns `(B T,)`.

    `norm` is the Euclidean norm; `cosine_to_previous` compares with the previous site; `attention_norm` and `mlp_norm`
    are the sizes of what the sublayers of all blocks since that site added, `attention_cosine` and `mlp_cosine` the
    cosines of these sums with the state at that site.

    `largest_share` is the share of Σ x² in the three coordinates of largest |x|, which `coordinate_1` to
    `coordinate_3` name; `z_1` to `z_3` are their z-scores over the coordinates of the state. `over_100_medians` and
    `over_1000_medians` count the coordinates with |x| above so many times the median |x| of all the text's tokens at
    the site; `massive` counts those with |x| > 100 and above 1,000 medians.

    Args:
        states: `(B, T, D)` states.
        beside: `(B T, D)` states at the sites of `sites_beside`, summed by their part.

    References:
        Sun et al. 2024, Massive Activations in Large Language Models, §2 (massive). Timkey and van Schijndel 2021, All
        Bark and No Bite, §3 (coordinates that dominate a similarity).
    """
    x = states.double().flatten(0, 1)
    size = x.abs()
    median = states.double().abs().flatten(1).median(1).values.repeat_interleave(states.shape[1])[:, None]
    order = size.topk(min(LARGEST, x.shape[1]), dim=1).indices
    largest, squares = x.gather(1, order), x.square().sum(1)
    z = (largest - x.mean(1, keepdim=True)) / x.std(1, correction=0, keepdim=True)
    previous = beside.get("previous")
    found: dict[str, Tensor] = {"norm": squares.sqrt()}
    if previous is not None:
        found["cosine_to_previous"] = _cosine(x, previous.double())
    for part in ("attention", "mlp"):
        if part in beside and previous is not None:
            added = beside[part].double()
            found[f"{part}_norm"], found[f"{part}_cosine"] = added.norm(dim=1), _cosine(added, previous.double())
    found["largest_share"] = largest.square().sum(1) / squares
    for k in range(order.shape[1]):
        found[f"coordinate_{k + 1}"], found[f"z_{k + 1}"] = order[:, k], z[:, k]
    found["over_100_medians"] = (size > 100 * median).sum(1)
    found["over_1000_medians"] = (size > 1000 * median).sum(1)
    found["massive"] = ((size > 1000 * median) & (size > 100)).sum(1)
    return {name: column.cpu().numpy() for name, column in found.items()}


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(a, b, dim=1, eps=1e-30)


@dataclass
class StateSummary:
    """Collects the summaries of states over batches.

    Attributes:
        sites: sites that are summarised.
        rows: columns of tokens, a table for each batch and site.
        kept: states of tokens by site, with the number of the text and the token's id, for the geometry.
    """

    sites: Sequence[str]
    available: Sequence[str]
    rows: list[dict[str, Any]] = field(default_factory=list)
    kept: dict[str, list[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]] = field(default_factory=dict)
    kept_tokens: int = 0

    @property
    def needed(self) -> tuple[str, ...]:
        """Sites that have to be read."""
        more = [name for site in self.sites for names in self._beside(site).values() for name in names]
        return tuple(dict.fromkeys((*self.sites, *more)))

    def _beside(self, site: str) -> dict[str, tuple[str, ...]]:
        return sites_beside(site, self.sites, self.available)

    def add(self, read: Read) -> None:
        """Add a batch."""
        prompts, length = read.prompts, len(read.prompts[0])
        flat = {site: state.flatten(0, 1) for site, state in read.states.items()}
        where: dict[str, Any] = {
            "text": np.repeat([prompt.number for prompt in prompts], length),
            "text_id": [prompt.id for prompt in prompts for _ in range(length)],
            "position": np.tile(np.arange(length), len(prompts)),
            "token": [token for prompt in prompts for token in prompt.tokens],
            "is_special": np.concatenate([prompt.encoded.special for prompt in prompts]),
        }
        for order, site in enumerate(self.sites):
            beside = {
                part: torch.stack([flat[name].double() for name in names]).sum(0)
                for part, names in self._beside(site).items()
            }
            columns = token_columns(read.states[site], beside)
            self.rows.append(where | {"site": site, "order": order} | columns)
        if self.kept_tokens < MANY_TOKENS:
            self.kept_tokens += len(prompts) * length
            ids = np.concatenate([prompt.encoded.ids for prompt in prompts])
            chosen = (where["position"] > 0) & ~where["is_special"]
            for site in self.sites:
                state = flat[site].float().cpu().numpy()[chosen]
                self.kept.setdefault(site, []).append((state, where["text"][chosen], ids[chosen]))

    def geometry(self) -> list[dict[str, Any]]:
        """Return, for each site, its geometry (see `geometry_of`)."""
        found = []
        for site in self.sites:
            states, texts, ids = (np.concatenate(parts) for parts in zip(*self.kept[site], strict=True))
            found.append({"site": site} | geometry_of(states, texts, ids))
        return found


def geometry_of(states: NDArray[Any], texts: NDArray[Any], ids: NDArray[Any]) -> dict[str, Any]:
    """Return the geometry of N states, those of the texts' tokens other than token 0 and special ones.

    `participation_ratio` is (Σ λ)² / Σ λ² over the eigenvalues of their covariance, at most N − 1 and D. `anisotropy`
    is the mean cosine of two tokens of different texts. `self_similarity` is, for each entry of the vocabulary that
    occurs in several texts, the mean cosine of its states in different texts, then the mean over these entries (each
    counts once, however often it occurs); `contextual_similarity` is the same less anisotropy. What is not defined (one
    text, no token in two texts) is None.

    Args:
        states: `(N, D)` states.
        texts: `(N,)` number of each token's text.
        ids: `(N,)` vocabulary id of each token.

    References:
        Ethayarajh 2019, How Contextual are Contextualized Word Representations?, §3.3 and §4 (anisotropy,
        self-similarity; there over words, here over tokens of different texts).
    """
    x = states.astype(np.float64)
    found: dict[str, Any] = {"tokens": len(x), "participation_ratio": None}
    if len(x) > 1:
        centred = x - x.mean(0)
        inner = centred @ centred.T if len(x) < x.shape[1] else centred.T @ centred
        square = float(np.square(inner).sum())
        found["participation_ratio"] = float(np.trace(inner)) ** 2 / square if square > 0 else None
    unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30)
    anisotropy = _mean_across(unit, texts)
    same = [m for i in np.unique(ids) if (m := _mean_across(unit[ids == i], texts[ids == i])) is not None]
    alike = float(np.mean(same)) if same else None
    less = None if alike is None or anisotropy is None else alike - anisotropy
    return found | {"anisotropy": anisotropy, "self_similarity": alike, "contextual_similarity": less}


def _mean_across(unit: Floats, texts: NDArray[Any]) -> float | None:
    """Return the mean product of two vectors of different texts; None if there is one text."""
    _, codes, sizes = np.unique(texts, return_inverse=True, return_counts=True)
    pairs = float(sizes.sum()) ** 2 - float(np.square(sizes).sum())
    if pairs == 0:
        return None
    sums = np.zeros((len(sizes), unit.shape[1]))
    np.add.at(sums, codes.reshape(-1), unit)
    return (float(np.square(sums.sum(0)).sum()) - float(np.square(sums).sum())) / pairs


def aligned_tokens(one: Prompt, other: Prompt, spans: Mapping[str, tuple[str, str]]) -> dict[str, tuple[Any, Any]]:
    """Return pairs of token positions to compare in two prompts, by name: token by token if they are equally long, or
    the tokens of each named pair of substrings.

    Raises:
        BadParameter: the prompts are not equally long and no spans are named, or a substring does not occur exactly
            once or holds no token.
    """
    if spans:
        return {
            name: (_positions(one, parts[0], name), _positions(other, parts[1], name)) for name, parts in spans.items()
        }
    if len(one) != len(other):
        raise BadParameter(
            "two prompts of unequal length are not compared token by token",
            needed=f"{len(one)} tokens, as {one.text[:40]!r} has",
            found=f"{len(other)} tokens",
            where=other.text[:60],
            next_step="name spans to compare: spans={'subject': ('the cat', 'the dogs')}, or --span subject='the "
            "cat|the dogs'",
        )
    return {f"{k} {one.tokens[k]}": ([k], [k]) for k in range(len(one))}


def _positions(prompt: Prompt, part: str, name: str) -> list[int]:
    count = prompt.text.count(part) if part else 0
    start = prompt.text.find(part)
    offsets = prompt.encoded.offsets
    inside = (offsets[:, 0] < start + len(part)) & (offsets[:, 1] > start) & ~prompt.encoded.special
    if count != 1 or not inside.any():
        raise BadParameter(
            f"span {name} is not in the prompt exactly once",
            needed="a substring that occurs once",
            found=f"{part!r}, {count} times",
            where=prompt.text[:60],
        )
    return [int(k) for k in np.flatnonzero(inside)]


def differences(
    states: Mapping[str, tuple[Tensor, Tensor]], pairs: Mapping[str, tuple[Sequence[int], Sequence[int]]]
) -> list[dict[str, Any]]:
    """Return how far two prompts' states `(T, D)` are apart, for each site and pair of positions (the mean state of
    several): Euclidean distance, distance relative to the mean of both norms, and cosine.
    """
    found = []
    for site, (one, other) in states.items():
        for name, (a, b) in pairs.items():
            x, y = one[list(a)].double().mean(0), other[list(b)].double().mean(0)
            distance, scale = float((x - y).norm()), float(x.norm() + y.norm()) / 2
            relative = distance / scale if scale else 0.0
            cosine = float(_cosine(x[None], y[None])[0])
            found.append(
                {"site": site, "span": name, "distance": distance, "relative_distance": relative, "cosine": cosine}
            )
    return found
