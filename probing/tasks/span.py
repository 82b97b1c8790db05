"""Labels every span of words with its type, from a column of BIO tags: `span:entity`, `span:entity:ends`."""

from __future__ import annotations

from typing import Any

from probing.contracts.task import Task
from probing.errors import BadParameter, CorpusError
from probing.labels import Kind, RowForm
from probing.tasks._columns import require_column
from probing.text.corpus import Corpus, Example, Label

_ENDS = ":ends"
_OUTSIDE = "O"


class Span(Task):
    """`span:<COLUMN>`: the label is the type of a span of words. The probe reads the mean of the states of its words
    or, with `:ends`, the states of its first and last word side by side.

    Tags are `B-TYPE`, `I-TYPE` and `O` (or nothing). As in conlleval, an `I-` that does not continue a span of its type
    begins one; `S-` and `E-` (BIOES) are understood. Words outside spans are left out: the task is to tell types apart,
    not to find spans.
    """

    level = "span"
    kind: Kind = "classes"

    def __init__(self, argument: str = "") -> None:
        super().__init__(argument)
        self.column = argument.removesuffix(_ENDS)
        self.row_form: RowForm = "ends" if argument.endswith(_ENDS) else "mean"

    def prepare(self, corpus: Corpus) -> None:
        """Check that the column exists and holds tags.

        Raises:
            BadParameter: the task is `span` without a column.
            UnknownName: the corpus has no column of this name with a value for each word; the message names the
                nearest.
            DegenerateDesign: there is such a column, but all its values are missing.
            CorpusError: a value is not a tag; the message names the sentence.
        """
        if not self.column:
            known = sorted(name for name, level in corpus.column_names().items() if level == "word")
            raise BadParameter(
                "which column of BIO tags?",
                needed="span:COLUMN or span:COLUMN:ends",
                found=f"span:{self.argument}",
                where=corpus.source,
                next_step="word columns here: " + (", ".join(known) or "none"),
            )
        require_column(corpus, self.column, "word")
        for example in corpus.examples:
            _ = self._spans(example)

    def places(self, example: Example) -> list[tuple[int, int]]:
        """Return the indices, counted from 0, of the first and last word of every span."""
        return [(first, last) for first, last, _ in self._spans(example)]

    def labels(self, example: Example) -> tuple[Any, ...]:
        """Return the type of every span of `places(example)`."""
        return tuple([kind for _, _, kind in self._spans(example)])

    def _spans(self, example: Example) -> list[tuple[int, int, str]]:
        spans: list[tuple[int, int, str]] = []
        is_open = False
        for word, value in enumerate(example.word_columns.get(self.column, ())):
            mark, kind = _tag(value, self.column, example.id)
            if mark == _OUTSIDE:
                is_open = False
                continue
            if is_open and mark in "IE" and spans[-1][2] == kind:
                spans[-1] = (spans[-1][0], word, kind)
            else:
                spans.append((word, word, kind))
            is_open = mark not in "SE"
        return spans


def _tag(value: Label, column: str, where: str) -> tuple[str, str]:
    if value is None or value == _OUTSIDE or value == "":
        return _OUTSIDE, ""
    mark, dash, kind = str(value).partition("-")
    if mark not in ("B", "I", "S", "E") or not dash or not kind:
        raise CorpusError(
            f"column {column!r} holds no BIO tags",
            needed="B-TYPE, I-TYPE or O",
            found=repr(value)[:80],
            where=f"sentence {where}",
            next_step=f"use column:{column} for labels of single words",
        )
    return mark, kind


MEMBER = Span
