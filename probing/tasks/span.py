"""The task of the type of every span of words, from a column of BIO tags: `span:entity`, `span:entity:ends`."""

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
    """`span:<COLUMN>`: a row is a span, its class the type; its state the mean over its words, or (`:ends`) both ends.

    Tags are `B-TYPE`, `I-TYPE` and `O` (or nothing). As in conlleval an `I-` that continues no span of its type begins
    one; `S-` and `E-` (BIOES) are understood. Words outside spans are no rows: a task of types, not of finding spans.
    """

    level = "span"
    kind: Kind = "classes"

    def __init__(self, argument: str = "") -> None:
        super().__init__(argument)
        self.column = argument.removesuffix(_ENDS)
        self.row_form: RowForm = "ends" if argument.endswith(_ENDS) else "mean"

    def prepare(self, corpus: Corpus) -> None:
        """Check that the column is there and holds tags.

        Raises:
            BadParameter: no column named.
            UnknownName: no such word column, with the nearest one.
            DegenerateDesign: it is entirely null.
            CorpusError: a value that is no tag, with the sentence.
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
        """Return the first and last word of every span."""
        return [(first, last) for first, last, _ in self._spans(example)]

    def labels(self, example: Example) -> tuple[Any, ...]:
        """Return the type of every span."""
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
