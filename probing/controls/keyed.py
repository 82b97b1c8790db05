"""Draws one random label for each value of a column that you name: a control task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from probing.contracts.control import Control
from probing.controls._draws import check_draws, drawn_by_key, refuse_label_as_key, refuse_rare_key
from probing.errors import DegenerateDesign
from probing.labels import Labels
from probing.text.example import composed


@dataclass(frozen=True, kw_only=True)
class KeyedControl(Control):
    """Draws one random label for each value of a field (the key) of words or sentences, such as lemma, template or
    document; the control `word_type` does so for word forms.

    Labels (classes or numbers) are drawn from the distribution of the labels in train. The control is informative only
    if values of the key recur: if fewer than a tenth of the test rows have a value that occurs in train, an error is
    raised.

    Args:
        key: name of the field; empty means `type` (the word form) for words, `text` for sentences.
        draws: number of independent control tasks.
    """

    levels: ClassVar[tuple[str, ...]] = ("word", "sentence")
    answers: ClassVar[str] = "the probe has memorised which label each lemma, template or document has"

    key: str = ""
    draws: int = 5

    def __post_init__(self) -> None:
        check_draws(self.draws)

    def apply(self, labels: Labels, *, draw: int, seed: int) -> Labels:
        """Draw the labels of the control task at random, and return them: `labels` with a new `y`. `draw` (the number
        of the random version) and `seed` determine the result.

        Raises:
            UnknownName: there is no such key; the message names the nearest.
            DegenerateDesign: the rows have no key at all, the key is the label itself or hardly recurs, or fewer than
                two labels are left in train (for a real target: in any split).
        """
        if not labels.keys:
            raise DegenerateDesign(
                "the keyed control needs a key to draw by",
                needed="a column of the corpus that rows share",
                found="no keys",
                where=f"task {labels.task}",
                next_step="add a column, e.g. the template's name",
            )
        key = self.key_of(labels)
        refuse_label_as_key(labels, key)
        made = drawn_by_key(labels, key, name=f"keyed:key={key}", draw=draw, seed=seed)
        refuse_rare_key(labels, key)
        return made

    def key_of(self, labels: Labels) -> str:
        """Return the name of the field that serves as the key: rows with the same value of it get the same random
        label.
        """
        return composed(self.key) or ("type" if "type" in labels.keys else "text")


MEMBER = KeyedControl
