"""Shuffles the labels, to check the chance level; the difference from it is not called selectivity."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from probing.contracts.control import Control
from probing.controls._draws import check_draws, refuse_single_value
from probing.labels import Labels
from probing.seeds import generator


@dataclass(frozen=True, kw_only=True)
class ShuffledLabelsControl(Control):
    """Permutes the labels within each split at random, so that only their distribution is left.

    In tasks where exactly one of several pairs is right (such as `head`), the right one is drawn at random.

    A probe that beats the majority rate on these labels shows that test labels have leaked into its training; one that
    does not beat it shows nothing.

    Args:
        draws: number of independent permutations.
    """

    is_selectivity: ClassVar[bool] = False
    answers: ClassVar[str] = "the score comes from a leak, or from the label frequencies alone"

    draws: int = 5

    def __post_init__(self) -> None:
        check_draws(self.draws)

    def apply(self, labels: Labels, *, draw: int, seed: int) -> Labels:
        """Permute the labels at random, and return them: `labels` with a new `y`. `draw` (the number of the
        permutation) and `seed` determine the result.

        Raises:
            DegenerateDesign: train has fewer than two classes.
        """
        order = np.arange(len(labels))
        for split in sorted(set(labels.split.tolist())):
            rows = labels.rows(split)
            order[rows] = rows[generator(seed, "shuffled_labels", draw, split).permutation(len(rows))]
        # Alternatives keep their place: one of them is drawn.
        made = labels.permuted(order) if labels.choice is None else _first_of_each(labels, labels.choice, order)
        refuse_single_value(made.y[labels.rows("train")], name="shuffled_labels")
        return replace(made, control=f"shuffled_labels#{draw}")


def _first_of_each(labels: Labels, choice: NDArray[np.int64], order: NDArray[np.int64]) -> Labels:
    """Return labels with 1 for the row of each choice that comes first in a random order, and 0 for the others."""
    _, first = np.unique(choice[order], return_index=True)
    y = np.zeros(len(choice), dtype=np.int64)
    y[order[first]] = 1
    return replace(labels, y=y)


MEMBER = ShuffledLabelsControl
