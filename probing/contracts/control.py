"""Control: the contract of control tasks, which keep the rows and draw other labels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from probing.labels import Labels


class Control(ABC):
    """Makes the labels of a control task from those of a task: it keeps rows, classes and splits, and draws another
    `y`.

    Controls that keep the labels and change the states are `probing.contracts.state_control.StateControl`.

    Class attributes:
        is_selectivity: whether the task's score above this control is called selectivity; False for a chance check.
        levels: the levels of tasks that it can be used for.
        answers: the objection to a probe's result that it answers, in a reader's words.
        draws: how many times labels are drawn; each draw is trained. A parameter of the same name overrides it.
    """

    is_selectivity: ClassVar[bool] = True
    levels: ClassVar[tuple[str, ...]] = ("word", "sentence")
    answers: ClassVar[str] = ""
    draws: int = 1

    @abstractmethod
    def apply(self, labels: Labels, *, draw: int, seed: int) -> Labels:
        """Draw the labels of the control task once and return them: the task's labels with another `y`.

        A control that draws by a key also sets `ceiling` (the accuracy of a reader that has memorised every key of
        train) and `seen`. `control`, its name in results, may be left empty; results then use its recipe.

        Raises:
            DegenerateDesign: the rows have no key to draw by, or fewer than two classes are left.
        """

    def key_of(self, labels: Labels) -> str:
        """Return the name of the key that the control draws by; rows that have no value of it are left out of the task.
        Return "" if it draws by none.
        """
        return ""
