"""RowWeights, Responses and NaturalContrast of edited rows; and the corpus with the labels of the tasks.

A *cell* is a combination (stratum, class before the edit, class after it). F2 and F3 are the folds on which a contrast
is fitted, and on which effects are measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.contracts.task import Task
from probing.errors import BadParameter
from probing.recipes import build_task
from probing.text.corpus import Corpus
from probing.use.contrasts import Contrast, FromTo, sums_by, twins_of
from probing.use.experiment import Experiment

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
_LEAST = 8


@dataclass(frozen=True, eq=False)
class RowWeights:
    """Holds the weights of n edited rows of one fold.

    The weight of a stratum is its share of all rows. Within it a pair (from, to) has the weight in `pair_shares`,
    divided equally among its rows; without `pair_shares` all rows of a stratum weigh the same.

    Attributes:
        sides: start, goal and stratum of each row.
        shares: `(W,)` share of each stratum.
        n_classes: number of classes K; 0 for real values, for which a stratum is one cell.
        pair_shares: `(W, K, K)` weight of each pair; None: a pair has the weight of its number of rows.
    """

    sides: FromTo
    shares: Floats
    n_classes: int
    pair_shares: Floats | None = None

    @cached_property
    def cells(self) -> Ints:
        """Codes `(n,)` of the rows' cells: (stratum, class before the edit, class after it)."""
        return self._code(self.sides.start, self.sides.goal)

    @cached_property
    def reverse(self) -> Ints:
        """Codes `(n,)` of the reverse of each row's cell: (stratum, class after the edit, class before it)."""
        return self._code(self.sides.goal, self.sides.start)

    def _code(self, first: NDArray[Any], second: NDArray[Any]) -> Ints:
        if not self.n_classes:
            return self.sides.strata
        return np.asarray((self.sides.strata * self.n_classes + first) * self.n_classes + second, np.int64)

    @cached_property
    def _grouped(self) -> tuple[Ints, Ints, Ints]:
        """Cells that have a row, the index among them of each row's cell `(n,)`, and their numbers of rows."""
        counts = np.bincount(self.cells)
        found = np.flatnonzero(counts)
        return found, (np.cumsum(counts > 0) - 1)[self.cells], counts[found]

    @cached_property
    def weights(self) -> Floats:
        """Weights of the rows, `(n,)`, which sum to 1."""
        found, inverse, counts = self._grouped
        stratum = found // (self.n_classes**2) if self.n_classes else found
        own = counts.astype(np.float64) if self.pair_shares is None else self.pair_shares.reshape(-1)[found]
        of_stratum = np.bincount(stratum, own, len(self.shares))
        by_cell = self.shares[stratum] * own / of_stratum[stratum] / counts
        return np.asarray(by_cell[inverse] / by_cell[inverse].sum())

    def sample(self, most: int, rng: np.random.Generator) -> tuple[Ints, Floats]:
        """Choose about `most` rows and return their indices and weights; each class of a stratum keeps its total
        weight, and at least a few rows.

        Args:
            most: number of rows to choose; 0: all.
            rng: random generator that draws them.
        """
        if not 0 < most < len(self.cells):
            return np.arange(len(self.cells)), self.weights
        drawn = rng.permutation(len(self.cells))
        own = self.cells // max(1, self.n_classes)  # stratum and class; of real values the stratum
        order = drawn[np.argsort(own[drawn], kind="stable")]
        _, first, inverse, counts = np.unique(own[order], return_index=True, return_inverse=True, return_counts=True)
        kept = np.minimum(counts, np.maximum(_LEAST, np.ceil(counts * most / len(order)))).astype(np.int64)
        chosen = np.arange(len(order)) - first[inverse] < kept[inverse]
        of_class = np.bincount(inverse, self.weights[order])
        weights = self.weights[order][chosen]
        weights *= (of_class / np.bincount(inverse[chosen], weights, len(of_class)))[inverse[chosen]]
        return order[chosen], weights

    def centred(self, x: Floats) -> Floats:
        """Return the weighted deviations from the mean of each row's cell, `(n,)`, which are the influence values of Σ
        weights · x.

        Cells of few rows are combined within a stratum: the only row of a cell does not deviate from its mean, so its
        error would not be counted. A row that is alone even then counts with its full value. Without `pair_shares`, a
        stratum is one cell, since rows that exchange states are in few independent sets.

        References:
            Wolter 2007, Introduction to Variance Estimation, §2.5 (collapsed strata).
        """
        found, inverse, counts = self._grouped
        if self.n_classes:
            stratum = found // self.n_classes**2
            few = (counts < _LEAST) | (self.pair_shares is None)
            pool = np.where(few, found.max() + 1 + stratum, found)
            inverse = np.unique(pool, return_inverse=True)[1].reshape(-1)[inverse]
            counts = np.bincount(inverse)
        means = np.where(counts > 1, np.bincount(inverse, x) / counts, 0.0)
        return np.asarray(self.weights * (x - means[inverse]))

    @cached_property
    def pooled(self) -> RowWeights:
        """The same rows with all strata combined into one."""
        one = FromTo(np.zeros_like(self.sides.strata), self.sides.start, self.sides.goal)
        return RowWeights(one, np.ones(1), self.n_classes)

    def responses(self, changes: Floats) -> Responses:
        """Return the mean changes by cell, computed from changes `(n, V)`."""
        return Responses(self, changes)


@dataclass(frozen=True, eq=False)
class Responses:
    """Holds the mean change of the behaviour by (stratum, from, to); for real values, the change per unit in each
    stratum.
    """

    rows: RowWeights
    changes: Floats

    def expected(self, others: RowWeights) -> Floats:
        """Return the changes that rows of another fold are expected to show, `(n', V)`; zeros if no row was changed in
        the same way.

        They are half the difference between the changes from v to u and from u to v, since an effect that does not
        depend on the sign of the shift (such as that of a longer state on a norm) is not an effect of the property.
        """
        if self.rows.n_classes:
            n = 1 + int(max(*(rows.max() for rows in (self.rows.cells, others.cells, others.reverse))))
            counts = np.bincount(self.rows.cells, minlength=n)
            means = sums_by(self.rows.cells, self.changes, n) / np.maximum(counts, 1)[:, None]
            return np.asarray((means[others.cells] - means[others.reverse]) / 2)
        sides, n = self.rows.sides, 1 + int(max(self.rows.sides.strata.max(), others.sides.strata.max()))
        step = sides.goal - sides.start
        spread = np.bincount(sides.strata, step**2, n)
        slope = sums_by(sides.strata, step[:, None] * self.changes, n) / np.where(spread > 0, spread, np.inf)[:, None]
        return np.asarray(slope[others.sides.strata] * (others.sides.goal - others.sides.start)[:, None])


PROPERTY_LEVELS = ("word", "sentence")
LEAST = 30  # sentences and word types of a class


def rare_classes(corpus: Corpus, task: str) -> tuple[str, ...]:
    """Return the names of the classes of a word task that have fewer than 30 sentences (or documents) or word types,
    which is too few for a verdict; () if fewer than two classes would be left.

    Word types count, since types are used as groups if they nearly determine the label.
    """
    column = [
        (unit, e, e.word_columns.get(task, ())) for unit, e in zip(corpus.unit_names, corpus.examples, strict=True)
    ]
    texts: dict[str, set[str]] = {}
    types: dict[str, set[str]] = {}
    for unit, example, labels in column:
        for form, label in zip(example.forms, labels, strict=False):
            if isinstance(label, str):
                texts.setdefault(label, set()).add(unit)
                types.setdefault(label, set()).add(form.lower())
    rare = {name for name in texts if min(len(texts[name]), len(types[name])) < LEAST}
    return tuple(sorted(rare)) if len(texts) - len(rare) >= 2 else ()


def without(corpus: Corpus, task: str, classes: Sequence[str]) -> Corpus:
    """Return the corpus with the labels of these classes removed from the words of the task."""
    left_out = set(classes)
    examples = []
    for example in corpus.examples:
        if task in example.word_columns:
            kept = tuple(None if label in left_out else label for label in example.word_columns[task])
            example = replace(example, word_columns={**example.word_columns, task: kept})
        examples.append(example)
    return replace(corpus, examples=tuple(examples))


def labelled_corpus(corpus: Corpus, tasks: Sequence[str]) -> Corpus:
    """Return a corpus of the same texts with one label column for each task, named after the task.

    Raises:
        UnknownName: there is no such task, or the corpus lacks a column that it needs.
        BadParameter: a task is of spans or pairs.
    """
    built = {name: _prepared(corpus, name) for name in dict.fromkeys(tasks)}
    examples = []
    for example in corpus.examples:
        of_text, of_words = dict(example.columns), dict(example.word_columns)
        for name, task in built.items():
            labels = task.labels(example)
            if task.level == "word":
                of_words[name] = tuple(labels)
            else:
                of_text[name] = labels[0]
        examples.append(replace(example, columns=of_text, word_columns=of_words))
    return replace(corpus, examples=tuple(examples))


def task_levels(corpus: Corpus, tasks: Sequence[str], positions: Sequence[str]) -> str:
    """Return the common level of the tasks, `word` or `sentence`.

    Raises:
        BadParameter: tasks are of both levels, positions are missing for sentences, or given for words.
    """
    levels = {_prepared(corpus, name).level for name in tasks}
    if len(levels) > 1:
        raise BadParameter(
            "tasks of words and of sentences are not measured together",
            needed="one level",
            found=", ".join(sorted(levels)),
            next_step="run them one after the other",
        )
    (level,) = levels
    if level == "sentence" and not positions:
        raise BadParameter(
            "where do the states lie that are edited?",
            needed="positions, such as end or a span's name",
            found="none",
            next_step="--position end",
        )
    if level == "word" and positions:
        raise BadParameter("tasks of words have their own position", needed="no positions", found=", ".join(positions))
    return level


def _prepared(corpus: Corpus, name: str) -> Task:
    task = build_task(name, corpus)
    task.prepare(corpus)
    if task.level not in PROPERTY_LEVELS:
        raise BadParameter(
            f"{name} is a task of {task.level}s",
            needed="labels of words or of sentences",
            found=task.level,
            next_step="choose another task",
        )
    return task


@dataclass(frozen=True, eq=False)
class NaturalContrast:
    """Holds the natural contrast: the difference in clean behaviour between rows of two values, along which the effects
    on the edited rows of F3 are measured.

    Attributes:
        y, mean: `(n, V)` clean behaviour of all rows of the experiment, and its mean `(V,)`.
        f2, f3: rows of fold F2, and the edited rows of F3.
        sides: start, goal and stratum of the rows f3.
        fitted, measured: contrast fitted on all rows of F2, and on all rows of F3, edited or not.
        sign: 1 or -1; -1 reverses the contrast, so that rotations agree in its direction.
        exchanged: whether states were exchanged; a pair of classes then has the weight of its number of rows.
    """

    experiment: Experiment
    y: Floats
    mean: Floats
    f2: Ints
    f3: Ints
    sides: FromTo
    fitted: Contrast
    measured: Contrast
    sign: float = 1.0
    exchanged: bool = False

    @cached_property
    def weights(self) -> RowWeights:
        """Weights of the edited rows of F3."""
        e = self.experiment
        pair_shares = None if self.exchanged or not e.n_classes else e.pair_shares
        return RowWeights(self.sides, e.shares, e.n_classes, pair_shares)

    @cached_property
    def c(self) -> Floats:
        """Contrast vector of each edited row, `(n, V)`: its direction is that in which the row's effect is measured."""
        return self.sign * self.fitted.difference(self.sides)

    @cached_property
    def size(self) -> float:
        """Length of the contrast, C; never zero."""
        found = float(np.sqrt(self.weights.weights @ (self.c**2).sum(1)))
        return found or float(np.finfo(np.float64).tiny) ** 0.25

    @property
    def aim(self) -> Floats:
        """Derivatives `(n, V)` of the effect τ with respect to the behaviour of each edited row, if every row had
        weight 1.
        """
        return self.c / self.size

    @property
    def coefficients(self) -> Floats:
        """Derivatives `(n, V)` of the effect τ with respect to the behaviour of each edited row."""
        return self.weights.weights[:, None] * self.aim

    @cached_property
    def spread(self) -> float:
        """SD of clean behaviour along the contrast, s_c."""
        along = np.einsum("nv,nv->n", self.y[self.f3] - self.mean, self.c)
        return float(np.sqrt(self.weights.weights @ along**2)) / self.size

    def along(self, changes: Floats) -> Floats:
        """Return the component of changes `(n, V)` along the contrast, `(n,)`: ⟨Δ, c⟩ / C."""
        return np.asarray(np.einsum("nv,nv->n", changes, self.c) / self.size)

    def through_contrast(self, changes: Floats, value: float) -> Floats:
        """Return the influence `(F2,)` of the rows of F2 on the mean of `along`, through the fitted contrast."""
        p = self.weights.weights[:, None]
        sensitivity = p * (changes / self.size - value * self.c / self.size**2)
        return self.sign * self.fitted.influence(self.sides, sensitivity)

    @cached_property
    def total(self) -> tuple[float, Floats]:
        """Size T of the natural contrast and its influence values `(n,)` for all rows; if each edited row has a twin,
        both are computed from the differences between twins.
        """
        e = self.experiment
        twins = twins_of(e.twins, e.z, self.f3, self.sides.goal)
        change = self.measured.difference(self.sides) if twins is None else self.y[twins] - self.y[self.f3]
        value, influence = float(self.weights.weights @ self.along(change)), np.zeros(len(self.y))
        if twins is None:
            influence[e.fold(e.folds[self.f3[0]])] += self.measured.influence(self.sides, self.coefficients)
        else:
            influence[self.f3] += self.weights.centred(self.along(change))
        influence[self.f2] += self.through_contrast(change, value)
        return self.sign * value, self.sign * influence
