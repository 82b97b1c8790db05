"""Helpers of tasks that read a column of the corpus: checks that it exists, and whether it holds classes or numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing import registry
from probing.contracts.task import Task
from probing.errors import BadParameter, DegenerateDesign, unknown_name
from probing.labels import Kind, RowForm
from probing.text.corpus import Corpus, Example, Label
from probing.text.example import named

MAX_NUMERIC_CLASSES = 20


class WordColumnTask(Task):
    """Base of tasks whose labels are the classes in a column of words."""

    level = "word"
    kind: Kind = "classes"
    column = ""

    def prepare(self, corpus: Corpus) -> None:
        """Check that the column exists.

        Raises:
            UnknownName: the corpus has no column of this name with a value for each word; the message names the
                nearest.
            DegenerateDesign: there is such a column, but all its values are missing.
        """
        refuse_argument(self)
        require_column(corpus, self.column, "word")

    def labels(self, example: Example) -> tuple[Any, ...]:
        """Return the class of every word; None for words without one."""
        return word_values(example, self.column, class_name)


def refuse_argument(task: Task) -> None:
    """Raise an error if a task that takes no argument was given one, such as `upos:x`.

    Raises:
        BadParameter: there is an argument.
    """
    if task.argument:
        name = registry.member_name(type(task))
        raise BadParameter(f"task {name} takes no argument", needed=name, found=f"{name}:{task.argument}")


def require_column(corpus: Corpus, column: str, level: str) -> None:
    """Raise an error if a column is missing or has no values.

    Raises:
        UnknownName: there is no such column at this level.
        DegenerateDesign: the column has no values.
    """
    known = {name for name, its_level in corpus.column_names().items() if its_level == level}
    if column not in known:
        raise unknown_name(f"{level} column", column, known, where=corpus.source)
    if all(value is None for value in values_of(corpus, column, level)):
        raise DegenerateDesign(
            f"column {column!r} has no value in any row",
            needed="labels",
            found="only missing values",
            where=corpus.source,
            next_step="choose another task, or a corpus in which this column is filled",
        )


def values_of(corpus: Corpus, column: str, level: str) -> list[Label]:
    """Return every value of a column, word by word or example by example."""
    if level == "sentence":
        return [example.columns.get(column) for example in corpus.examples]
    return [value for example in corpus.examples for value in example.word_columns.get(column, ())]


def word_values(example: Example, column: str, convert: Callable[[Label], Any]) -> tuple[Any, ...]:
    """Return the converted value of every word; None for every word if the example lacks the column."""
    values = example.word_columns.get(column)
    return (None,) * len(example.words) if values is None else tuple([convert(value) for value in values])


def class_name(value: Label) -> str | None:
    """Return a label as a class name (see `named`); None if it is missing or empty."""
    return named(value)


def kind_of(values: Sequence[Label]) -> Kind:
    """Return `real` if all values are numbers and either one has a fraction or more than `MAX_NUMERIC_CLASSES` differ;
    else `classes`.
    """
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) < len(values):
        return "classes"
    has_fraction = any(isinstance(value, float) and not value.is_integer() for value in numbers)
    return "real" if has_fraction or len(set(numbers)) > MAX_NUMERIC_CLASSES else "classes"


def number(value: Label) -> float | None:
    """Return the value as a finite float; None if it is None.

    Raises:
        ValueError: the value is not a finite number.
    """
    if value is None:
        return None
    found = float(value)
    if found != found or found in (float("inf"), float("-inf")):
        raise ValueError(f"{value!r} is not finite")
    return found


Ints = NDArray[np.int64]
ROOT, UNKNOWN = -1, -2
COMBINED: tuple[RowForm, ...] = ("difference", "product")


class TreeTask(Task):
    """Base of tasks whose rows are pairs of words in one dependency tree."""

    level = "pair"
    kind: Kind = "classes"
    row_form: RowForm = "pair"

    def prepare(self, corpus: Corpus) -> None:
        """Check that every sentence is a tree, and set how the states of a pair are combined.

        Raises:
            BadParameter: the argument is neither `difference` nor `product`.
            UnknownName: the corpus has no word column `head`.
            DegenerateDesign: the column has no values.
            CorpusError: heads are out of range or form a circle; the message names the sentence.
        """
        self.row_form = pair_row_form(self, self.argument) if self.argument else "pair"
        require_trees(corpus)


def pair_row_form(task: Task, ending: str) -> RowForm:
    """Return how the two states of a pair are combined: `pair` if `ending` is empty, else `difference` or `product`.

    Raises:
        BadParameter: the ending is neither `difference` nor `product`.
    """
    for row_form in COMBINED:
        if ending == row_form:
            return row_form
    name = registry.member_name(type(task))
    raise BadParameter(
        f"task {name} cannot read pairs so", needed=f"{name}, {name}:difference or {name}:product", found=repr(ending)
    )


def require_trees(corpus: Corpus) -> None:
    """Raise an error if the corpus has no heads, or if the heads of a sentence form no tree.

    Raises:
        UnknownName, DegenerateDesign, CorpusError: see `TreeTask.prepare`.
    """
    require_column(corpus, "head", "word")
    for example in corpus.examples:
        _ = example.depths


def heads(example: Example) -> Ints:
    """Return the index of every word's head, `(n,)`, counted from 0; `ROOT` for the root, `UNKNOWN` where the head is
    missing.
    """
    column: Any = example.word_columns.get("head", (None,) * len(example.words))
    return np.array([UNKNOWN if head is None else head - 1 for head in column], dtype=np.int64)


def path_lengths(example: Example) -> NDArray[np.float64]:
    """Return the number of arcs between every two words, `(n, n)`; infinite if no path joins them.

    Words are visited from the root downwards: the distance from a word to each visited word is its head's distance plus
    1.
    """
    above = heads(example)
    lengths = np.full((len(above), len(above)), np.inf)
    np.fill_diagonal(lengths, 0.0)
    children: dict[int, list[int]] = {}
    for word, head in enumerate(above.tolist()):
        children.setdefault(head if head >= 0 else ROOT, []).append(word)
    order = list(children.get(ROOT, ()))
    for word in order:  # grows as it is gone through: every head before its words
        order += children.get(word, ())
    for rank, word in enumerate(order):
        if above[word] >= 0 and rank:
            known = order[:rank]
            lengths[word, known] = lengths[known, word] = lengths[above[word], known] + 1.0
    return lengths
