"""Defines `Labels`, the targets of a task, and `Pieces` and `Pairs`, the states of tokens and of word pairs from which
they are predicted. A row is one labelled word, span, pair or sentence; a piece is a token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from probing.errors import BadParameter, DegenerateDesign, OldAttributes
from probing.provenance import digest

Kind = Literal["classes", "real", "labels"]
RowForm = Literal["row", "mean", "ends", "pair", "difference", "product"]
MISSING = -1  # code of a key that a row has no value of
MOST_BYTES = 2 * 2**30  # of pairs laid out as one matrix


@dataclass(frozen=True)
class Labels(OldAttributes):
    """Holds one target for each of N rows (words, spans, pairs or sentences), with all facts about the rows that
    controls and statistics need.

    Attributes:
        task: name of the task, e.g. `upos`.
        kind: `classes` (one of C), `real`, or `labels` (any number of the C classes at once).
        y: the targets: `(N,)` int64 codes into `classes`; `(N,)` float64 for `real`; `(N, C)` int64 of 0 and 1 for
            `labels`.
        classes: class names, sorted; empty for `real`.
        split: `(N,)` split names.
        groups: `(N,)` int64 code of each row's cluster, which is resampled as a whole; all copies of an input are in
            one cluster.
        example: `(N,)` int64 index of the row's example in the corpus.
        word: `(N,)` int64 index of the word in its example, -1 for a sentence; for a span its first word, for a pair
            (a, b) word a.
        row: `(N,)` int64 row of the store that holds the state of that word or sentence.
        keys: what else is known of the rows, which controls draw by and probes without states read: by name, `(N,)`
            int64 codes that are comparable across splits; a row without a value has the code `MISSING`. Words have
            `type` (the surface form), and `lemma` if the corpus has lemmas. Sentences have `text`, with single spaces;
            arrays that were given without texts lack it. Spans have `type` (their text) and `length` (in words). Pairs
            have `type` (both forms together), `first` and `second` (one form each), and `offset` (how many words b
            comes after a, at most 20). All have `document` if the corpus names documents, and each sentence column
            (such as a covariate) that holds strings or whole numbers. Word rows have no text of their sentence; those
            of one sentence share `example`.
        key_names: for each key, the string of every code: `np.array(labels.key_names["text"])[labels.keys["text"]]` is
            the text of every row.
        excluded: number of rows left out, by reason.
        ceiling: for labels of a control, the accuracy to be expected on `test` from a probe that has memorised the
            label of every key in train and guesses the commonest label for other keys; None means 1.
        seen: for labels of a control that are drawn by a key, `(N,)` bool: whether the row's value of the key occurs in
            train.
        control: name and draw of the control that made `y`; "" for the task's own labels.
        origin: for labels of a control that permutes rows, `(N,)` code of the cluster (from `groups`) that each row's
            label comes from, which `permuted` sets; None for others. Intervals then count that these clusters are a
            sample, too.
        row_form: how the state of a row is made from rows of the store: a single `row`, the `mean` over the words of a
            span, its two `ends`, a `pair` of words, or the `difference` or `product` of their states.
        other_word: `(N,)` int64 index of the last word of a span, or of word b of a pair; None if rows are neither.
        other_row: `(N,)` int64 row of the store that holds the state of that word; None if rows are neither.
        choice: `(N,)` int64: rows with the same number are alternatives of which exactly one has y = 1; None if rows
            are not alternatives.
        punctuation: for pairs, `(N,)` bool: whether one of the two words is punctuation (UPOS PUNCT); None if not
            known.
        unit: kind of a cluster: `sentence`, `document`, or the column by which the corpus is grouped.
        unit_reason: why `unit` is not `sentence`: `asked for` (an option chose it), or a property of the labels that
            requires it; "" if it is.
        fresh: `(N,)` bool: for rows of dev and test, whether their input does not occur in train; None if no input of
            dev or test occurs in train.
        texts: `(N,)` the text of each row as it is written, for probes that read texts; None: the key `text` holds
            them.
    """

    _before: ClassVar[Mapping[str, str]] = {"reading": "row_form"}

    task: str
    kind: Kind
    y: NDArray[Any]
    classes: tuple[str, ...]
    split: NDArray[np.str_]
    groups: NDArray[np.int64]
    example: NDArray[np.int64]
    word: NDArray[np.int64]
    row: NDArray[np.int64]
    keys: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    key_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    excluded: Mapping[str, int] = field(default_factory=dict)
    ceiling: float | None = None
    seen: NDArray[np.bool_] | None = None
    control: str = ""
    origin: NDArray[np.int64] | None = None
    row_form: RowForm = "row"
    other_word: NDArray[np.int64] | None = None
    other_row: NDArray[np.int64] | None = None
    choice: NDArray[np.int64] | None = None
    punctuation: NDArray[np.bool_] | None = None
    unit: str = "sentence"
    unit_reason: str = ""
    fresh: NDArray[np.bool_] | None = None
    texts: NDArray[np.object_] | None = None

    def __len__(self) -> int:
        return len(self.y)

    @property
    def codes(self) -> NDArray[Any]:
        """Codes `(N,)` that are equal for equal targets: `y` itself or, if there are several labels per row, one number
        for each distinct set of labels.
        """
        return self.y if self.y.ndim == 1 else np.unique(self.y, axis=0, return_inverse=True)[1].reshape(-1)

    @property
    def level(self) -> str:
        """The kind of thing that a row is: `word`, `sentence`, `span` or `pair`."""
        if self.row_form == "row":
            return "sentence" if len(self) and self.word[0] < 0 else "word"
        return "span" if self.row_form in ("mean", "ends") else "pair"

    def rows(self, split: str) -> NDArray[np.int64]:
        """Return the indices of the rows of one split."""
        return np.flatnonzero(self.split == split)

    def permuted(self, order: NDArray[np.int64]) -> Labels:
        """Return labels in which row i has the label of row `order[i]`, `(N,)`, with `origin` set: what a control that
        permutes labels returns.

        Raises:
            DegenerateDesign: rows are alternatives, of which exactly one has to stay right.
        """
        if self.choice is not None:
            raise DegenerateDesign(
                "labels of alternatives cannot be permuted",
                needed="rows that do not choose",
                found=f"task {self.task}",
                next_step="draw one of the alternatives of each word, as the control edge does",
            )
        return replace(self, y=self.y[order], origin=(self.groups if self.origin is None else self.origin)[order])

    def take(self, rows: NDArray[Any]) -> Labels:
        """Return the labels of these rows only, in the order given."""
        return replace(
            self,
            y=self.y[rows],
            split=self.split[rows],
            groups=self.groups[rows],
            example=self.example[rows],
            word=self.word[rows],
            row=self.row[rows],
            keys={name: codes[rows] for name, codes in self.keys.items()},
            seen=_taken(self.seen, rows),
            origin=_taken(self.origin, rows),
            fresh=_taken(self.fresh, rows),
            other_word=_taken(self.other_word, rows),
            other_row=_taken(self.other_row, rows),
            choice=_taken(self.choice, rows),
            punctuation=_taken(self.punctuation, rows),
            texts=_taken(self.texts, rows),
        )


def _taken(values: NDArray[Any] | None, rows: NDArray[Any]) -> Any:
    return None if values is None else values[rows]


@dataclass(frozen=True, eq=False)
class Pairs(OldAttributes):
    """Holds the states of N pairs of words as a table of R words and two indices per pair, which takes R·D numbers of
    memory instead of N·2D.

    `np.asarray(pairs)` makes an ordinary matrix: `(N, 2D)`, each row [a; b], or `(N, D)` where the two states are
    combined. Probes with `accepts_pairs` read table and index instead.

    Attributes:
        table: `(R, D)` float32 states of the words that occur.
        index: `(N, 2)` int64 rows of the table: a and b.
        group: `(N,)` int64 sentence of each row; rows of one sentence are fitted together.
        choice: see `Labels`.
        row_form: `pair` or `ends` for [a; b]; `difference`, a − b; `product`, the elementwise a · b.
    """

    _before: ClassVar[Mapping[str, str]] = {"reading": "row_form"}

    table: NDArray[np.float32]
    index: NDArray[np.int64]
    group: NDArray[np.int64]
    choice: NDArray[np.int64] | None = None
    row_form: RowForm = "pair"

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the rows as one matrix: `(N, 2D)`, or `(N, D)` where the two states are combined."""
        width = self.table.shape[1]
        return len(self.index), width if self.row_form in ("difference", "product") else 2 * width

    @property
    def dtype(self) -> np.dtype[np.float32]:
        """Data type of the table of states."""
        return self.table.dtype

    @property
    def ndim(self) -> int:
        """Number of axes, always 2."""
        return 2

    @property
    def nbytes(self) -> int:
        """Number of bytes that the rows take as one matrix."""
        return self.shape[0] * self.shape[1] * self.table.itemsize

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: NDArray[Any] | slice) -> Pairs:
        """Return the chosen rows, on the same table."""
        choice = None if self.choice is None else self.choice[rows]
        return replace(self, index=self.index[rows], group=self.group[rows], choice=choice)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Return the rows laid out as one matrix.

        Raises:
            BadParameter: beyond `MOST_BYTES`.
        """
        check_laid_out(self.nbytes)
        a, b = self.table[self.index[:, 0]], self.table[self.index[:, 1]]
        if self.row_form == "difference":
            a -= b
        elif self.row_form == "product":
            a *= b
        else:
            a = np.concatenate([a, b], axis=1)
        return a if dtype is None else a.astype(dtype, copy=False)


def check_laid_out(nbytes: int, where: str = "") -> None:
    """Check that pairs laid out as one matrix of `nbytes` bytes would fit into memory; `where` names the task or site
    in the message.

    Raises:
        BadParameter: they take more than `MOST_BYTES`.
    """
    if nbytes > MOST_BYTES:
        raise BadParameter(
            "too many pairs to lay out as one matrix",
            needed=f"at most {MOST_BYTES / 2**30:g} GiB",
            found=f"{nbytes / 2**30:.1f} GiB",
            where=where,
            next_step="use the probes bilinear or structural, which read pairs without laying them out, or fewer rows",
        )


class Pieces:
    """Holds the states of N rows (words or sentences) of one or more tokens each; `np.asarray` makes the mean over the
    tokens of each row, `(N, D)`.

    Attributes:
        states: `(R, D)` float32 states of all R tokens: first those of row 0, next those of row 1, and so on.
        bounds: `(N+1,)` int64: row i has the states `states[bounds[i]:bounds[i+1]]`.
    """

    ndim = 2

    def __init__(self, states: NDArray[Any], bounds: NDArray[np.int64]) -> None:
        """Keep the states and the bounds as they are.

        Raises:
            ValueError: bounds that do not cut the states into rows of at least one piece.
        """
        if bounds[0] != 0 or bounds[-1] != len(states) or (np.diff(bounds) < 1).any():
            raise ValueError(f"bounds from {bounds[0]} to {bounds[-1]} do not cut {len(states)} pieces into rows")
        self.states, self.bounds = states, bounds

    @classmethod
    def of_rows(cls, X: NDArray[Any]) -> Pieces:
        """Return an array `(N, D)` as `Pieces` with a single token per row."""
        return cls(X, np.arange(len(X) + 1))

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the pooled rows, `(N, D)`."""
        return len(self), self.states.shape[1]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Data type of the states."""
        return self.states.dtype

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, rows: Any) -> Pieces:
        """Return the chosen rows (a slice, indices or a mask), in the order given."""
        chosen = np.arange(len(self))[rows].reshape(-1)
        low, counts = self.bounds[chosen], np.diff(self.bounds)[chosen]
        bounds = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        places = np.repeat(low - bounds[:-1], counts) + np.arange(bounds[-1])
        return Pieces(self.states[places], bounds)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Return the means `(N, D)` over the pieces of each row."""
        sums = np.add.reduceat(self.states, self.bounds[:-1], axis=0, dtype=np.float64)
        means = sums / np.diff(self.bounds)[:, None]
        return means.astype(self.states.dtype if dtype is None else dtype)


def labels_digest(labels: Labels) -> str:
    """Return the SHA-256 (hex) of everything in the labels that affects a score."""
    state = hashlib.sha256()
    arrays = [labels.y, labels.split, labels.groups, labels.row, *(labels.keys[name] for name in sorted(labels.keys))]
    arrays += [one for one in (labels.other_row, labels.choice, labels.punctuation, labels.fresh) if one is not None]
    for array in arrays:
        values = np.char.encode(array, "utf-8") if array.dtype.kind == "U" else np.ascontiguousarray(array)
        state.update(f"{values.dtype.kind}{values.shape}".encode())
        state.update(values.tobytes())
    names = {name: list(labels.key_names[name]) for name in sorted(labels.keys)}
    row_form = [] if labels.row_form == "row" else [labels.row_form]
    state.update(digest([labels.kind, list(labels.classes), names, *row_form]).encode())
    return state.hexdigest()
