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
        answers: the objection that it answers, as one says it.
    """

    is_selectivity: ClassVar[bool] = True
    levels: ClassVar[tuple[str, ...]] = ("word", "sentence")
    answers: ClassVar[str] = ""

    @abstractmethod
    def apply(self, labels: Labels, *, draw: int, seed: int) -> Labels:
        """Return the control labels of one draw, with `ceiling`, `seen` and `control` filled in.

        Raises:
            DegenerateDesign: no key to draw by, or fewer than two classes left.
        """

    def key_of(self, labels: Labels) -> str:
        """Return the key that the control draws by; rows without a value of it are left out of the task. Empty:
        none.
        """
        return ""
