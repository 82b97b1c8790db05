"""Control: the contract of control tasks, which keep the rows and draw other labels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from probing.labels import Labels


class Control(ABC):
    """Makes the labels of a control task from a task's: the same rows, classes and splits, other `y`.

    Controls that keep the labels and change the states are `probing.contracts.state_control.StateControl`.

    Class attributes:
        is_selectivity: False: a chance check, never called selectivity.
        levels: levels of tasks it serves.
        answers: the objection that it answers, as a reader would put it.
        draws: how many times labels are drawn; each draw is trained. A parameter of the same name overrides it.
    """

    is_selectivity: ClassVar[bool] = True
    levels: ClassVar[tuple[str, ...]] = ("word", "sentence")
    answers: ClassVar[str] = ""
    draws: int = 1

    @abstractmethod
    def apply(self, labels: Labels, *, draw: int, seed: int) -> Labels:
        """Return the labels of one draw: those of the task with another `y`.

        Controls that draw by a key fill in `ceiling` and `seen`, too: what memory of every key would reach. `control`
        may be left empty; then results call the control by its recipe.

        Raises:
            DegenerateDesign: no key to draw by, or fewer than two classes left.
        """

    def key_of(self, labels: Labels) -> str:
        """Return the key that the control draws by; rows without a value of it are left out of the task. Empty:
        none.
        """
        return ""
