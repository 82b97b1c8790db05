"""Defines `Task`, the base class of tasks, which give labels to words, spans, pairs of words or whole examples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from probing.errors import OldAttributes
from probing.labels import Kind, RowForm
from probing.text.corpus import Corpus, Example


class Task(OldAttributes, ABC):
    """Base class of tasks: each gives labels to words, spans, pairs of words or whole examples of a corpus. `argument`
    is the part of a task's name after the colon, such as `Number` in `feature:Number`; "" if there is none.

    Attributes:
        level: what has a label: `word`, `span`, `pair` or `sentence`. If states are read at named positions of a text,
            such as `entity.last`, the level is `sentence`.
        kind: kind of the labels: `classes`, `real` numbers, or `labels` (several for each row).
        row_form: how the state of a labelled unit is made from states of the store: `row`, one state as it is; for
            spans, `mean` or `ends` (first and last word side by side); for pairs, `pair`, `difference` or `product`.
        chooses: for pairs (a, b), whether exactly one word b is right for each word a; labels are then `no` and `yes`.
        probes, controls, measures: names of those that are used if the caller names none; if empty, the defaults for
            labels of this kind are used.
    """

    _before: ClassVar[Mapping[str, str]] = {"reading": "row_form"}
    level: str
    kind: Kind
    row_form: RowForm = "row"
    chooses: ClassVar[bool] = False
    probes: ClassVar[tuple[str, ...]] = ()
    controls: ClassVar[tuple[str, ...]] = ()
    measures: ClassVar[tuple[str, ...]] = ()

    def __init__(self, argument: str = "") -> None:
        self.argument = argument

    @abstractmethod
    def prepare(self, corpus: Corpus) -> None:
        """Check that the corpus has what the task needs, and set the attributes `level` and `kind` if they depend on
        the corpus.

        Raises:
            UnknownName: the corpus has no column or feature of this name; the message names the nearest.
            DegenerateDesign: there is such a column, but all its values are missing.
        """

    @abstractmethod
    def labels(self, example: Example) -> tuple[Any, ...]:
        """Return the labels of one example: one per word, span or pair (None if it has no label), or a tuple of one
        label for the whole example.
        """

    def places(self, example: Example) -> Sequence[tuple[int, int]] | NDArray[np.int64]:
        """Return, for each span or pair of words of an example, two word indices counted from 0: first and last word of
        the span, or words a and b of the pair.
        """
        return ()

    def doubts(self, corpus: Corpus) -> dict[str, Any]:
        """Return facts that make the labels of a corpus doubtful, ready for JSON, once `prepare` was called; {} if
        there are none. `reporting/warnings.py` makes sentences of those that it knows.
        """
        return {}

    @property
    def read_from(self) -> str:
        """Kind of states that a store must have for this task: `word` or `sentence`."""
        return "sentence" if self.level == "sentence" else "word"
