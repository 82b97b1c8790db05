"""Control and StateControl: the contracts of controls, whose labels or states are probed in addition to a task's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from probing.labels import Labels


class Control(ABC):
    """Makes the labels of a control task from those of a task: rows, classes and splits stay, and the targets `y` are
    drawn anew.

    Controls that keep the labels and change the states are `probing.contracts.control.StateControl`.

    Class attributes:
        is_selectivity: whether the task's score above this control is called selectivity; False for a chance check.
        levels: the levels of tasks that it can be used for.
        answers: the objection to a probe's result that the control answers, as a reader would put it.
        draws: how many times labels are drawn; each draw is trained. A parameter of the same name overrides it.
    """

    is_selectivity: ClassVar[bool] = True
    levels: ClassVar[tuple[str, ...]] = ("word", "sentence")
    answers: ClassVar[str] = ""
    draws: int = 1

    @abstractmethod
    def apply(self, labels: Labels, *, draw: int, seed: int) -> Labels:
        """Draw the labels of the control task once and return them: the task's labels with a new `y`.

        A control that draws by a key also sets `ceiling` (the accuracy of a reader that has memorised every key of
        train) and `seen`. `control`, its name in results, may be left empty; results then use its recipe.

        Raises:
            DegenerateDesign: the rows have no key to draw by, or fewer than two classes are left.
        """

    def key_of(self, labels: Labels) -> str:
        """Return the name of the key that the control draws by, or "" if it draws by none. Rows that have no value of
        the key are left out of the task.
        """
        return ""


Ints = NDArray[np.int64]


class RowsOfExamples(Protocol):
    """Gives, for each of R rows, the example and the word that the row belongs to."""

    @property
    def example(self) -> Ints:
        """Ordinal of the row's example in the corpus, `(R,)`."""

    @property
    def word(self) -> Ints:
        """Index of the row's word in its example, `(R,)`; -1 for none."""


class StateTable(Protocol):
    """Holds states that can be read by site and row: a store, or a view that pools a store's pieces (tokens) when they
    are read.
    """

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites, in site order."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """Mapping of everything that determines the states, ready for JSON."""

    @property
    def content_id(self) -> str:
        """Hash of the stored states."""

    @property
    def path(self) -> Any:
        """Directory of the store."""

    @property
    def rows(self) -> RowsOfExamples:
        """Examples and words of the rows."""

    def width(self, site: str) -> int:
        """Return the number of features at a site."""

    def read(self, site: str, rows: Ints) -> NDArray[np.float32]:
        """Return the states `(N, D)` of the N given rows."""


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
    """Gives substitute states for the rows of a task. It is sent to other processes, so it must not hold open files.

    Attributes:
        name: name of the control in results.
        above: phrase for these states, such as `random states`, that completes sentences on what a score is above.
        seen: `(N,)` bool, for states drawn by a key: whether the row's key occurs in train; None: whether its word type
            does.
    """

    name: str
    above: str
    seen: NDArray[np.bool_] | None = None

    @abstractmethod
    def stand_in(self, site: str) -> str:
        """Return a name for the states that replace those of `site`, or "" if the control has none for this site. Sites
        with the same name share their states.
        """

    @abstractmethod
    def read(self, site: str, rows: Ints, *, draw: int) -> NDArray[np.float32]:
        """Return the states `(N, D)` that replace those of these rows of the probed table, in one draw."""

    @abstractmethod
    def recipe(self) -> dict[str, str]:
        """Return everything that determines the states besides the probed store, the labels, the seed and the draw:
        hashes of contents, never paths.
        """


class StateControl(ABC):
    """Replaces the states of a task and keeps its labels; the same probe is then fitted on the other states, with the
    same budget.

    Class attributes:
        levels: the levels of tasks that it can be used for.
        answers: the objection to a probe's result that the control answers, as a reader would put it.
    """

    is_selectivity: ClassVar[bool] = False
    levels: ClassVar[tuple[str, ...]] = ("word", "sentence")
    answers: ClassVar[str] = ""
    draws: int

    @abstractmethod
    def source(self, probed: Probed) -> StateSource:
        """Return a source of states for these rows, after checking that it has states for all of them.

        Raises:
            BadParameter, UnknownSite, ProvenanceMismatch, DegenerateDesign: there are no such states, or they belong to
                other rows.
        """

    def key_of(self, labels: Labels) -> str:
        """Return the name of the key that the states are drawn by, or "" if they are drawn by none. Rows that have no
        value of the key are left out of the task.
        """
        return ""
