"""Gives every word form one random rule that determines its head: the control task of head selection."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from probing.contracts.control import Control
from probing.controls._draws import check_draws, uniform_of
from probing.errors import DegenerateDesign
from probing.labels import Labels

KEY = "first"  # of a pair: the form of the word that depends


@dataclass(frozen=True, kw_only=True)
class EdgeControl(Control):
    """Draws, once for every word form, which word counts as its head: the word itself, the first word of the sentence,
    or the last.

    It is the control `word_type` for tasks in which each word chooses a word of its sentence: a hash of (form, seed,
    draw) selects the rule, which is the same at every occurrence of the form in every split. First and last mean the
    first and last of the alternatives. The root, which has no alternatives, is not scored. A probe cannot know the rule
    of a form that is not in train; the best guess is right with probability ⅓, or ⅔ where two of the three rules lead
    to the same word. The ceiling, the UAS of a probe that knows the rules of train, is computed from this.

    Args:
        draws: number of independent control tasks.

    References:
        Hewitt & Liang 2019, Designing and Interpreting Probes with Control Tasks, section 2.
    """

    levels: ClassVar[tuple[str, ...]] = ("pair",)
    answers: ClassVar[str] = "the probe has memorised where the head of each word lies"

    draws: int = 5

    def __post_init__(self) -> None:
        check_draws(self.draws)

    def apply(self, labels: Labels, *, draw: int, seed: int) -> Labels:
        """Draw the labels of the control task at random, and return them: `labels` with a new `y`. `draw` (the number
        of the random version) and `seed` determine the result.

        Raises:
            DegenerateDesign: the rows are not pairs of a word and a candidate head, with exactly one right candidate
                for each word.
        """
        if labels.choice is None or KEY not in labels.keys or labels.other_word is None:
            raise DegenerateDesign(
                "the edge control needs words that choose their head",
                needed="a task such as head",
                found=f"rows that are {labels.level}s without a choice",
                where=f"task {labels.task}",
                next_step="use word_type or keyed",
            )
        order = np.lexsort((labels.other_word, labels.choice))
        start = np.flatnonzero(np.diff(labels.choice[order], prepend=-1))
        first, last = order[start], order[np.append(start[1:], len(order)) - 1]
        own = order[labels.word[order] == labels.other_word[order]]
        if len(own) != len(start):
            raise DegenerateDesign(
                "the edge control needs every word among its own alternatives",
                needed=f"{len(start)} such pairs",
                found=str(len(own)),
                where=f"task {labels.task}",
            )
        places = np.stack([own, first, last])
        codes = labels.keys[KEY]
        present = np.unique(codes)
        rules = np.array([int(3 * uniform_of(labels.key_names[KEY][c], draw=draw, seed=seed)) for c in present])
        y = np.zeros_like(labels.y)
        y[places[rules[np.searchsorted(present, codes[first])], np.arange(len(first))]] = 1
        seen = np.isin(codes, codes[labels.rows("train")])
        ceiling = _ceiling(places, seen, labels.split == "test")
        return replace(labels, y=y, seen=seen, ceiling=ceiling, control=f"edge#{draw}")


def _ceiling(places: NDArray[np.int64], seen: NDArray[np.bool_], is_test: NDArray[Any]) -> float | None:
    """Return the UAS on test of a reader who knows the rule of every type of train, and guesses the likeliest place for
    others.
    """
    tested = places[:, is_test[places[0]]]
    same = (tested[:, None] == tested[None]).sum(1).max(0)  # how many of the three places are the commonest word
    best = np.where(seen[tested[0]], 1.0, same / len(places))
    return float(best.mean()) if len(best) else None


MEMBER = EdgeControl
