"""Task: the contract of tasks, which give labels to words, spans, pairs of words or whole examples."""

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
    """Gives labels to words, spans, pairs of words or whole examples. `argument` follows the colon: `feature:Number`.

    Attributes:
        level: `word`, `span`, `pair` or `sentence`; labels of prompts at named positions are at level `sentence`.
        kind: kind of the target: `classes`, `real` or `labels`.
        row_form: how the state of a row is made from rows of the store: `row`; for spans `mean` or `ends`; for pairs
            `pair`, `difference` or `product`.
        chooses: for pairs (a, b), whether those with the same word a are alternatives of which exactly one is right;
            their labels are then `no` and `yes`.
        probes, controls, measures: used if the caller names none; empty: the defaults of `kind`.
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
        """Check that the corpus has what the task needs, and set `level` and `kind`.

        Raises:
            UnknownName: there is no such column or feature; the message names the nearest.
            DegenerateDesign: the column is entirely null.
        """

    @abstractmethod
    def labels(self, example: Example) -> tuple[Any, ...]:
        """Return the labels of one example: one per word or place, None where there is none; at sentence level a tuple
        of one label.
        """

    def places(self, example: Example) -> Sequence[tuple[int, int]] | NDArray[np.int64]:
        """Return, for each row, two word indices counted from 0: (first, last) of a span, (a, b) of a pair."""
        return ()

    @property
    def read_from(self) -> str:
        """Kind of store rows that the task's rows are made of: `word` or `sentence`."""
        return "sentence" if self.level == "sentence" else "word"
