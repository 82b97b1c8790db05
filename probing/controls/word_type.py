"""Gives every word form one random label: the control task of Hewitt and Liang (2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from probing.contracts.control import Control
from probing.controls._draws import check_draws, drawn_by_key
from probing.errors import DegenerateDesign
from probing.labels import Labels


@dataclass(frozen=True, kw_only=True)
class WordTypeControl(Control):
    """Draws one random label for every word type (surface form, case-sensitive); all its occurrences in all splits have
    this label.

    Labels are drawn from the label distribution of train, by a hash of (form, seed, draw): the label of a type depends
    neither on the order of the corpus nor on other types. A probe's score on them measures how well the probe memorises
    words. A probe cannot know the label of a type that is not in train. The ceiling is therefore the accuracy of a
    probe that has memorised every type of train: the mean, over test rows, of 1 if the type occurs in train, else of
    the share of the commonest class.

    Args:
        draws: number of independent control tasks.

    References:
        Hewitt and Liang 2019, Designing and Interpreting Probes with Control Tasks, §2.
    """

    levels: ClassVar[tuple[str, ...]] = ("word",)
    answers: ClassVar[str] = "the probe has memorised which label each word has"

    draws: int = 5

    def __post_init__(self) -> None:
        check_draws(self.draws)

    def apply(self, labels: Labels, *, draw: int, seed: int) -> Labels:
        """Draw the labels of the control task at random, and return them: `labels` with a new `y`. `draw` (the number
        of the random version) and `seed` determine the result.

        Raises:
            DegenerateDesign: the rows are not words, or fewer than two classes are left in train.
        """
        if "type" not in labels.keys:
            raise DegenerateDesign(
                "the word_type control needs words",
                needed="rows that are words",
                found=f"rows with the keys {', '.join(sorted(labels.keys)) or '(none)'}",
                where=f"task {labels.task}",
                next_step="for sentence rows use keyed:key=COLUMN, with a key that several sentences share",
            )
        return drawn_by_key(labels, "type", name="word_type", draw=draw, seed=seed)


MEMBER = WordTypeControl
