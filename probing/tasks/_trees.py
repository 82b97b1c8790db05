"""Dependency trees as arrays: heads, and the length of every path."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing import registry
from probing.contracts.task import Task
from probing.errors import BadParameter
from probing.labels import Kind, RowForm
from probing.tasks._columns import require_column
from probing.text.corpus import Corpus, Example

Ints = NDArray[np.int64]
ROOT, UNKNOWN = -1, -2
COMBINED: tuple[RowForm, ...] = ("difference", "product")


class TreeTask(Task):
    """A task of pairs of words of one dependency tree."""

    level = "pair"
    kind: Kind = "classes"
    row_form: RowForm = "pair"

    def prepare(self, corpus: Corpus) -> None:
        """Check that every sentence is a tree, and how its pairs are read.

        Raises:
            BadParameter: an argument other than `difference` or `product`.
            UnknownName: no word column `head`.
            DegenerateDesign: it is entirely null.
            CorpusError: heads out of range or in a circle, with the sentence.
        """
        self.row_form = pair_row_form(self, self.argument) if self.argument else "pair"
        require_trees(corpus)


def pair_row_form(task: Task, ending: str) -> RowForm:
    """Return how the two states of a pair are combined.

    Raises:
        BadParameter: neither `difference` nor `product`.
    """
    for row_form in COMBINED:
        if ending == row_form:
            return row_form
    name = registry.member_name(type(task))
    raise BadParameter(
        f"task {name} cannot read pairs so", needed=f"{name}, {name}:difference or {name}:product", found=repr(ending)
    )


def require_trees(corpus: Corpus) -> None:
    """Refuse a corpus without heads, or with heads that form no tree.

    Raises:
        UnknownName, DegenerateDesign, CorpusError: see `TreeTask.prepare`.
    """
    require_column(corpus, "head", "word")
    for example in corpus.examples:
        _ = example.depths


def heads(example: Example) -> Ints:
    """Return the head of every word, `(n,)`, counted from 0; `ROOT` for the root, `UNKNOWN` where it is missing."""
    column: Any = example.word_columns.get("head", (None,) * len(example.words))
    return np.array([UNKNOWN if head is None else head - 1 for head in column], dtype=np.int64)


def path_lengths(example: Example) -> NDArray[np.float64]:
    """Return the number of arcs between every two words, `(n, n)`; infinite if no path joins them.

    In order of depth a word lies one arc farther from everything known so far than its head does.
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
