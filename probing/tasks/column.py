"""Labels words or sentences with the values of a column of the corpus: `column:tense`, `column:year:real`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from probing.contracts.task import Task
from probing.errors import BadParameter
from probing.files.strict_json import strict_json
from probing.labels import Kind
from probing.tasks._columns import class_name, kind_of, number, require_column, values_of, word_values
from probing.tasks._numbers import has_decimal_comma, instead_of_times, merged_values, odd_number
from probing.text.corpus import Corpus, Example, Label

_KINDS: dict[str, Kind] = {"real": "real", "classes": "classes", "labels": "labels"}


class Column(Task):
    """`column:<name>`: the labels are the values of a column, at the level (word or sentence) at which the corpus has
    it.

    Labels are real-valued if the column holds only numbers and either some are not whole numbers or there are more than
    20 different ones; they are sets of labels if it holds JSON lists of strings, and otherwise classes.
    `column:<name>:real` and `column:<name>:classes` override this. With `column:<name>:labels`, a word or sentence has
    any number of labels, written `a|b` or as a JSON list of strings; an empty value means no labels, and a missing
    value that the word or sentence is left out.
    """

    def __init__(self, argument: str = "") -> None:
        super().__init__(argument)
        self.column = argument

    def prepare(self, corpus: Corpus) -> None:
        """Find the column, and set `level` to `word` or `sentence`, and `kind` to `classes`, `real` or `labels` (see
        the class).

        Raises:
            BadParameter: the task is `column` without a name, or `column:<name>:real` for a column whose values are not
                numbers.
            UnknownName: the corpus has no column of this name; the message names the nearest.
            DegenerateDesign: there is such a column, but all its values are missing.
        """
        levels = corpus.column_names()
        if not self.argument:
            raise BadParameter(
                "which column?",
                needed="column:NAME",
                found="column",
                where=corpus.source,
                next_step="columns here: " + (", ".join(sorted(levels)) or "none"),
            )
        name, _, ending = self.argument.rpartition(":")
        overridden = self.argument not in levels and ending in _KINDS
        self.column = name if overridden else self.argument
        self.level = corpus.level_of(self.column)
        require_column(corpus, self.column, self.level)
        values = [value for value in values_of(corpus, self.column, self.level) if value is not None]
        self.kind = _KINDS[ending] if overridden else "labels" if all(map(_is_list, values)) else kind_of(values)
        if self.kind == "real":
            self._require_numbers(values, corpus.source)

    def doubts(self, corpus: Corpus) -> dict[str, Any]:
        """Return facts that make the labels doubtful: numbers that are read as classes, and values of different types
        that are read as one class.

        Returns:
            A dict. `odd_numbers` is there if all but a few values are numbers, or if numbers have decimal commas: a
                dict with the `column`, the number of `values`, how many of them are `numbers`, and an example of the
                others, `odd`. `merged_values` lists classes that occur in the data both as a number and as a string.
        """
        values = [value for value in values_of(corpus, self.column, self.level) if value is not None]
        odd = odd_number(values) if self.kind == "classes" and self.argument == self.column else None
        found: dict[str, Any] = {} if odd is None else {"odd_numbers": {"column": self.column, **odd}}
        merged = merged_values(values) if self.kind == "classes" else []
        return found | ({"merged_values": merged} if merged else {})

    def labels(self, example: Example) -> tuple[Any, ...]:
        """Return the labels of an example: one per word, or a tuple of one for the whole example. A missing label is
        None.
        """
        convert: Callable[[Label], Any] = _CONVERT[self.kind]
        if self.level == "sentence":
            return (convert(example.columns.get(self.column)),)
        return word_values(example, self.column, convert)

    def _require_numbers(self, values: Sequence[Label], where: str) -> None:
        for value in values:
            try:
                number(value)
            except ValueError:
                what = "holds a number that is not finite" if _is_infinite(value) else "is not numeric"
                raise BadParameter(
                    f"column {self.column!r} {what}",
                    needed="finite numbers for a real-valued task",
                    found=repr(value),
                    where=where,
                    next_step=self._cure(value, values),
                ) from None

    def _cure(self, value: Label, values: Sequence[Label]) -> str:
        """Return what to do about a value that is not a number, among the values of its column."""
        if _is_infinite(value):
            return "correct that value, or leave its row out"
        if has_decimal_comma(value):
            return f"write decimals with a point: {str(value).strip().replace(',', '.')} instead of {value}"
        if (instead := instead_of_times(values)) is not None:
            return instead
        classes = f"use column:{self.column}:classes"
        if odd_number(values) is not None:
            return f"correct that cell, or leave it empty so that its row is left out; if numbers are names, {classes}"
        return classes


def _is_infinite(value: Label) -> bool:
    """Return whether a value that is no number for a task is an infinite one."""
    return isinstance(value, float) or str(value).strip().lower().lstrip("+-") in ("inf", "infinity")


def _listed(text: str) -> list[str] | None:
    """Return the strings of a JSON list; None where a text is no such list."""
    if not text.lstrip().startswith("["):
        return None
    try:
        found = strict_json(text)
    except ValueError:
        return None
    return found if isinstance(found, list) and all(isinstance(name, str) for name in found) else None


def _is_list(value: Label) -> bool:
    return isinstance(value, str) and _listed(value) is not None


def _label_set(value: Label) -> tuple[str, ...] | None:
    """Return the names of a row's labels, sorted; a text that looks like a JSON list is read as a list."""
    if value is None:
        return None
    text = str(value) if isinstance(value, str) else str(class_name(value))
    found = _listed(text)
    if found is not None:
        return tuple(sorted(set(found)))
    # White space around a stroke is layout, as in `a | b`; names that have some are given as a JSON list.
    return tuple(sorted({name.strip() for name in text.split("|")} - {""}))


_CONVERT: dict[str, Callable[[Label], Any]] = {"real": number, "classes": class_name, "labels": _label_set}
MEMBER = Column
