"""StateControl, StateSource: controls that keep a task's labels and change what a probe reads.

A control of labels asks what a probe can memorise. A control of states asks what the states of a site add to others:
to the identity of the word, to an untrained network, to a lower layer. What a task scores above it is no selectivity.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from probing.labels import Labels

Ints = NDArray[np.int64]


class RowsOfExamples(Protocol):
    """Says for each of R rows which example and which word it belongs to."""

    @property
    def example(self) -> Ints:
        """Ordinal of the row's example in the corpus, `(R,)`."""

    @property
    def word(self) -> Ints:
        """Index of the row's word in its example, `(R,)`; -1 for none."""


class StateTable(Protocol):
    """States that can be read by site and row: a store, or one whose pieces are pooled when they are read."""

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites, in site order."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """Everything that determines the states, ready for JSON."""

    @property
    def content_id(self) -> str:
        """Hash of the stored states."""

    @property
    def path(self) -> Any:
        """Directory of the store."""

    @property
    def rows(self) -> RowsOfExamples:
        """Example and word of each row."""

    def width(self, site: str) -> int:
        """Return the number of features at a site."""

    def read(self, site: str, rows: Ints) -> NDArray[np.float32]:
        """Return the states `(N, D)` of the rows asked for."""


@dataclass(frozen=True)
class Probed:
    """Holds what a state control is made for: the store, the labels and the sites.

    Attributes:
        table: the store of the states that are probed.
        sites: the sites of the store that are probed.
        labels: labels of the task.
        seed: root seed of the control's draws.
        opened: a function that opens another store, with the same kind of rows, from its directory.
    """

    table: StateTable
    sites: tuple[str, ...]
    labels: Labels
    seed: int
    opened: Callable[[Path], StateTable]


class StateSource(ABC):
    """Gives other states for the rows of a task. It is sent to other processes, so it must not hold open files.

    Attributes:
        name: name of the control in results.
        above: words for these states, such as `random states`, for sentences that say what a score is above.
        seen: `(N,)` bool, for states drawn by a key: whether the row's key occurs in train; None: whether its word type
            does.
    """

    name: str
    above: str
    seen: NDArray[np.bool_] | None = None

    @abstractmethod
    def stand_in(self, site: str) -> str:
        """Return a name for the states that replace those of `site`; sites with the same name share them. Return "" if
        the control has no states for this site.
        """

    @abstractmethod
    def read(self, site: str, rows: Ints, *, draw: int) -> NDArray[np.float32]:
        """Return the states `(N, D)` of rows of the probed table."""

    @abstractmethod
    def recipe(self) -> dict[str, str]:
        """Return everything that determines the states besides the probed store, the labels, the seed and the draw:
        hashes of contents, never paths.
        """


class StateControl(ABC):
    """Replaces the states of a task and keeps its labels; the same probe is fitted on the other states, with the same
    budget.

    Class attributes:
        levels: the levels of tasks that it can be used for.
        answers: the objection to a probe's result that it answers, in a reader's words.
    """

    is_selectivity: ClassVar[bool] = False
    levels: ClassVar[tuple[str, ...]] = ("word", "sentence")
    answers: ClassVar[str] = ""
    draws: int

    @abstractmethod
    def source(self, probed: Probed) -> StateSource:
        """Return a source of states for these rows, after checking that it has states for all of them.

        Raises:
            BadParameter, UnknownSite, ProvenanceMismatch, DegenerateDesign: there are no such states, or they are not
                of these rows.
        """

    def key_of(self, labels: Labels) -> str:
        """Return the name of the key that the states are drawn by; rows that have no value of it are left out of the
        task. Return "" if they are drawn by none.
        """
        return ""
