"""TextRows: the rows of an instrument and the pieces they cover; Sequences: the batches they are run in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probing.errors import BadParameter, DegenerateDesign, unknown_name
from probing.models.batching import PaddedBatch, length_sorted_batches
from probing.models.language_model import LanguageModel
from probing.seeds import generator
from probing.text.alignment import Encoded, word_rows
from probing.text.corpus import Corpus, Example
from probing.text.positions import Position, check_spans, position_rows

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class TextRows:
    """Rows of an instrument: N rows of E examples.

    Attributes:
        encoded: the examples, as the model reads them.
        example: `(N,)` which of them.
        ordinal: `(N,)` which of the corpus.
        word: `(N,)` which word of the example; -1 where rows are examples.
        pieces: N arrays of pieces by position.
        groups, types: `(N,)` codes of documents (or groups; copies of a text are in one), and of word types or texts.
        labels: `(N,)` labels by column.
        excluded: rows left out, by reason.
    """

    encoded: tuple[Encoded, ...]
    example: Ints
    ordinal: Ints
    word: Ints
    pieces: Mapping[str, tuple[Ints, ...]]
    groups: Ints
    types: Ints
    labels: Mapping[str, tuple[Any, ...]]
    excluded: Mapping[str, int]

    def values(self, column: str) -> tuple[Ints | NDArray[np.float64], int]:
        """Return class codes and K, or real values and 0, `(N,)`; -1 and NaN where there is no label.

        Numbers with a fraction are real values; whole numbers, texts and truth values are classes.

        Raises:
            UnknownName: no such column among those asked for.
        """
        if column not in self.labels:
            raise unknown_name("column", column, self.labels)
        labels = self.labels[column]
        if any(type(label) is float for label in labels):
            return np.array([np.nan if label is None else float(label) for label in labels]), 0
        codes, names = _coded(labels)
        return codes, len(names)

    def names(self, column: str) -> tuple[str, ...]:
        """Return the names of the classes, in the order of their codes; () for real values."""
        return () if self.values(column)[1] == 0 else tuple(_coded(self.labels[column])[1])

    @property
    def codes(self) -> dict[str, Ints]:
        """Codes of the columns of classes, by column."""
        found = {column: self.values(column) for column in self.labels}
        return {column: values.astype(np.int64) for column, (values, n) in found.items() if n}


def rows_of_words(
    model: LanguageModel,
    corpus: Corpus,
    *,
    columns: Sequence[str] = (),
    split: str | None = None,
    max_rows: int = 2000,
    seed: int = 0,
) -> TextRows:
    """Choose words with every label: classes of the first column even, a second word of a sentence only when all have
    one.

    Raises:
        UnknownName: no such column.
        DegenerateDesign: no such word.
    """
    _check_columns(corpus, columns)
    ordinals, examples, encoded = _examples(model, corpus, split)
    rows = word_rows([e.text for e in examples], [e.words for e in examples], encoded)
    labels = [_labels(examples[e], int(w), columns) for e, w in zip(rows.example, rows.word, strict=True)]
    has = np.array([None not in found for found in labels], dtype=bool)
    classes = _classes([found[0] if found else 0 for found in labels])
    chosen = _spread(np.flatnonzero(has), rows.example, classes, max_rows, seed)
    pieces = tuple(rows.pieces[rows.first[r] : rows.first[r + 1]] for r in chosen)
    forms = [examples[e].forms[w] for e, w in zip(rows.example[chosen], rows.word[chosen], strict=True)]
    excluded = {"no label": int((~has).sum()), "not sampled": int(has.sum()) - len(chosen)}
    return _kept(
        corpus,
        ordinals,
        examples,
        encoded,
        rows.example[chosen],
        rows.word[chosen],
        {"": pieces},
        forms,
        {c: tuple(labels[r][k] for r in chosen) for k, c in enumerate(columns)},
        excluded,
    )


def rows_of_spans(
    model: LanguageModel,
    corpus: Corpus,
    *,
    positions: Sequence[str],
    columns: Sequence[str] = (),
    split: str | None = None,
    max_rows: int = 8000,
    seed: int = 0,
) -> TextRows:
    """Choose examples that have every position: `subject` is all of a span, `subject.last`, `end` and the like one
    piece.

    Positions are named as `Position` names them.

    Raises:
        UnknownName: no such span or column.
        BadParameter: a position of another form.
        DegenerateDesign: no such example.
    """
    _check_columns(corpus, columns)
    ordinals, examples, encoded = _examples(model, corpus, split)
    pieces: dict[str, dict[int, Ints]] = {}
    for position in map(Position.parse, positions):
        pieces[position.name] = _pieces_at(corpus, examples, encoded, position)
    has = np.array([e for e in range(len(examples)) if all(e in found for found in pieces.values())], dtype=np.int64)
    labels = {int(e): _labels(examples[e], -1, columns) for e in has}
    labelled = np.array([e for e in has if None not in labels[int(e)]], dtype=np.int64)
    classes = _classes([labels[e][0] if columns and e in labels else None for e in range(len(examples))])
    chosen = _spread(labelled, np.arange(len(examples)), classes, max_rows, seed)
    excluded = {
        "a position has no piece": len(examples) - len(has),
        "no label": len(has) - len(labelled),
        "not sampled": len(labelled) - len(chosen),
    }
    return _kept(
        corpus,
        ordinals,
        examples,
        encoded,
        chosen,
        np.full(len(chosen), -1),
        {name: tuple(found[int(e)] for e in chosen) for name, found in pieces.items()},
        [examples[e].text for e in chosen],
        {c: tuple(labels[int(e)][k] for e in chosen) for k, c in enumerate(columns)},
        excluded,
    )


def _kept(
    corpus: Corpus,
    ordinals: Ints,
    examples: Sequence[Example],
    encoded: Sequence[Encoded],
    example: Ints,
    word: Ints,
    pieces: Mapping[str, tuple[Ints, ...]],
    types: Sequence[str],
    labels: Mapping[str, tuple[Any, ...]],
    excluded: Mapping[str, int],
) -> TextRows:
    """Return the rows with only those examples that have a row."""
    if not len(example):
        raise DegenerateDesign(
            "the corpus has no row for this instrument",
            needed="one or more",
            where=corpus.source,
            found=", ".join(f"{n} {reason}" for reason, n in excluded.items() if n),
        )
    used, within = np.unique(example, return_inverse=True)
    return TextRows(
        encoded=tuple(encoded[e] for e in used),
        example=within.astype(np.int64).reshape(-1),
        ordinal=ordinals[example],
        word=word.astype(np.int64),
        pieces=pieces,
        groups=_coded([corpus.unit_names[k] for k in ordinals[example]])[0],
        types=_coded(types)[0],
        labels=labels,
        excluded={reason: n for reason, n in excluded.items() if n},
    )


def _examples(model: LanguageModel, corpus: Corpus, split: str | None) -> tuple[Ints, list[Example], list[Encoded]]:
    if split is not None and split not in corpus.splits:
        raise unknown_name("split", split, corpus.splits, where=corpus.source)
    chosen = [k for k, example in enumerate(corpus.examples) if split in (None, example.split)]
    encoded = model.encode([corpus.examples[k].text for k in chosen])
    encoded = [one.truncated(model.max_length or len(one)) for one in encoded]
    kept = [i for i, one in enumerate(encoded) if len(one)]
    ordinals = np.array([chosen[i] for i in kept], dtype=np.int64)
    return ordinals, [corpus.examples[k] for k in ordinals], [encoded[i] for i in kept]


def _check_columns(corpus: Corpus, columns: Sequence[str]) -> None:
    for column in columns:
        corpus.level_of(column)


def _labels(example: Example, word: int, columns: Sequence[str]) -> tuple[Any, ...]:
    found = []
    for column in columns:
        by_word = example.word_columns.get(column)
        found.append(by_word[word] if by_word is not None and word >= 0 else example.columns.get(column))
    return tuple(found)


def _pieces_at(
    corpus: Corpus, examples: Sequence[Example], encoded: Sequence[Encoded], position: Position
) -> dict[int, Ints]:
    """Return the pieces of a position, by example."""
    check_spans(corpus, [position])
    rows = position_rows(examples, encoded, [position])
    parts = np.split(rows.pieces, rows.first[1:-1])
    return dict(zip(rows.example.tolist(), parts, strict=False))


def _coded(values: Sequence[Any]) -> tuple[Ints, list[str]]:
    """Return codes in the order of the names; -1 for None."""
    names = sorted({str(value) for value in values if value is not None})
    index = {name: code for code, name in enumerate(names)}
    return np.array([-1 if v is None else index[str(v)] for v in values], dtype=np.int64), names


def _classes(labels: Sequence[Any]) -> Ints:
    """Return codes from 0 on of what is to be even, `(N,)`: real values are all one class."""
    is_real = any(type(label) is float for label in labels)
    return np.zeros(len(labels), dtype=np.int64) if is_real else _coded([str(label) for label in labels])[0]


def _spread(candidates: Ints, example: Ints, classes: Ints, most: int, seed: int) -> Ints:
    """Return at most so many candidates, rising: every class alike, and as many examples as can be, at random."""
    if len(candidates) <= most:
        return candidates
    rng = generator(seed, "instrument", "rows")
    order = candidates[rng.permutation(len(candidates))]
    counts = np.bincount(classes[order], minlength=int(classes[order].max()) + 1)
    used = np.zeros(int(example.max()) + 1, dtype=np.int64)
    chosen: list[int] = []
    left = most
    present = [k for k in np.argsort(counts, kind="stable") if counts[k]]
    for place, k in enumerate(present):  # the rarest first: what it cannot fill is shared by the others
        quota = min(left // (len(present) - place), int(counts[k]))
        own = order[classes[order] == k]
        firsts = _first_of_each(example[own])
        ranks = used[example[own]] + firsts
        picked = own[np.argsort(ranks, kind="stable")[:quota]]
        np.add.at(used, example[picked], 1)
        chosen += picked.tolist()
        left -= len(picked)
    return np.sort(np.array(chosen, dtype=np.int64))


def _first_of_each(values: Ints) -> Ints:
    """Return how many equal values come before each."""
    order = np.argsort(values, kind="stable")
    ranked = values[order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]]) if len(values) else np.zeros(0, np.int64)
    sizes = np.diff(np.r_[starts, len(values)])
    found = np.empty(len(values), dtype=np.int64)
    found[order] = np.arange(len(values)) - np.repeat(starts, sizes)
    return found


Flat = dict[str, Tensor]
MAX_BYTES = 4 << 30


def cut_by_length(lengths: Ints, tokens_per_batch: int) -> list[Ints]:
    """Return inputs of like length together, the longest first, at most so many padded pieces at once."""
    if len(lengths) and int(lengths.max()) * len(lengths) <= tokens_per_batch:
        return [np.argsort(-lengths, kind="stable")]
    return [np.array(part) for part in _batches_of(tuple(lengths.tolist()), tokens_per_batch)]


@lru_cache(maxsize=16)  # the rows of a fold are run again and again, at every place, dose and position
def _batches_of(lengths: tuple[int, ...], tokens_per_batch: int) -> list[list[int]]:
    return length_sorted_batches(lengths, tokens_per_batch)


@dataclass(frozen=True, eq=False)
class Batch:
    """A batch of B inputs, padded to T pieces.

    Attributes:
        inputs: ids, mask, positions.
        index: `(B, T)` flat piece of each place; one past the last for padding.
        start: `(B,)` column of each input's first piece.
    """

    inputs: PaddedBatch
    index: Tensor
    start: Ints


class Sequences:
    """States of E examples of P pieces in all.

    Attributes:
        lengths: `(E,)` pieces.
        states: `(P + 1, D)` float32 by site, the last row 0, for padding.
    """

    def __init__(self, model: LanguageModel, encoded: Sequence[Encoded], *, tokens_per_batch: int) -> None:
        self._model = model
        self._encoded = encoded
        self.lengths = np.array([len(one) for one in encoded], dtype=np.int64)
        self.offsets = np.concatenate([[0], np.cumsum(self.lengths)])
        self.tokens_per_batch = tokens_per_batch
        self.states: Flat = {}
        self.special = torch.from_numpy(np.concatenate([*(one.special for one in encoded), [True]]))

    def reserve(self, widths: Mapping[str, int], max_bytes: int) -> None:
        """Make room for the states of these sites.

        Raises:
            BadParameter: they would take more than `max_bytes`.
        """
        pieces = int(self.offsets[-1]) + 1
        needed = 4 * pieces * sum(widths.values())
        if needed > max_bytes:
            raise BadParameter(
                "whole-sequence states do not fit",
                needed=f"at most {max_bytes / 2**30:.2f} GiB (max_bytes)",
                found=f"{needed / 2**30:.2f} GiB: {pieces - 1} pieces at {len(widths)} sites",
                next_step="give fewer sites or rows (max_rows), or raise max_bytes",
            )
        self.states = {site: torch.zeros((pieces, width)) for site, width in widths.items()}

    def batch(self, examples: Ints) -> Batch:
        """Return the examples (any number of times each) as one batch."""
        given = [self._encoded[e] for e in examples]
        inputs, start = self._model.padded(given), self._model.first_piece(given)
        length = inputs.ids.shape[1]
        column = np.arange(length)[None] - start[:, None]
        real = (column >= 0) & (column < self.lengths[examples][:, None])
        index = np.where(real, self.offsets[examples][:, None] + column, self.offsets[-1])
        return Batch(inputs, torch.from_numpy(index), start)

    def at(self, flat: Tensor, batch: Batch) -> Tensor:
        """Return a flat tensor as `(B, T, …)`, on the model's device."""
        return flat[batch.index].to(batch.inputs.ids.device)

    def parts(self) -> list[Ints]:
        """Return all examples, in length-sorted batches."""
        return cut_by_length(self.lengths, self.tokens_per_batch)

    def read(self, sites: Sequence[str]) -> Iterator[tuple[Ints, Flat]]:
        """Yield examples, and the states of their pieces in order by site, `(pieces, D)` float32, from one clean pass
        each.
        """
        for part in self.parts():
            batch = self.batch(part)
            with torch.no_grad():
                _, found = self._model.suffix.run(batch.inputs, sites)
            real = batch.index < int(self.offsets[-1])
            yield part, {site: states.cpu()[real].float() for site, states in found.items()}

    def gather(self, run: Callable[[Batch], Mapping[str, Tensor]], fill: float) -> Flat:
        """Return flat tensors `(P + 1, …)` of what `run` gives for each batch, `fill` in the last row."""
        flat: Flat = {}
        for part in self.parts():
            batch = self.batch(part)
            for name, values in run(batch).items():
                values = values.float().cpu()
                if name not in flat:
                    flat[name] = torch.full((int(self.offsets[-1]) + 1, *values.shape[2:]), fill)
                flat[name][batch.index] = values
        for values in flat.values():
            values[-1] = fill
        return flat

    def flat_index(self, examples: Ints) -> Ints:
        """Return the flat pieces of the examples, one after the other."""
        return np.concatenate([np.arange(self.offsets[e], self.offsets[e + 1]) for e in examples])
