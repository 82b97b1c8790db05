"""Labels pairs of words, which a field of the corpus lists as [a, b, label]: `pair:coreference`."""

from __future__ import annotations

from typing import Any

from probing.contracts.task import Task
from probing.errors import BadParameter, DegenerateDesign, unknown_name
from probing.labels import Kind
from probing.tasks._columns import COMBINED, class_name, kind_of, number, pair_row_form
from probing.text.corpus import Corpus, Example


class Pair(Task):
    """`pair:<FIELD>`: the label of a pair of words is the one that the corpus gives it in that field, a list of entries
    `[a, b, label]` with word indices counted from 0.

    Labels are real-valued if all are numbers and either some are not whole numbers or there are more than 20 different
    ones; otherwise they are classes. The probe reads the states of both words side by side, or with
    `pair:<FIELD>:difference` or `:product` their difference or product.
    """

    level = "pair"

    def __init__(self, argument: str = "") -> None:
        super().__init__(argument)
        name, _, ending = argument.rpartition(":")
        self.field = name if ending in COMBINED else argument
        self.row_form = pair_row_form(self, ending) if ending in COMBINED else "pair"
        self.kind: Kind = "classes"

    def prepare(self, corpus: Corpus) -> None:
        """Find the field, and set `kind` to `classes` or `real` (see the class).

        Raises:
            BadParameter: the task is `pair` without a field.
            UnknownName: no example has a field of pairs of this name; the message names the nearest.
            DegenerateDesign: there is such a field, but no pair in it has a label.
        """
        known = sorted({name for example in corpus.examples for name in example.pairs})
        if not self.field:
            raise BadParameter(
                "which field of pairs?",
                needed="pair:FIELD",
                found="pair",
                where=corpus.source,
                next_step="fields of [a, b, label] triples here: " + (", ".join(known) or "none"),
            )
        if self.field not in known:
            raise unknown_name("field of pairs", self.field, known, where=corpus.source)
        values = [label for e in corpus.examples for _, _, label in e.pairs.get(self.field, ()) if label is not None]
        if not values:
            raise DegenerateDesign(
                f"field {self.field!r} has no labelled pair",
                needed="[a, b, label] triples",
                found="none",
                where=corpus.source,
                next_step="choose another task",
            )
        self.kind = kind_of(values)

    def places(self, example: Example) -> list[tuple[int, int]]:
        """Return the indices, counted from 0, of the two words of every pair."""
        return [(a, b) for a, b, _ in example.pairs.get(self.field, ())]

    def labels(self, example: Example) -> tuple[Any, ...]:
        """Return the label of every pair of `places(example)`."""
        convert = number if self.kind == "real" else class_name
        return tuple([convert(label) for _, _, label in example.pairs.get(self.field, ())])


MEMBER = Pair
