"""Single values of a row as labels and names, and rows whose field names are in composed form."""

from __future__ import annotations

import datetime
import decimal
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from probing.errors import CorpusError
from probing.text.corpus import Label
from probing.text.text_forms import composed, named


def is_scalar(value: Any) -> bool:
    """Return whether a value is a label, and no list or mapping."""
    return value is None or isinstance(
        value, str | int | float | datetime.date | datetime.time | datetime.timedelta | decimal.Decimal
    )


def label_of(value: Any) -> Label:
    """Return the label that a value is; None for numbers that are not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    return float(value) if isinstance(value, decimal.Decimal) else str(value)


def labels_of(value: Any) -> str | None:
    """Return a set of labels as the JSON text that `column:NAME:labels` reads; a single string is a set of one
    label.
    """
    if value is None:
        return None
    return json.dumps([value] if isinstance(value, str) else value, ensure_ascii=False)


def string_of(value: Any) -> str | None:
    """Return the value as an id, document or split; None where it is missing."""
    return named(label_of(value))


@dataclass(frozen=True)
class ComposedRows(Collection[Mapping[str, Any]]):
    """Rows with their field names in composed form, renamed while they are iterated over."""

    values: Collection[Mapping[str, Any]]

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return ({composed(name): value for name, value in row.items()} for row in self.values)

    def __len__(self) -> int:
        return len(self.values)

    def __contains__(self, value: object) -> bool:
        return any(value == row for row in self)


def with_composed_names(
    values: Collection[Mapping[str, Any]], names: Sequence[str], source: str
) -> Collection[Mapping[str, Any]]:
    """Return the rows with their field names in composed form.

    Args:
        values: the rows.
        names: of all fields that occur in them.
        source: for messages.

    Raises:
        CorpusError: two fields of one name in two Unicode forms.
    """
    if all(composed(name) == name for name in names):
        return values
    for position, name in enumerate(names):
        if composed(name) in map(composed, names[:position]):
            raise CorpusError(
                "one field name in two Unicode forms",
                needed="every name once, composed (NFC) or not",
                found=repr(composed(name)),
                where=source,
                next_step="rename one of the two columns",
            )
    return ComposedRows(values)
