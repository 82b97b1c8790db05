"""Defines `Control` and `StateControl`, the base classes of controls: other labels, or other states, that are probed
beside the task.
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


class Control(ABC):
    """Base class of controls that change labels: each makes the labels of a control task from those of a task. Rows,
    classes and splits stay, and the targets `y` are drawn at random. `Labels.keys` tells what a control can draw by.

    Controls that keep the labels and change the states are `probing.contracts.control.StateControl`.

    Class attributes:
        is_selectivity: whether the task's score minus that of this control is called selectivity. A task is selectively
            decodable if this is above 0 for all such controls. True if a score above the control answers its objection.
            False for a chance check, such as shuffled labels: nothing in a row tells its control label, so that a
            score above the control is one above the label frequencies and answers no objection.
        levels: levels of tasks that it can be used for: `word`, `sentence` or both.
        answers: the objection to a probe's result that the control answers, as a reader would put it.
        draws: how many times labels are drawn; probes are trained on each draw. A parameter of the same name overrides
            it.
    """

    is_selectivity: ClassVar[bool] = True
    levels: ClassVar[tuple[str, ...]] = ("word", "sentence")
    answers: ClassVar[str] = ""
    draws: int = 1

    @abstractmethod
    def apply(self, labels: Labels, *, draw: int, seed: int) -> Labels:
        """Draw the labels of the control task at random and return them: the task's labels with a new `y`. `draw` is
        the number of the random version, and `seed` the root seed; both determine the result.

        A control that permutes labels, also within groups of rows, returns `labels.permuted(order)`, where row i gets
        the label of row `order[i]`. Beside `y` this sets `origin`, the cluster that each label comes from: the labels
        are then a sample of clusters too, and without it intervals are too narrow (a warning says so).

        A control that draws one label for each value of a key (such as each word form) also sets two fields of the
        returned labels: `ceiling`, the accuracy of a probe that has memorised every value in train, and `seen`, which
        rows have such a value. The field `control`, the name in results, may be left empty; results then use the
        control's name and options.

        Raises:
            DegenerateDesign: the rows have no key, or fewer than two classes are left.
        """

    def key_of(self, labels: Labels) -> str:
        """Return the name of the control's key, such as `lemma`; "" if it has none. The control draws one label for
        each value of the key. Rows without a value are left out of the task, whose labels are `labels`.
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
    """Base class of objects that give other states for the rows of a task. They are sent to other processes, so they
    must not hold open files.

    Attributes:
        name: name of the control in results.
        above: name of these states, such as `random states`, for sentences that say that a score is above theirs.
        seen: `(N,)` bool, for states that are drawn for each value of a key: whether the row's value occurs in train.
            None means that rows count as seen if their word form occurs in train.
    """

    name: str
    above: str
    seen: NDArray[np.bool_] | None = None

    @abstractmethod
    def stand_in(self, site: str) -> str:
        """Return a name for the states that replace those of the site `site`; "" if the control has none for this site.
        Sites for which the same name is returned are given the same states.
        """

    @abstractmethod
    def read(self, site: str, rows: Ints, *, draw: int) -> NDArray[np.float32]:
        """Return the states `(N, D)` that replace those of these N rows at `site`; `draw` is the number of the random
        version of the control.
        """

    @abstractmethod
    def recipe(self) -> dict[str, str]:
        """Return, by name, everything else that determines the states, beside the probed store, the labels, the seed
        and the number of the draw: options, and hashes of files instead of their paths.
        """


class StateControl(ABC):
    """Base class of controls that keep the labels of a task and replace its states; the same probe is then fitted on
    the other states, with the same limits on training.

    Class attributes:
        levels: levels of tasks that it can be used for: `word`, `sentence` or both.
        answers: the objection to a probe's result that the control answers, as a reader would put it.
        draws: how many random versions of the states there are; probes are trained on each.
    """

    is_selectivity: ClassVar[bool] = False
    levels: ClassVar[tuple[str, ...]] = ("word", "sentence")
    answers: ClassVar[str] = ""
    draws: int

    @abstractmethod
    def source(self, probed: Probed) -> StateSource:
        """Return a source of states for the rows of `probed` (store, sites and labels), after checking that it has
        states for all of them.

        Raises:
            BadParameter, UnknownSite, ProvenanceMismatch, DegenerateDesign: there are no such states, or they belong to
                other rows.
        """

    def key_of(self, labels: Labels) -> str:
        """Return the name of the control's key; "" if it has none. The control draws one state at random for each
        value of the key. Rows without a value are left out of the task, whose labels are `labels`.
        """
        return ""
