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
        level: `word`, `span`, `pair` or `sentence` (which positions of a prompt are too).
        kind: of the target.
        row_form: what makes the state of a row: `row`; of spans `mean` or `ends`; of pairs `pair`, `difference` or
            `product`.
        chooses: of pairs, whether those of one word a are alternatives, of which exactly one is right: labels are then
            `no` and `yes`.
        probes, controls, measures: what is used where the caller names none; empty: the defaults of the kind.
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
        """Check that the corpus has what the task needs, and settle `level` and `kind`.

        Raises:
            UnknownName: no such column or feature, with the nearest name.
            DegenerateDesign: the column is entirely null.
        """

    @abstractmethod
    def labels(self, example: Example) -> tuple[Any, ...]:
        """Return one value per word or place (None: no label), or a 1-tuple at sentence level."""

    def places(self, example: Example) -> Sequence[tuple[int, int]] | NDArray[np.int64]:
        """Return the words that make the rows, counted from 0: the first and the last of a span, a and b of a pair."""
        return ()

    @property
    def read_from(self) -> str:
        """The kind of store rows that the task's rows are made of: `word` or `sentence`."""
        return "sentence" if self.level == "sentence" else "word"
