"""Checks heads by replacing them: how far the model's output moves when a head's pattern, or its output, is replaced.

A pattern whose replacement changes nothing explains nothing about these outputs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probing.files.whole_files import read_sealed, sealed, write_atomically
from probing.inspecting.prompts import Prompt, batches
from probing.inspecting.reading import Read, Reader, mixed
from probing.models.batching import PaddedBatch
from probing.models.cpu_speed import packed_linear_layers
from probing.provenance import digest
from probing.results.inspection import EQUAL
from probing.seeds import generator
from probing.use.edited_models._running import changing

Floats = NDArray[np.float64]

NOTHING = "nothing"  # the pattern replaced by itself: the output must not change
_FORM = 2  # of the units: an undefined effect is NaN
_ROWS = 1024  # tokens of all variants that run at once
_NUMBERS = 1 << 26  # outputs that are held at once


@dataclass
class HeadMeans:
    """Collects the mean output of every head, and its mean pattern by position.

    Attributes:
        sums: by layer, the sum of the outputs `(H, d)`.
        tokens: number of tokens.
        patterns: by layer, the sum of the patterns `(H, T, T)` of the longest text so far.
        texts: `(T,)` number of texts that have a query at each position.
        different: the texts, as bytes of their token ids, with their lengths: equal ones are there once.
    """

    sums: dict[int, Tensor] = field(default_factory=dict)
    tokens: int = 0
    patterns: dict[int, Tensor] = field(default_factory=dict)
    texts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    different: dict[bytes, int] = field(default_factory=dict)

    def add(self, read: Read) -> None:
        """Add a batch whose patterns and values were read."""
        count, length = len(read.prompts), len(read.prompts[0])
        self.tokens += count * length
        self.different |= {prompt.encoded.ids.tobytes(): length for prompt in read.prompts}
        texts = np.zeros(max(length, len(self.texts)), dtype=np.int64)
        texts[: len(self.texts)] += self.texts
        texts[:length] += count
        self.texts = texts
        for layer, pattern in read.patterns.items():
            output = mixed(pattern, read.values[layer]).double().sum((0, 1))
            self.sums[layer] = self.sums[layer] + output if layer in self.sums else output
            before = self.patterns.get(layer)
            whole = pattern.new_zeros((pattern.shape[1], len(texts), len(texts)), dtype=torch.float64)
            if before is not None:
                whole[:, : before.shape[1], : before.shape[1]] += before
            whole[:, :length, :length] += pattern.double().sum(0)
            self.patterns[layer] = whole

    def output(self, layer: int) -> Tensor:
        """Return the mean output of the heads of a layer, `(H, d)`."""
        return self.sums[layer] / self.tokens

    def pattern(self, layer: int, length: int) -> Tensor:
        """Return the mean pattern of the heads of a layer at the first positions, `(H, T, T)`: for each query, over the
        texts that are long enough to have it.
        """
        texts = torch.from_numpy(self.texts[:length]).to(self.patterns[layer].device)
        return self.patterns[layer][:, :length, :length] / texts[None, :, None]


@dataclass(frozen=True)
class HeadCheck:
    """Replaces every head in every way and measures the change of the output.

    Attributes:
        reader: the reader, whose attention is found.
        means: means over all texts.
        replacements: ways to replace a head, of `REPLACEMENTS` or `NOTHING`.
        draws: number of permutations that are averaged.
        seed: seed of the permutations.
    """

    reader: Reader
    means: HeadMeans
    replacements: tuple[str, ...]
    draws: int = 1
    seed: int = 0

    def run(
        self,
        prompts: Sequence[Prompt],
        *,
        folder: Path | None = None,
        identity: Any = None,
        advance: Callable[[int, int], None] | None = None,
        tokens: int = 512,
    ) -> Floats:
        """Return the KL divergence of the output in bits, `(N, R, L, H, 2)`: for each prompt, replacement, layer and
        head, its mean over the tokens and its value at the last token; NaN where there is nothing to replace.

        Args:
            prompts: the prompts, numbered from 0.
            folder: where the results of a batch and layer are kept, so that a killed run goes on; None: nowhere.
            identity: what else determines the results, for the names of these files.
            advance: called with the numbers of heads checked and to be checked.
            tokens: largest number of tokens of a batch of texts.
        """
        layers, n_heads = self.reader.layers, self.reader.n_heads
        found = np.full((len(prompts), len(self.replacements), len(layers), n_heads, 2), np.nan)
        todo, done = list(batches(prompts, tokens)), 0
        with packed_linear_layers(self.reader.trunk.model):
            for batch in todo:
                numbers, read = [prompt.number for prompt in batch], _Once(self.reader, batch, layers)
                for k, layer in enumerate(layers):
                    unit = digest([_FORM, identity, self.replacements, self.draws, self.seed, layer, numbers])
                    found[numbers, :, k] = _committed(folder, unit, partial(self._measured, read, layer))
                    done += 1
                    if advance is not None:
                        advance(done * n_heads, len(todo) * len(layers) * n_heads)
        return found

    def _measured(self, read: Callable[[], Read], layer: int) -> Floats:
        return self.of_layer(read(), layer)

    def of_layer(self, read: Read, layer: int) -> Floats:
        """Return the KL divergences of a batch of B prompts for the heads of one layer, `(B, R, H, 2)`."""
        batch, length = read.inputs.ids.shape
        n_heads, kinds = self.reader.n_heads, [r for r in self.replacements for _ in range(self._draws_of(r))]
        outputs = [z for replacement in self.replacements for z in self._replaced(read, layer, replacement)]
        assert read.logits is not None  # for the reader of types: `check_running` came first
        clean = read.logits.float().log_softmax(-1)
        vocabulary = clean.shape[-1]
        rows = max(1, min(_ROWS, _NUMBERS // vocabulary) // (batch * length))
        variants = [(k, head) for k in range(len(kinds)) for head in range(n_heads)]
        found = np.zeros((len(kinds), n_heads, batch, 2))
        for first in range(0, len(variants), rows):
            some = variants[first : first + rows]
            changed = torch.stack([outputs[k][:, :, head] for k, head in some])  # (C, B, T, d)
            logits = self._run(read, layer, [head for _, head in some], changed)
            for (k, head), one in zip(some, logits.view(len(some), batch, length, vocabulary), strict=True):
                bits = _kl(clean, one.float()).cpu().numpy()
                found[k, head] = np.stack([bits.mean(1), bits[:, -1]], 1)
        together = [found[[k for k, kind in enumerate(kinds) if kind == r]].mean(0) for r in self.replacements]
        for k, replacement in enumerate(self.replacements):
            if not self._is_defined(read, layer, replacement):
                together[k] = np.full_like(together[k], np.nan)
        return np.stack(together).transpose(2, 0, 1, 3)

    def _is_defined(self, read: Read, layer: int, replacement: str) -> bool:
        """Return whether the replacement of a head can differ from the head: some query has two keys, to permute two
        keys other than token 0, for a mean pattern another text as long; for a mean output there is a second token.
        """
        allowed = read.allowed(layer, self.reader.window)
        if replacement == NOTHING:
            return True
        if replacement == "mean_output":
            return self.means.tokens > 1
        if replacement == "permuted":
            return bool((allowed[:, 1:].sum(1) > 1).any())
        has_choice = allowed.sum(1) > 1
        if replacement == "position_mean":
            length = np.arange(len(allowed))[:, None] < np.array(list(self.means.different.values()))
            has_choice &= length.sum(1) > 1
        return bool(has_choice.any())

    def _draws_of(self, replacement: str) -> int:
        return self.draws if replacement == "permuted" else 1

    def _run(self, read: Read, layer: int, heads: Sequence[int], changed: Tensor) -> Tensor:
        """Return the outputs of C variants of a batch, `(C B, T, V)`: variant c has head `heads[c]` replaced."""
        count, batch = changed.shape[:2]
        length, size = read.inputs.ids.shape[1], self.reader.size
        model = self.reader.model
        states = read.states[f"resid.{layer}"].repeat(count, 1, 1)
        of_row = torch.tensor(heads, device=states.device).repeat_interleave(batch)
        inputs = PaddedBatch(read.inputs.ids.repeat(count, 1), read.inputs.mask.repeat(count, 1), None)
        rows = torch.arange(count * batch, device=states.device)

        def change(output: Tensor) -> Tensor:
            edited = output.clone().view(count * batch, length, self.reader.n_heads, size)
            edited[rows, :, of_row] = changed.flatten(0, 1).to(edited.dtype)
            return edited.view(output.shape)

        site = f"heads.{layer}"
        with torch.inference_mode(), changing(model, site, change, (count * batch, length)):
            return model.run_from(f"resid.{layer}", states, inputs)

    def _replaced(self, read: Read, layer: int, replacement: str) -> list[Tensor]:
        """Return the outputs of all heads with each replaced, `(B, T, H, d)`: one for each draw."""
        pattern, values = read.patterns[layer], read.values[layer]
        if replacement == "mean_output":
            return [self.means.output(layer).to(values.dtype).expand(values.shape)]
        if replacement == NOTHING:
            return [mixed(pattern, values)]
        allowed = read.allowed(layer, self.reader.window)
        mass = pattern.sum(-1, keepdim=True)  # below 1 where a head may also attend to nothing
        if replacement == "permuted":
            draws = (self._permuted(read, layer, allowed, draw) for draw in range(self.draws))
            return [mixed(one, values) for one in draws]
        flat = torch.from_numpy(allowed).to(pattern.device, pattern.dtype)
        flat = flat / flat.sum(1, keepdim=True)
        if replacement == "uniform":
            return [mixed(mass * flat, values)]
        mean = self.means.pattern(layer, pattern.shape[-1]).to(pattern.dtype) * (flat > 0)
        total = mean.sum(-1, keepdim=True)
        mean = torch.where(total > 0, mean / total.clamp(min=1e-30), flat)
        return [mixed(mass * mean, values)]

    def _permuted(self, read: Read, layer: int, allowed: NDArray[np.bool_], draw: int) -> Tensor:
        """Return the patterns `(B, H, T, T)` with each query's weights on its allowed keys other than token 0 in random
        order.
        """
        pattern = read.patterns[layer]
        is_moved = allowed.copy()
        is_moved[:, 0] = False
        order = np.empty(pattern.shape, dtype=np.int64)
        for b, prompt in enumerate(read.prompts):
            random = generator(self.seed, "permuted", prompt.number, layer, draw).random(pattern.shape[1:])
            order[b] = _orders(random, is_moved)
        return pattern.gather(-1, torch.from_numpy(order).to(pattern.device))


def _orders(random: Floats, is_moved: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return, for every query, which key's weight each key gets, `(H, T, T)`: keys that are moved exchange theirs by
    the order of the random numbers, others keep their own.
    """
    length = random.shape[-1]
    found = np.broadcast_to(np.arange(length), random.shape).copy()
    for query in range(length):
        keys = np.flatnonzero(is_moved[query])
        found[:, query, keys] = keys[np.argsort(random[:, query, keys], axis=-1)]
    return found


def _kl(clean: Tensor, logits: Tensor) -> Tensor:
    """Return KL(clean ‖ other) in bits at each token, `(B, T)`, from log probabilities and logits `(B, T, V)`."""
    other = logits.log_softmax(-1)
    nats: Tensor = (clean.exp() * (clean - other)).sum(-1)
    return nats.clamp(min=0) / math.log(2.0)


class _Once:
    """Reads a batch when it is first asked for: a run that goes on reads nothing that it need not."""

    def __init__(self, reader: Reader, batch: Sequence[Prompt], layers: Sequence[int]) -> None:
        self._reader, self._batch = reader, batch
        self._sites = [f"resid.{layer}" for layer in layers]
        self._read: Read | None = None

    def __call__(self) -> Read:
        """Return what the pass over the batch gave."""
        if self._read is None:
            self._read = self._reader.read(self._batch, self._sites)
        return self._read


def _committed(folder: Path | None, unit: str, compute: Callable[[], Floats]) -> Floats:
    """Return numbers from their file in `folder` if they were written there, else compute and write them."""
    file = None if folder is None else folder / "units" / f"inspect-{unit[:32]}.json"
    known = None if file is None else read_sealed(file)
    if known is not None:
        return np.array(json.loads(known), dtype=np.float64)
    found = compute()
    if file is not None:
        write_atomically(file, sealed(json.dumps(found.tolist())))
    return found


def rounding_of(dtype: torch.dtype) -> float:
    """Return the KL divergence in bits below which an effect is not told from rounding: of logits in float32 1e-5, in
    half precision the distance of 1 from the next number.
    """
    return max(1e-5, torch.finfo(dtype).eps)


def disagreement(scores: Mapping[str, Floats], effect: Floats, rounding: float = 0.0) -> dict[str, Any]:
    """Return how often a head with a striking pattern has little effect: of the heads in the top decile of each score
    and above its median, and of any, the number whose effect is below the median effect of all heads. Where no effect
    is defined or above `rounding`, nothing can be counted, and the result is empty.

    Args:
        scores: scores of the heads, `(L, H)`, by name; NaN is in no decile.
        effect: `(L, H)` effects; NaN is that of no head.
        rounding: effects up to it are as good as 0.
    """
    known = np.isfinite(effect)
    if not (effect[known] > rounding).any():
        return {}
    below = known & (effect < np.median(effect[known]))
    striking = {
        name: known & (score >= np.nanquantile(score, 0.9)) & (score > np.nanmedian(score) + EQUAL)
        for name, score in scores.items()
        if np.isfinite(score).any()
    }
    if not striking:
        return {}
    either = np.any(list(striking.values()), axis=0)
    return {
        name: {"striking": int(of.sum()), "below_median": int((of & below).sum())}
        for name, of in (striking | {"any": either}).items()
    }
