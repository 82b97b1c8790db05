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
    """Example and word of each of R rows."""

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
    """The store, labels and sites that a control of states is made for.

    Attributes:
        table: the states that are probed.
        sites: those of its sites that are.
        labels: of the task.
        seed: root of the control's draws.
        opened: another store by its directory, with the same kind of rows.
    """

    table: StateTable
    sites: tuple[str, ...]
    labels: Labels
    seed: int
    opened: Callable[[Path], StateTable]


class StateSource(ABC):
    """Gives other states for the rows of a task. It is sent to other processes, so it holds no open files.

    Attributes:
        name: of the control, as results show it.
        above: what the score on the site's own states is above: `random states`.
        seen: for states made of keys, `(N,)` bool: the row's key occurs in train; None: as the task's word types.
    """

    name: str
    above: str
    seen: NDArray[np.bool_] | None = None

    @abstractmethod
    def stand_in(self, site: str) -> str:
        """Name the states that replace those of `site`; sites with the same name share them. Empty: the control has
        none here.
        """

    @abstractmethod
    def read(self, site: str, rows: Ints, *, draw: int) -> NDArray[np.float32]:
        """Return the states `(N, D)` of rows of the probed table."""

    @abstractmethod
    def recipe(self) -> dict[str, str]:
        """Return what determines the states besides the probed store, labels, seed and draw: contents, never a path."""


class StateControl(ABC):
    """Replaces the states of a task, whose labels stay; the same probe is fitted on them, with the same budget.

    Class attributes:
        levels: levels of tasks it serves.
        answers: the objection that it answers, as one says it.
    """

    is_selectivity: ClassVar[bool] = False
    levels: ClassVar[tuple[str, ...]] = ("word", "sentence")
    answers: ClassVar[str] = ""
    draws: int

    @abstractmethod
    def source(self, probed: Probed) -> StateSource:
        """Return a source of states for these rows, and check that it has them before anything is fitted.

        Raises:
            BadParameter, UnknownSite, ProvenanceMismatch, DegenerateDesign: there are none, or not of these rows.
        """

    def key_of(self, labels: Labels) -> str:
        """Return the key that the states are made of; rows without a value of it are left out of the task. Empty:
        none.
        """
        return ""
