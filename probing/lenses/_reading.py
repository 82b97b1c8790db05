"""Reads the rows of a corpus at sites, and states as outputs through the model's own end. N rows, D width, V ids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probing.errors import BadParameter, CorpusError, UnsupportedModel
from probing.models.batching import PaddedBatch, ParallelBatches, length_sorted_batches
from probing.models.cpu_speed import packed_linear_layers
from probing.models.language_model import LanguageModel
from probing.models.site import Site, select_sites
from probing.seeds import generator
from probing.text.alignment import Encoded
from probing.text.corpus import Corpus

Ints = NDArray[np.int64]

TOKENS_PER_BATCH = 2048
CHUNK_BYTES = 32 << 20  # of the outputs of one chunk of rows at one site: what a processor's cache may hold
IDENTITY = 1e-4  # largest difference at the last site, in standard deviations of a row's outputs
_HALF = 5e-2  # the same in half precision
_LOWEST = -1e30  # in place of the outputs that a model sets to minus infinity, whose probability is 0
_GROUP = 4  # rows whose columns are computed together: their outputs stay in the cache of a core
_BLOCK = 256  # texts that are tokenised together


@dataclass(frozen=True, eq=False)
class TokenRows:
    """Holds the rows of a lens: N tokens at which a model predicts, and what is true there.

    Attributes:
        inputs: the inputs of the model.
        input: `(N,)` index in `inputs`.
        place: `(N,)` index of the token in its input.
        target: `(N,)` vocabulary id of the true token: the next one, or for masked models the one behind the mask.
        target_bytes: `(N,)` bytes of UTF-8 that the true token adds to the text.
        example: `(N,)` ordinal of the text in the corpus.
        group: `(N,)` code of the cluster: the document, and all copies of a text.
    """

    inputs: tuple[Encoded, ...]
    input: Ints
    place: Ints
    target: Ints
    target_bytes: Ints
    example: Ints
    group: Ints

    def __len__(self) -> int:
        return len(self.target)

    def batches(self, tokens_per_batch: int = TOKENS_PER_BATCH) -> Iterator[tuple[list[int], Ints]]:
        """Yield batches of inputs as indices, each with the indices of its rows, grouped by input in that order."""
        order = np.argsort(self.input, kind="stable")
        first = np.searchsorted(self.input[order], np.arange(len(self.inputs) + 1))
        for batch in length_sorted_batches([len(one) for one in self.inputs], tokens_per_batch):
            yield batch, np.concatenate([order[first[i] : first[i + 1]] for i in batch])

    def first(self, count: int) -> Self:
        """Return the rows of the first inputs, as many as have `count` rows or a little more."""
        many = int(self.input[min(count, len(self)) - 1]) + 1
        chosen = np.flatnonzero(self.input < many)
        arrays = {name: getattr(self, name)[chosen] for name in _ARRAYS}
        return replace(self, inputs=self.inputs[:many], **arrays)


_ARRAYS = ("input", "place", "target", "target_bytes", "example", "group")


def token_rows(
    model: LanguageModel, corpus: Corpus, *, split: str | None, max_rows: int, skip: int, max_length: int, seed: int
) -> TokenRows:
    """Choose texts at random until they have `max_rows` rows, and return these rows.

    For a causal model a row is every token of a text that another one follows, but the first `skip`. For a masked model
    it is one token of each text, chosen at random among all of its own, in whose place the input has the mask.

    Raises:
        CorpusError: there is no such row.
        BadParameter: the tokenizer of a masked model has no mask.
    """
    chosen = [i for i, one in enumerate(corpus.examples) if split is None or one.split == split]
    order = generator(seed, "lens texts", split or "").permutation(np.array(chosen, dtype=np.int64))
    limit = min(max_length, model.max_length or max_length)
    mask = mask_id(model) if model.suffix.head == "masked" else None
    inputs: list[Encoded] = []
    rows: list[tuple[Ints, ...]] = []
    count = 0
    for begin in range(0, len(order), _BLOCK):
        block = order[begin : begin + _BLOCK].tolist()
        for i, whole in zip(block, model.encode([corpus.examples[i].text for i in block]), strict=True):
            one = whole.truncated(limit)
            place, target = _places(one, skip, mask, generator(seed, "lens mask", int(i)))
            if not len(place) or count >= max_rows:
                continue
            taken = _bytes(corpus.examples[i].text, one)[target]
            ids = one.ids[target]
            one = (
                one if mask is None else replace(one, ids=np.where(np.isin(np.arange(len(one)), place), mask, one.ids))
            )
            same = np.full(len(place), i, dtype=np.int64)
            rows.append((np.full_like(same, len(inputs)), place, ids, taken, same, corpus.units[same]))
            inputs.append(one)
            count += len(place)
        if count >= max_rows:
            break
    if not rows:
        raise _no_rows(corpus, split, len(chosen), 0 if mask is not None else skip + 1, limit)
    return TokenRows(tuple(inputs), *(np.concatenate(part) for part in zip(*rows, strict=True)))


def _no_rows(corpus: Corpus, split: str | None, texts: int, few: int, limit: int) -> CorpusError:
    """Return the error for a corpus without rows: it lacks the split, or texts or inputs are too short."""
    splits = ", ".join(dict.fromkeys(one.split or "(none)" for one in corpus.examples))
    found, step = f"{texts} texts, none so long", "give longer texts, or a smaller skip"
    if not texts and split is not None:
        found, step = f"no text of {split}; splits: {splits}", f"give a corpus with the split {split}, or another split"
    elif limit <= few:
        found, step = f"inputs of at most {limit} tokens (max_length)", "give a larger max_length, or a smaller skip"
    return CorpusError(
        "there is no token whose output can be read",
        needed=f"texts of {split or 'any split'} with more than {few} tokens",
        found=found,
        where=corpus.source,
        next_step=step,
    )


def mask_id(model: LanguageModel) -> int:
    """Return the id of the mask.

    Raises:
        BadParameter: the tokenizer has no mask.
    """
    value = model.tokenizer.mask_token_id
    if value is None:
        raise BadParameter(
            "this tokenizer has no mask",
            needed="a mask token, in whose place a masked model predicts",
            found="none",
            where=model.name,
            next_step="use the tokenizer that the model was trained with",
        )
    return int(value)


def _places(one: Encoded, skip: int, mask: int | None, random: np.random.Generator) -> tuple[Ints, Ints]:
    """Return the places of an input at which it is read, and those of the true tokens."""
    own = np.flatnonzero(~one.special)
    if mask is not None:
        place = random.choice(own, 1) if len(own) else own
        return place, place
    target = own[own > skip]
    return target - 1, target


def _bytes(text: str, one: Encoded) -> Ints:
    """Return how many bytes each token adds to the text, `(T,)`; white space before a token is part of it."""
    ends = np.maximum.accumulate(np.concatenate([[0], one.offsets[:, 1]]))
    return np.array([len(text[a:b].encode()) for a, b in pairwise(ends.tolist())], dtype=np.int64)


def parts(indices: Tensor, size: int) -> list[Tensor]:
    """Return rows (or their indices) in pieces of at most `size`."""
    return [indices[at : at + size] for at in range(0, len(indices), size)]


class Tail:
    """Reads states as outputs through the model's own end: all that the model does after its last block.

    The states are put in as `resid.L`, and the model itself gives the outputs; so whatever a family does there (a
    final norm, a transformation, a scale, a cap) is done as the model does it.

    Attributes:
        model: the model.
        sites: all sites `resid.l`, of which the last is `resid.L`.
        site: the last of them.
        chunk: number of rows whose outputs are computed together.
    """

    def __init__(self, model: LanguageModel) -> None:
        if model.suffix.head is None:
            raise UnsupportedModel(
                "a lens needs an output head",
                needed="a causal or masked language model",
                found=f"{type(model.suffix.model).__name__}, without a head over the vocabulary",
                where=model.name,
                next_step="load a model that was saved with its head, or with kind='causal' or kind='masked'",
            )
        self.model = model
        self.sites = resid_sites(model)
        self.site = self.sites[-1]
        self.layer = model.suffix.layer(self.site)
        self._id = 11 % model.suffix.trunk.vocabulary
        self._has_gaps = False
        self._inputs: dict[int, PaddedBatch] = {}
        first = self.logits(torch.zeros((1, model.width(self.site)), dtype=self.dtype, device=model.device))
        self.vocabulary = first.shape[-1]
        self.chunk = max(1, CHUNK_BYTES // (4 * self.vocabulary))

    @property
    def dtype(self) -> torch.dtype:
        """Data type that the model computes in."""
        return self.model.suffix.trunk.dtype

    def logits(self, states: Tensor) -> Tensor:
        """Return the outputs `(N, V)`, float32, for states `(N, D)` put in as `resid.L`; gradients flow to states that
        require them.
        """
        given = states.to(self.model.device, self.dtype)[:, None]
        outputs = self.model.run_from(self.site, given, self._batch(len(given)))[:, 0].float()
        return outputs.clamp_min(_LOWEST) if self._has_gaps else outputs

    def _batch(self, count: int) -> PaddedBatch:
        """Return inputs of one token each: the blocks that would read them do not run."""
        if count not in self._inputs:
            ids = torch.full((count, 1), self._id, device=self.model.device)
            self._inputs = {count: self.model.suffix.padded(ids, torch.ones_like(ids))}
        return self._inputs[count]

    def check(self, batch: Sequence[Encoded]) -> float:
        """Compare the outputs for states at the last site with those of a full pass over a batch, and return the
        largest difference, in standard deviations of the outputs of its row.

        Raises:
            UnsupportedModel: the difference is above 1e-4 (0.05 in half precision).
        """
        inputs = self.model.padded(batch)
        states, outputs = self.model.suffix.read(inputs, [self.site])
        assert outputs is not None  # the model has a head
        real = inputs.mask.bool()
        expected, rows = outputs[real].float(), states[self.site][real]
        self._has_gaps = not bool(torch.isfinite(expected).all())
        with torch.inference_mode():
            same = torch.cat([self.logits(part) for part in parts(rows, self.chunk)])
        expected = expected.clamp_min(_LOWEST) if self._has_gaps else expected
        drawn = torch.where(expected > _LOWEST, expected, torch.nan)
        centre = drawn.nanmean(-1, keepdim=True)
        spread = (drawn - centre).square().nanmean(-1).sqrt().clamp_min(1e-30)
        worst = float(((same - expected).abs().amax(-1) / spread).max())
        limit = IDENTITY if self.dtype in (torch.float32, torch.float64) else _HALF
        if not worst <= limit:
            raise UnsupportedModel(
                f"models of the family {self.model.suffix.trunk.family!r} have no lens: their end reads more than the "
                f"state of a token at {self.site}",
                needed=f"the model's own outputs from the states at {self.site}, up to {limit:g} of their spread",
                found=f"a difference of {worst:.2g} of the spread",
                where=self.model.name,
                next_step="choose another model",
            )
        return worst


def resid_sites(model: LanguageModel) -> tuple[str, ...]:
    """Return the sites `resid.l` of a model, in order."""
    return tuple(site for site in model.sites if Site.parse(site).stream == "resid")


def lens_sites(tail: Tail, patterns: str | Sequence[str]) -> tuple[str, ...]:
    """Return the sites `resid.l` that match patterns.

    Raises:
        UnknownSite: a pattern matches none.
        UnsupportedModel: states at a site have another width than at the last one.
    """
    sites = select_sites(patterns, tail.sites)
    widths = {site: tail.model.width(site) for site in (*sites, tail.site)}
    if other := [site for site in sites if widths[site] != widths[tail.site]]:
        raise UnsupportedModel(
            "a lens reads states of one width",
            needed=f"{widths[tail.site]} features, as at {tail.site}",
            found=f"{widths[other[0]]} at {other[0]}",
            where=tail.model.name,
            next_step="leave these sites out",
        )
    return sites


@contextmanager
def fast(model: LanguageModel) -> Iterator[None]:
    """Within the block, no gradients are computed, and the layers of the head, by far the most work, are packed."""
    trunk = model.suffix.trunk.trunk
    with torch.inference_mode(), ExitStack() as stack:
        for child in model.suffix.model.children():
            if child is not trunk:
                stack.enter_context(packed_linear_layers(child))
        yield


def states_of(
    model: LanguageModel, rows: TokenRows, sites: Sequence[str], tokens_per_batch: int = TOKENS_PER_BATCH
) -> Iterator[tuple[Ints, dict[str, Tensor]]]:
    """Yield, batch by batch, indices of rows `(n,)` and their states by site, `(n, D)` in the compute dtype."""
    for batch, members in rows.batches(tokens_per_batch):
        given = [rows.inputs[i] for i in batch]
        index = {i: k for k, i in enumerate(batch)}
        line = np.array([index[i] for i in rows.input[members].tolist()], dtype=np.int64)
        column = rows.place[members] + model.first_piece(given)[line]
        states = model.states(given, sites)
        at = torch.from_numpy(line).to(model.device), torch.from_numpy(column).to(model.device)
        yield members, {site: states[site][at] for site in sites}


QUANTITIES: Mapping[str, str] = {
    "kl": "bits",
    "kl_reverse": "bits",
    "cross_entropy": "bits",
    "entropy": "bits",
    "agreement": "fraction",
    "rank_of_final": "rank",
    "rank_of_true": "rank",
}
_BITS = 1.0 / float(np.log(2.0))


def _log_softmax(logits: Tensor) -> Tensor:
    """Return log probabilities `(n, V)` in float32 that sum to 1. Those of `torch.log_softmax` are off by 1e-5 for
    50,000 tokens, and a KL of 20 bits of them by 2e-4.
    """
    shifted = logits - logits.max(-1, keepdim=True).values
    return shifted - shifted.exp().sum(-1, keepdim=True).log()


class FinalOutputs:
    """Holds the model's own outputs of n rows, with which those of lenses are compared.

    Attributes:
        log_p: `(n, V)` log probabilities.
        p: `(n, V)` probabilities.
        top: `(n,)` the most probable token.
    """

    def __init__(self, logits: Tensor, true: Tensor) -> None:
        self.log_p = _log_softmax(logits)
        self.p = self.log_p.exp()
        self.top = logits.argmax(-1)
        self._true = true
        self._own = (self.p * self.log_p).sum(-1)

    def kl(self, logits: Tensor) -> Tensor:
        """Return KL(p ‖ q) in bits for the outputs `(n, V)` of a lens, `(n,)`."""
        return (self._own - (self.p * _log_softmax(logits)).sum(-1)) * _BITS

    def compare(self, logits: Tensor, lanes: ParallelBatches) -> dict[str, Tensor]:
        """Return the columns of `QUANTITIES` for the outputs `(n, V)` of a lens, each `(n,)`.

        With p the probabilities of the model and q those of the lens: KL(p‖q) = Σ p (log p − log q), its reverse
        KL(q‖p), the cross-entropy −log q of the true token and the entropy of q, all in bits; whether the most probable
        token is the model's; and 1 + the number of tokens that q makes more probable than that token, and than the
        true one.
        """
        cuts = torch.arange(len(logits)).chunk(lanes.count)
        parts = list(lanes.map(lambda rows: self._compare(logits, int(rows[0]), int(rows[-1]) + 1), cuts))
        return {name: torch.cat([part[name] for part in parts]) for name in QUANTITIES}

    def _compare(self, logits: Tensor, begin: int, end: int) -> dict[str, Tensor]:
        """Return the columns of some rows, a few rows at a time: they stay in the cache from one sum to the next."""
        groups = [self._columns(logits, slice(at, min(at + _GROUP, end))) for at in range(begin, end, _GROUP)]
        return {name: torch.cat([group[name] for group in groups]) for name in QUANTITIES}

    def _columns(self, outputs: Tensor, rows: slice) -> dict[str, Tensor]:
        logits = outputs[rows]
        high, best = logits.max(-1, keepdim=True)
        top, true = self.top[rows, None], self._true[rows, None]
        of_top, of_true = logits.gather(1, top), logits.gather(1, true)
        shifted = torch.sub(logits, high)  # small numbers, so that sums of them are exact enough
        weights = shifted.exp()
        total = weights.sum(-1)
        scale = total.log()  # log of the sum over the vocabulary
        work = weights * shifted
        mean = work.sum(-1) / total
        against = torch.mul(weights, self.log_p[rows], out=work).sum(-1) / total
        expected = torch.mul(self.p[rows], shifted, out=work).sum(-1)
        ranks = [1.0 + work.copy_(logits).gt_(level).sum(-1) for level in (of_top, of_true)]
        return {
            "kl": (self._own[rows] - expected + scale) * _BITS,
            "kl_reverse": (mean - scale - against) * _BITS,
            "cross_entropy": (scale + (high - of_true)[:, 0]) * _BITS,
            "entropy": (scale - mean) * _BITS,
            "agreement": (best == top)[:, 0].float(),
            "rank_of_final": ranks[0],
            "rank_of_true": ranks[1],
        }


def final_outputs(tail: Tail, states: Tensor, target: NDArray[Any]) -> FinalOutputs:
    """Return the model's own outputs of rows, from their states `(n, D)` at the last site."""
    return FinalOutputs(tail.logits(states), torch.from_numpy(np.asarray(target)).to(tail.model.device))
