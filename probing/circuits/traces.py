"""Holds pairs of prompts as tokens, and what a split model computed on them. S senders, B prompts of T tokens, D
width of the residual stream.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probing.circuits.graph import LOGITS, MLP
from probing.errors import BadParameter, CorpusError, NoBehaviour
from probing.models.language_model import LanguageModel
from probing.models.splitting import SplitModel
from probing.provenance import digest
from probing.use.behaviours._answers import ids_of
from probing.use.patching.prompt_pairs import ANSWER, OTHER, PromptPairs

Ints = NDArray[np.int64]
PAIR_TOKENS = 192  # of pairs whose senders' writes are in memory together


@dataclass(frozen=True, eq=False)
class TokenPairs:
    """Holds n pairs of prompts as tokens.

    Attributes:
        clean, corrupted: for each pair, the ids of its two prompts, which are equally many.
        answers: `(n, A)` what the metric of the pair reads: for language models the ids of the answer and of the
            corrupted answer.
        groups: `(n,)` what is resampled together, such as the template of a pair. Groups that hold the same two
            prompts, in either order, become one: copies are no new evidence.
        values: by name of a property, its values for the clean and the corrupted prompt of each pair.
        texts: the texts of the pairs, for messages; may be empty.
    """

    clean: Sequence[Sequence[int]]
    corrupted: Sequence[Sequence[int]]
    answers: NDArray[Any]
    groups: NDArray[Any]
    values: Mapping[str, tuple[Sequence[str], Sequence[str]]] = field(default_factory=dict)
    texts: Sequence[tuple[str, str]] = ()

    def __len__(self) -> int:
        return len(self.clean)

    def __post_init__(self) -> None:
        """Check the pairs, and join the groups of those that hold the same two prompts.

        Raises:
            BadParameter: a pair has prompts of different lengths or without tokens, numbers of pairs differ, or answers
                are not a table.
        """
        sizes = {len(self.clean), len(self.corrupted), len(self.answers), len(self.groups)}
        if len(sizes) > 1 or not len(self):
            raise BadParameter("pairs with parts missing", needed="equally many of each", found=str(sorted(sizes)))
        if np.ndim(self.answers) != 2:
            raise BadParameter(
                "answers are not a table",
                needed="an array (n, A): a row for each pair",
                found=f"shape {np.shape(self.answers)}",
                next_step="give answers[:, None] if the metric reads one number a pair",
            )
        check_prompts(self.clean, self.corrupted)
        object.__setattr__(self, "groups", _joined(self.groups, self.prompts))

    @property
    def prompts(self) -> list[frozenset[tuple[int, ...]]]:
        """The two prompts of each pair, without their order."""
        return [
            frozenset((tuple(map(int, a)), tuple(map(int, b)))) for a, b in zip(self.clean, self.corrupted, strict=True)
        ]

    @property
    def exchanges(self) -> int:
        """Number of different sets of tokens that pairs exchange, whichever of them is in the clean prompt."""
        found = set()
        for clean, corrupted in zip(self.clean, self.corrupted, strict=True):
            places = [k for k, (a, b) in enumerate(zip(clean, corrupted, strict=True)) if a != b]
            found.add(frozenset(tuple(int(one[k]) for k in places) for one in (clean, corrupted)))
        return len(found)

    @property
    def digests(self) -> list[str]:
        """A digest of the two prompts of each pair, without their order, by which pairs are known in other files."""
        return [digest(sorted(map(list, pair)))[:16] for pair in self.prompts]

    def chosen(self, rows: Ints) -> TokenPairs:
        """Return some of the pairs, by their indices."""
        take = [int(k) for k in rows]
        return TokenPairs(
            [self.clean[k] for k in take],
            [self.corrupted[k] for k in take],
            self.answers[take],
            self.groups[take],
            {name: ([a[k] for k in take], [b[k] for k in take]) for name, (a, b) in self.values.items()},
            [self.texts[k] for k in take] if self.texts else (),
        )

    def batches(self, most: int = PAIR_TOKENS) -> Iterator[Ints]:
        """Yield indices of pairs of one length, of at most `most` tokens together."""
        lengths = np.array([len(one) for one in self.clean])
        for length in np.unique(lengths).tolist():
            rows = np.flatnonzero(lengths == length)
            size = max(1, most // length)
            for start in range(0, len(rows), size):
                yield rows[start : start + size]


def check_prompts(clean: Sequence[Sequence[int]], corrupted: Sequence[Sequence[int]], source: str = "") -> None:
    """Check that every prompt has tokens, and both prompts of a pair equally many; `source` is named in messages.

    Raises:
        BadParameter: a prompt has none, or those of a pair differ in number.
    """
    place = f"{source}, pair" if source else "pair"
    empty = [k for k, one in enumerate(clean) if not len(one)]
    if empty:
        raise BadParameter(
            "a prompt without tokens", needed="one token or more", found="none", where=f"{place} {empty[0] + 1}"
        )
    uneven = [k for k, (a, b) in enumerate(zip(clean, corrupted, strict=True)) if len(a) != len(b)]
    if uneven:
        k = uneven[0]
        raise BadParameter(
            "pairs of unequal length have no edges in common",
            needed="a clean and a corrupted prompt with equally many tokens, in every pair",
            found=f"{len(clean[k])} and {len(corrupted[k])} tokens; {len(uneven)} such pairs",
            where=f"{place} {k + 1}",
            next_step="leave these pairs out, or change their words for some of equal length",
        )


def _joined(groups: NDArray[Any], keys: Sequence[Any]) -> NDArray[Any]:
    """Return groups of which those that have a key in common are one; as they are if none have."""
    codes = np.unique(groups, return_inverse=True)[1].reshape(-1).tolist()
    parents = list(range(max(codes) + 1))

    def root(code: int) -> int:
        while parents[code] != code:
            code = parents[code]
        return code

    first: dict[Any, int] = {}
    for code, key in zip(codes, keys, strict=True):
        parents[root(code)] = root(first.setdefault(key, code))
    if all(parent == code for code, parent in enumerate(parents)):
        return groups
    return np.array([root(code) for code in codes])


@dataclass(eq=False)
class Trace:
    """Holds what a model computed on prompts.

    Attributes:
        attention_inputs: `(B, T, D)` by block, what attention reads.
        mlp_inputs: the same of MLPs.
        z: `(B, T, H, E)` by block, outputs of heads.
        writes: `(S, B, T, D)` what senders wrote.
        end: `(B, T, D)` the last state of the residual stream.
    """

    attention_inputs: list[Tensor]
    mlp_inputs: list[Tensor]
    z: list[Tensor]
    writes: Tensor
    end: Tensor

    def detached(self) -> Trace:
        """Return the trace without what derivatives need."""
        reads, middles, zs = (
            [one.detach() for one in some] for some in (self.attention_inputs, self.mlp_inputs, self.z)
        )
        return Trace(reads, middles, zs, self.writes.detach(), self.end.detach())

    def inputs(self, layer: int, kind: str) -> Tensor:
        """Return what readers of a kind read, `(B, T, D)`."""
        if kind == LOGITS:
            return self.end
        return (self.mlp_inputs if kind == MLP else self.attention_inputs)[layer]


def trace(model: SplitModel, ids: Tensor, leaves: list[Tensor] | None = None) -> Trace:
    """Run prompts `(B, T)` part by part and return what was computed.

    Args:
        model: the model.
        ids: the prompts.
        leaves: a list to which zeros `(1, B, T, D)` are added, which were added to the input, and to what the attention
            and the MLP of each block write, so that derivatives by these can be taken.
    """

    def with_leaf(x: Tensor) -> Tensor:
        if leaves is None:
            return x
        leaves.append(torch.zeros_like(x)[None].requires_grad_())
        return x + leaves[-1][0]

    x = with_leaf(model.embed(ids))
    reads, middles, zs, writes = [], [], [], [x[None]]
    for number, layer in enumerate(model.layers):
        reads.append(x)
        middle, z = x, x.new_zeros((*x.shape[:2], 0, 0))
        if layer.heads:
            z = model.heads(number, x[None], x[None], x[None])
            writes.append(model.write(number, z))
            middle = with_leaf(x + model.attention(number, z))
        zs.append(z)
        middles.append(x if model.is_parallel else middle)
        if layer.has_mlp:
            written = model.mlp(number, middles[-1])
            writes.append(written[None])
            middle = with_leaf(middle + written)
        x = middle
    return Trace(reads, middles, zs, torch.cat(writes), x)


class Means:
    """Gives the mean of what was computed over prompts, at tokens counted from the end of a prompt: another corruption
    than that of the corrupted prompts.
    """

    def __init__(self, model: SplitModel, prompts: Sequence[Sequence[int]]) -> None:
        """Run all prompts, and add up what was computed at each token from the end."""
        self._sums: dict[tuple[str, int], Tensor] = {}
        lengths = np.array([len(one) for one in prompts])
        self._counts = np.array([(lengths > place).sum() for place in range(lengths.max())])
        for length in np.unique(lengths).tolist():
            rows, size = np.flatnonzero(lengths == length), max(1, 2 * PAIR_TOKENS // length)
            for start in range(0, len(rows), size):
                ids = torch.tensor([list(prompts[k]) for k in rows[start : start + size]])
                for name, value in _parts(trace(model, ids)).items():
                    self._add(name, value.sum(1 if name[0] == "writes" else 0))

    def _add(self, name: tuple[str, int], value: Tensor) -> None:
        known = self._sums.get(name)
        axis = 1 if name[0] == "writes" else 0
        if known is not None:
            long, short = (known, value) if known.shape[axis] >= value.shape[axis] else (value, known)
            total = long.clone()
            total.narrow(axis, long.shape[axis] - short.shape[axis], short.shape[axis]).add_(short)
            value = total
        self._sums[name] = value

    def trace(self, like: Trace) -> Trace:
        """Return the means in the shape of a trace of `B` prompts; tokens that are further from the end than any token
        that means are of get those of the furthest.
        """
        length = like.end.shape[1]
        known = min(length, len(self._counts))
        counts = torch.tensor(self._counts[:known][::-1].copy(), dtype=like.end.dtype, device=like.end.device)
        found: dict[tuple[str, int], Tensor] = {}
        for name, value in _parts(like).items():
            axis = 1 if name[0] == "writes" else 0
            total = self._sums[name]
            mean = total.narrow(axis, total.shape[axis] - known, known)
            mean = mean / counts.reshape([-1 if k == axis else 1 for k in range(mean.ndim)])
            first = mean.narrow(axis, 0, 1)
            mean = torch.cat([*[first] * (length - known), mean], axis)
            found[name] = mean.unsqueeze(axis).expand(value.shape)
        depth = range(len(like.z))
        attention, mlp, z = ([found[kind, k] for k in depth] for kind in ("attention", "mlp", "z"))
        return Trace(attention, mlp, z, found["writes", 0], found["end", 0])


def _parts(one: Trace) -> dict[tuple[str, int], Tensor]:
    lists = {"attention": one.attention_inputs, "mlp": one.mlp_inputs, "z": one.z}
    found = {(kind, k): value for kind, values in lists.items() for k, value in enumerate(values)}
    return found | {("writes", 0): one.writes, ("end", 0): one.end}


def read_token_pairs(model: LanguageModel, source: str, group: str | None, properties: Sequence[str]) -> TokenPairs:
    """Read pairs of prompts with answers from a file and return them as tokens.

    Args:
        model: the model, whose tokenizer is used.
        source: file with the columns clean, corrupted, answer and corrupted_answer.
        group: column whose equal values form a group; None: each pair is one.
        properties: columns with a property of the clean prompt; `corrupted_NAME` has that of the corrupted prompt.

    Raises:
        CorpusError: the file is malformed, or a column is missing.
        NoBehaviour: there are no answers, or an answer is not a single token.
        BadParameter: prompts of a pair have different numbers of tokens.
    """
    read = PromptPairs.read(source)
    if not read.answers:
        raise NoBehaviour(
            "a circuit needs answers",
            needed=f"columns {ANSWER} and {OTHER}, one token each",
            found="none",
            where=source,
            next_step="add the columns: the metric is the logit of one less that of the other",
        )
    ids = {
        answer: of[0] for answer, of in zip(read.alternatives, ids_of(model.tokenizer, read.alternatives), strict=True)
    }
    encoded = model.encode([example.text for example in read.corpus.examples])
    examples, count = read.corpus.examples[: len(read)], len(read)
    prompts = [[int(i) for i in one.ids] for one in encoded]
    check_prompts(prompts[:count], prompts[count:], source)

    def column(name: str) -> list[str]:
        missing = [k for k, one in enumerate(examples) if one.columns.get(name) is None]
        if missing:
            known = sorted({key for one in examples for key in one.columns})
            raise CorpusError(
                f"no column {name!r}, or no value in it",
                needed=f"a value of {name} in every pair",
                found=f"none in pair {missing[0] + 1}; columns: {', '.join(known)}",
                where=source,
            )
        return [str(one.columns[name]) for one in examples]

    groups = np.arange(count) if group is None else np.array(column(group))
    answers = np.array([[ids[answer], ids[other]] for answer, other in read.answers])
    values = {name: (column(name), column(f"corrupted_{name}")) for name in properties}
    texts = [(one.text, other.text) for one, other in zip(examples, read.corpus.examples[count:], strict=True)]
    return TokenPairs(prompts[:count], prompts[count:], answers, groups, values, texts)
